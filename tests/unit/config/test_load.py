from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from echod import limits
from echod.config import explain as lines
from echod.config import load as config
from echod.config.settings import Setting, Settings, declared
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = Path(__file__).parents[3] / "config" / "echod.toml"

CONTRACT: dict[str, dict[str, object]] = {
    "listen": {"host": "*", "port": 7007, "backlog": 1024, "reuse_port": False},
    "pool": {"size": 1024, "when_full": "reject"},
    "timeouts": {"idle": "5m", "write": "30s", "drain": "10s"},
    "access": {"allow": [], "deny": [], "per_source": 0, "accept_rate": "off"},
    "log": {"level": "info", "format": "auto", "connections": "all", "queue": 65536},
    "admin": {"socket": "auto", "http": "off"},
}
"""What users were promised: names and defaults."""

SETTINGS = list(declared())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "echod.toml"


@pytest.fixture(autouse=True)
def default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the default file would be: this machine may have one."""
    path = tmp_path / "etc" / "echod.toml"
    monkeypatch.setattr(config, "DEFAULT_FILE", path)
    return path


def load(
    file: Path | None = None,
    text: str | None = None,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> config.Loaded:
    if file and text is not None:
        file.write_text(text)
    return config.load(file, flags or {}, environ or {})


def problems(
    file: Path | None = None,
    text: str | None = None,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the lines with which the configuration is refused, with `FILE` for the path."""
    with pytest.raises(Refusal) as caught:
        load(file, text, flags, environ)
    assert caught.value.exit_code == os.EX_CONFIG
    return [line.replace(str(file), "FILE") for line in caught.value.lines]


# What is declared


def test_the_declared_settings_are_those_of_the_contract() -> None:
    """No key was forgotten, none has another name."""
    assert [setting.name for setting in SETTINGS] == [
        f"{section}.{key}" for section, keys in CONTRACT.items() for key in keys
    ]


def test_the_example_file_holds_each_setting_with_its_default(file: Path) -> None:
    """Whoever starts from it starts from the defaults, as the contract has them and as the program has them."""
    assert tomllib.loads(EXAMPLE.read_text()) == CONTRACT
    loaded = load(EXAMPLE)
    assert (loaded.settings, loaded.file, loaded.warnings) == (load().settings, EXAMPLE, [])
    assert load(file, "").settings == load().settings


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_declared_setting_has_a_description_and_a_valid_default(setting: Setting) -> None:
    """Pydantic checks no defaults; the description is what `--help` says."""
    assert setting.field.description
    settings = config.load(None, {setting.name: _as_text(setting.default)}, {}).settings
    assert setting.of(settings) == setting.of(load().settings)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_help_says_of_a_setting_follows_from_its_declaration(setting: Setting) -> None:
    """Its form has a word, and the word's bounds are those that are checked."""
    assert setting.form.word
    for bound, beyond in (("minimum", -1), ("maximum", 1)):
        limit = setting.bounds.get(bound)
        if limit is not None:
            (line,) = problems(flags={setting.name: str(limit + beyond)})
            assert line.startswith(f"--{setting.name}: {setting.name}: must be at ")
            assert line.endswith(f" {limit}, got {limit + beyond}")


def test_only_what_is_bound_at_start_needs_a_restart() -> None:
    """Everything else a reload changes."""
    fixed = [setting.name for setting in SETTINGS if not setting.live]
    assert fixed == ["listen.backlog", "listen.reuse_port", "admin.socket", "admin.http"]


def test_settings_do_not_change() -> None:
    """A reload builds others, and whoever holds the old ones keeps them whole."""
    settings = load().settings
    with pytest.raises(ValidationError):
        settings.pool.size = 1
    with pytest.raises(ValidationError):
        settings.pool = settings.pool


# Where values come from


def _toml(value: Any) -> str:
    return json.dumps(value)


def _as_text(literal: str) -> str:
    """Return what a flag says for a value of the file: bare, a list with commas."""
    value = json.loads(literal)
    return ",".join(value) if value and isinstance(value, list) else value if isinstance(value, str) else literal


SAMPLES: dict[str, tuple[Any, Any]] = {
    "ADDRESS": (["127.0.0.1", "::1"], ["127.0.0.2"]),
    "ADDRESS:PORT": ("127.0.0.1:9107", "[::1]:9107"),
    "BOOL": (True, False),
    "DURATION": ("off", "7s"),
    "NETWORK": (["10.0.0.0/8", "2001:db8::/32"], ["192.0.2.7"]),
    "NUMBER": (7, "8"),
    "PATH": ("/one", "/two"),
    "RATE": ("off", "7/s"),
}
"""For each form, two values that differ."""


def _samples(setting: Setting) -> tuple[Any, Any]:
    """Return two values that follow from the declaration, so that a new setting is tested with the others."""
    return SAMPLES.get(setting.form.word) or (setting.form.schema["enum"][0], setting.form.schema["enum"][-1])


def in_force(setting: Setting, file: Path, sources: Mapping[str, Any]) -> tuple[object, str]:
    """Return the value in force and where it stands, given the values of some sources."""
    file.write_text(f"[{setting.section}]\n{setting.key} = {_toml(sources['file'])}\n" if "file" in sources else "")
    flags = {setting.name: _as_text(_toml(sources["flag"]))} if "flag" in sources else {}
    environ = {setting.variable: _as_text(_toml(sources["variable"]))} if "variable" in sources else {}
    loaded = config.load(file, flags, environ)
    return setting.of(loaded.settings), lines.origin((setting.section, setting.key), loaded.layers)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(setting: Setting, file: Path) -> None:
    """Of each setting, the value in force is that of the highest source, and so is its place."""
    default = setting.of(load().settings)
    assert in_force(setting, file, {}) == (default, "default")
    places = {"flag": f"--{setting.name}", "variable": setting.variable, "file": f"{file}:2"}
    one, other = _samples(setting)
    seen = []
    for value, lower in ((one, other), (other, one)):
        parsed, _ = in_force(setting, file, {"file": value})
        seen.append(parsed)
        for source, below in (
            ("flag", ("variable", "file")),
            ("flag", ("variable",)),
            ("flag", ("file",)),
            ("flag", ()),
            ("variable", ("file",)),
            ("variable", ()),
            ("file", ()),
        ):
            found = in_force(setting, file, {source: value, **dict.fromkeys(below, lower)})
            assert found == (parsed, places[source])
    assert seen[0] != seen[1]


@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_a_flag_says_true_or_false_in_any_case(text: str) -> None:
    """Shells and people differ."""
    assert load(flags={"listen.reuse_port": text}).settings.listen.reuse_port is True


@pytest.mark.parametrize("text", ["1", "yes", "on", ""])
def test_a_flag_takes_nothing_else_for_true(text: str) -> None:
    """As in the file, there is one way to say it."""
    assert problems(flags={"listen.reuse_port": text}) == [
        f'--listen.reuse_port: listen.reuse_port: must be true or false, got "{text}"'
    ]


@pytest.mark.parametrize("text", ["127.0.0.1,::1", " 127.0.0.1 , ::1 "])
def test_a_variable_holds_a_list_with_commas(text: str) -> None:
    """Space around them does not matter."""
    assert load(environ={"ECHOD_LISTEN__HOST": text}).settings.listen.host == ("127.0.0.1", "::1")


@pytest.mark.parametrize("text", ['["127.0.0.1","::1"]', '[ "127.0.0.1", "::1" ]'])
def test_a_flag_or_a_variable_holds_a_list_in_json(text: str) -> None:
    """As the file has it: who copies it from there is understood."""
    for loaded in (load(flags={"listen.host": text}), load(environ={"ECHOD_LISTEN__HOST": text})):
        assert loaded.settings.listen.host == ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ('["::1"', r'"[\"::1\""'),
        ("[::1]", '"[::1]"'),
        ("[::1],[::2]", '"[::1],[::2]"; several make a list: ["...", "..."]'),
        ('["::1"]]', r'"[\"::1\"]]"'),
    ],
)
def test_a_list_that_is_no_json_is_shown_as_it_came(text: str, got: str) -> None:
    """The brackets are what is wrong with it."""
    assert problems(flags={"listen.host": text}) == [
        f'--listen.host: listen.host: must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got {got}'
    ]


def test_a_list_nested_without_end_is_refused() -> None:
    """As it is in the file."""
    assert problems(flags={"access.allow": "[" * 100_000})


def test_an_empty_list_is_written_as_one() -> None:
    """So that a flag can take back what the file allows; a variable that somebody forgot to set lets nobody in."""
    environ = {"ECHOD_ACCESS__ALLOW": "10.0.0.0/8"}
    assert load(flags={"access.allow": "[]"}, environ=environ).settings.access.allow == ()
    assert problems(environ={"ECHOD_ACCESS__ALLOW": ""}) == [
        ('ECHOD_ACCESS__ALLOW: access.allow: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got ""')
    ]


def test_sources_meet_within_a_section(file: Path) -> None:
    """A flag for one key leaves the others of its section to the file."""
    listen = load(
        file,
        "[listen]\nport = 1\nbacklog = 2\nhost = '::1'",
        {"listen.port": "11"},
        {"ECHOD_LISTEN__BACKLOG": "12"},
    ).settings.listen
    assert (listen.port, listen.backlog, listen.host, listen.reuse_port) == (11, 12, ("::1",), False)


# Which file


def test_the_named_file_wins_over_the_variable_over_the_default_file(file: Path, default_file: Path) -> None:
    """Only one file is read; without any, the defaults alone are in force."""
    default_file.parent.mkdir()
    in_variable = file.with_name("variable.toml")
    for number, path in enumerate((file, in_variable, default_file), 1):
        path.write_text(f"[pool]\nsize = {number}\n")
    environ = {"ECHOD_CONFIG": str(in_variable)}
    found = [load(file, environ=environ), load(environ=environ), load(environ={"ECHOD_CONFIG": ""}), load()]
    assert [(loaded.file, loaded.settings.pool.size) for loaded in found] == [
        (file, 1),
        (in_variable, 2),
        (default_file, 3),
        (default_file, 3),
    ]


def test_without_any_file_the_defaults_are_in_force(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if what should be the directory of the default file is none."""
    loaded = load()
    assert (loaded.settings, loaded.file, loaded.warnings) == (Settings(sources=[]), None, [])  # type: ignore[call-arg]
    file.touch()
    monkeypatch.setattr(config, "DEFAULT_FILE", file / "echod.toml")
    assert load().file is None


def test_a_default_file_that_is_there_and_cannot_be_read_is_refused(
    file: Path, default_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To serve by the defaults instead could open what the file closes."""
    default_file.parent.mkdir()
    default_file.mkdir()
    file.symlink_to(file)
    for path, reason in ((default_file, "Is a directory"), (file, "Too many levels of symbolic links")):
        monkeypatch.setattr(config, "DEFAULT_FILE", path)
        with pytest.raises(Refusal) as caught:
            load()
        assert caught.value.lines == (f"{path}: can't be read: {reason}",)
        assert caught.value.exit_code == os.EX_NOINPUT


def test_a_file_that_was_named_and_is_not_there_is_refused(file: Path) -> None:
    """By flag or by variable: whoever names a file wants it."""
    for named, environ in ((file, {}), (None, {"ECHOD_CONFIG": str(file)})):
        with pytest.raises(Refusal) as caught:
            load(named, environ=environ)
        assert caught.value.lines == (f"{file}: can't be read: No such file or directory",)
        assert caught.value.exit_code == os.EX_NOINPUT


# What is wrong


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[pool]\nsize = 0", "FILE:2: pool.size: must be at least 1, got 0"),
        ("[pool]\nsize = '0'", "FILE:2: pool.size: must be at least 1, got 0"),
        ("pool.size = 1_000_001", "FILE:1: pool.size: must be at most 1000000, got 1000001"),
        ("pool = { size = -1 }", "FILE:1: pool.size: must be at least 1, got -1"),
        ("[listen]\nport = 65536", "FILE:2: listen.port: must be at most 65535, got 65536"),
        ("[listen]\nbacklog = true", "FILE:2: listen.backlog: must be a whole number, got true"),
        ("[pool]\nsize = 1.0", "FILE:2: pool.size: must be a whole number, got 1.0"),
        ("[pool]\nsize = inf", "FILE:2: pool.size: must be a whole number, got inf"),
        ("[pool]\nsize = []", "FILE:2: pool.size: must be a whole number, got []"),
        ("[pool.size]\nx = 1", "FILE:1: pool.size: must be a whole number, got a table"),
        ("pool.size.x = 1", "FILE:1: pool.size: must be a whole number, got a table"),
        ("[log]\nqueue = 1979-05-27", "FILE:2: log.queue: must be a whole number, got 1979-05-27"),
        (
            "[log]\nqueue = 'all'",
            'FILE:2: log.queue: must be a whole number, e.g. 1024 or "64Ki", got "all"',
        ),
        ("[listen]\nreuse_port = 1", "FILE:2: listen.reuse_port: must be true or false, got 1"),
        ("[listen]\nreuse_port = 'true'", 'FILE:2: listen.reuse_port: must be true or false, got "true"'),
        ("[admin]\nsocket = false", "FILE:2: admin.socket: must be a string, got false"),
        ("pool = 3", "FILE:1: pool: must be a table, got 3"),
        ("\n[[pool]]\nsize = 3", "FILE:2: pool: must be a table, got a list"),
        (
            "[pool]\nwhen_full = 'wiat'",
            'FILE:2: pool.when_full: must be "reject" or "wait", got "wiat"; did you mean "wait"?',
        ),
        (
            "[log]\nformat = 'JSON'",
            'FILE:2: log.format: must be "auto" or "json" or "console", got "JSON"; did you mean "json"?',
        ),
        ("[pool]\nwhen_full = 'x'", 'FILE:2: pool.when_full: must be "reject" or "wait", got "x"'),
        ("[pool]\nwhen_full = [\n1]", 'FILE:2: pool.when_full: must be "reject" or "wait", got a list'),
        ("[pool]\nwhen_full = {}", 'FILE:2: pool.when_full: must be "reject" or "wait", got a table'),
        ("[timeouts]\nidle = '0s'", 'FILE:2: timeouts.idle: must be more than 0, or "off"; got "0s"'),
        (
            "[listen]\nhost = [\n'::1',\n'x']",
            'FILE:4: listen.host: must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got "x"',
        ),
        ("[access]\nper_source = -1", "FILE:2: access.per_source: must be at least 0, got -1"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_it_must_be(file: Path, text: str, line: str) -> None:
    """One line for one problem: where, which setting, what it must be, what it is."""
    assert problems(file, text) == [line]


def test_an_integer_of_any_size_is_out_of_bounds(file: Path) -> None:
    """TOML writes it in hexadecimal."""
    (line,) = problems(file, f"[pool]\nsize = 0x{'f' * 5000}")
    assert line.startswith("FILE:2: pool.size: must be at most 1000000, got 0x")


def test_each_item_of_a_list_has_its_own_line(file: Path) -> None:
    """Of a hundred networks, the wrong ones are found without counting; and each is told what it must be."""
    text = '[access]\nallow = [\n"10.0.0.0/8",\n"10.0.0.0/33", # why\n\n7, "10.1.0.0/8"]\n[listen]\nhost = ["::1",\n1]'
    assert problems(file, text) == [
        'FILE:4: access.allow: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got "10.0.0.0/33"',
        'FILE:6: access.allow: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got 7',
        'FILE:6: access.allow: must be a network; "10.1.0.0/8" is an address within "10.0.0.0/8"',
        "FILE:9: listen.host: must be a string, got 1",
    ]


def test_items_of_a_flag_stand_in_the_flag() -> None:
    """There are no lines within."""
    assert problems(flags={"access.deny": "::/0,x,y"}) == [
        f'--access.deny: access.deny: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got "{name}"'
        for name in "xy"
    ]


def test_what_a_list_is_as_a_whole_stands_where_it_begins(file: Path) -> None:
    """No single item of it is wrong."""
    assert problems(file, "[listen]\nhost = [\n'::1',\n'0::1']") == [
        'FILE:2: listen.host: must name each address once, got "0::1" twice'
    ]


def test_a_value_that_another_overrides_is_refused_too(file: Path) -> None:
    """Else a mistake would wait for the day on which somebody starts without the flag. Each source speaks for itself."""
    assert problems(file, "[pool]\nsize = 0", {"pool.size": "5"}) == ["FILE:2: pool.size: must be at least 1, got 0"]
    assert problems(file, "[pool]\nsize = 0", {"pool.size": "-1"}, {"ECHOD_POOL__SIZE": "x"}) == [
        "--pool.size: pool.size: must be at least 1, got -1",
        'ECHOD_POOL__SIZE: pool.size: must be a whole number, e.g. 1024 or "64Ki", got "x"',
        "FILE:2: pool.size: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(("number", "more"), [(100, []), (101, ["and 1 more"]), (250, ["and 150 more"])])
def test_of_a_hundred_problems_in_one_source_the_rest_is_counted(file: Path, number: int, more: list[str]) -> None:
    """It is another program's file; the first ones say so."""
    text = "".join(f"x{index} = 1\n" for index in range(number))
    found = problems(file, text)
    assert [line.partition(": unknown")[0] for line in found[:100]] == [f"FILE:{i + 1}: x{i}" for i in range(100)]
    assert found[100:] == more


def test_a_hundred_problems_in_one_source_hide_none_in_another(file: Path) -> None:
    """Each source has its own hundred."""
    text = "".join(f"x{index} = 1\n" for index in range(101))
    networks = ",".join(["x"] * 102)
    found = problems(file, text, {"access.allow": networks, "pool.size": "0"}, {"ECHOD_POOL__SIZE": "0"})
    assert len(found) == 101 + 1 + 101
    assert [found[100], found[101], found[-1]] == [
        "and 3 more",
        "ECHOD_POOL__SIZE: pool.size: must be at least 1, got 0",
        "and 1 more",
    ]


def test_several_problems_come_in_the_order_flags_variables_file(file: Path) -> None:
    """Within the file from top to bottom, whatever the order of declaration; and all at once."""
    text = "[timeouts]\nidle = 3\n[log]\nlevl = 'info'\n[pool]\nsize = 0\n[pol]\n[listen]\nport = 'x'\nbacklog = 0\n"
    flags = {"pool.when_full": "x", "listen.port": "-1"}
    environ = {"ECHOD_LOG__FORMAT": "x", "ECHOD_LISTEN__REUSE_PORT": "x"}
    assert [line.partition(": must")[0].partition(": unknown")[0] for line in problems(file, text, flags, environ)] == [
        "--listen.port: listen.port",
        "--pool.when_full: pool.when_full",
        "ECHOD_LISTEN__REUSE_PORT: listen.reuse_port",
        "ECHOD_LOG__FORMAT: log.format",
        "FILE:2: timeouts.idle",
        "FILE:4: log.levl",
        "FILE:6: pool.size",
        "FILE:7: pol",
        "FILE:9: listen.port",
        "FILE:10: listen.backlog",
    ]


def test_a_flag_does_not_hide_a_section_that_is_no_table(file: Path) -> None:
    """Merged over it, the file's mistake would come to light only without the flag."""
    assert problems(file, "pool = 3", {"pool.size": "7"}) == ["FILE:1: pool: must be a table, got 3"]


@pytest.mark.parametrize("name", ["pool.size", "listen.host", "listen.reuse_port", "log.level", "timeouts.idle"])
def test_a_variable_that_is_no_utf_8_is_refused(name: str) -> None:
    """The environment holds bytes; Python hands them on as surrogates, which no output takes."""
    setting = next(setting for setting in SETTINGS if setting.name == name)
    (line,) = problems(environ={setting.variable: "\udcff"})
    assert line.startswith(f"{setting.variable}: {name}: must be ")
    assert line.endswith(r'"\udcff"')


ALL_SECTIONS = "[listen], [pool], [timeouts], [access], [log], [admin]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[pol]", "FILE:1: pol: unknown section; did you mean [pool]?"),
        ("\n[listn.x]\na = 1", "FILE:2: listn: unknown section; did you mean [listen]?"),
        ("[[timeout]]", "FILE:1: timeout: unknown section; did you mean [timeouts]?"),
        ("pol.size = 1", "FILE:1: pol: unknown section; did you mean [pool]?"),
        ("[tls]", f"FILE:1: tls: unknown section; known are {ALL_SECTIONS}"),
        ("port = 7", "FILE:1: port: unknown key; did you mean listen.port?"),
        ("zzz = 7", f"FILE:1: zzz: unknown key; known are {ALL_SECTIONS}"),
        ("self = 7", f"FILE:1: self: unknown key; known are {ALL_SECTIONS}"),
        ("[pool]\nsise = 1", "FILE:2: pool.sise: unknown key; did you mean pool.size?"),
        ("[listen]\nhotp = 1", "FILE:2: listen.hotp: unknown key; did you mean listen.host?"),
        ("[admin]\nhotp = 1", "FILE:2: admin.hotp: unknown key; did you mean admin.http?"),
        ("[pool]\nport = 1", "FILE:2: pool.port: unknown key; did you mean listen.port?"),
        ("[pool]\nzzz = 1", "FILE:2: pool.zzz: unknown key; known are pool.size, pool.when_full"),
        ("[pool]\n[pool.sise]\nx = 1", "FILE:2: pool.sise: unknown key; did you mean pool.size?"),
        ("[POOL]", "FILE:1: POOL: unknown section; did you mean [pool]?"),
        ("[Pool]\nsize = 1", "FILE:1: Pool: unknown section; did you mean [pool]?"),
        ("PORT = 7", "FILE:1: PORT: unknown key; did you mean listen.port?"),
        ("[pool]\nSize = 1", "FILE:2: pool.Size: unknown key; did you mean pool.size?"),
        ("[pool]\nWHENFULL = 1", "FILE:2: pool.WHENFULL: unknown key; did you mean pool.when_full?"),
        ("[pool.zzz.x]", "FILE:1: pool.zzz: unknown key; known are pool.size, pool.when_full"),
        ('"a\\nb" = 1', f'FILE:1: "a\\nb": unknown key; known are {ALL_SECTIONS}'),
        ('[pool]\n"size.x" = 1', 'FILE:2: pool."size.x": unknown key; did you mean pool.size?'),
        ('"" = 1', f'FILE:1: "": unknown key; known are {ALL_SECTIONS}'),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(file: Path, text: str, line: str) -> None:
    """In its own section first, then anywhere; if none is near, those that there are."""
    assert problems(file, text) == [line]


def test_variables_that_name_no_setting_are_warned_of() -> None:
    """They may be meant for another version: a warning, no error."""
    environ = {
        "ECHOD_ZZZ": "1",
        "ECHOD_POOL_SIZE": "1",
        "ECHOD_POOL__SIZE": "1",
        "ECHOD_CONFIG": "/x",
        "echod_pool__size": "1",
        "PATH": "/bin",
    }
    assert list(config.unknown_variables(environ)) == [
        "ECHOD_POOL_SIZE: unknown variable, ignored; did you mean ECHOD_POOL__SIZE?",
        "ECHOD_ZZZ: unknown variable, ignored",
    ]
    del environ["ECHOD_CONFIG"]
    loaded = load(environ=environ)
    assert loaded.warnings == list(config.unknown_variables(environ))
    assert loaded.settings == load(environ={"ECHOD_POOL__SIZE": "1"}).settings


def test_a_variable_in_the_wrong_case_names_the_right_one() -> None:
    """The names of variables have a case; the hint has none."""
    assert list(config.unknown_variables({"ECHOD_pool__size": "1"})) == [
        "ECHOD_pool__size: unknown variable, ignored; did you mean ECHOD_POOL__SIZE?"
    ]


@pytest.mark.parametrize(
    ("most", "text", "warned"),
    [
        (4096, "backlog = 4097", True),
        (4096, "backlog = 4096", False),
        (128, "", False),
        (128, "backlog = 1024", False),
        (128, "backlog = 129", True),
        (float("inf"), "backlog = 2147483647", False),
    ],
)
def test_a_backlog_above_the_kernels_cap_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, file: Path, most: float, text: str, *, warned: bool
) -> None:
    """But not the default, which nobody has asked for."""
    monkeypatch.setattr(config, "_somaxconn", lambda: most)
    loaded = load(file, f"[listen]\n{text}")
    assert loaded.warnings == [
        f"{file}:2: listen.backlog: the kernel caps {loaded.settings.listen.backlog} at {most} (net.core.somaxconn)"
    ] * int(warned)


def test_the_kernels_cap_is_read_where_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where it can't be read, in a sandbox, nothing is known of it."""
    assert config._somaxconn() == int(Path("/proc/sys/net/core/somaxconn").read_text())
    monkeypatch.setattr(config, "_SOMAXCONN", tmp_path / "missing")
    assert config._somaxconn() == float("inf")
    (tmp_path / "missing").write_text("unlimited\n")
    assert config._somaxconn() == float("inf")


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("write = '10m'", "2: timeouts.write: 10m has no effect, timeouts.idle (5m) comes first"),
        (
            "idle = '1m'\nwrite = '61s'",
            "3: timeouts.write: 1m1s has no effect, timeouts.idle (1m) comes first",
        ),
        ("idle = '30s'", None),
        ("idle = '10s'", None),
        ("idle = '10s'\nwrite = '30s'", None),
        ("idle = '1s'\nwrite = 'off'", None),
        ("idle = 'off'\nwrite = '1h'", None),
    ],
)
def test_a_write_timeout_above_the_idle_timeout_is_warned_of(file: Path, text: str, warning: str | None) -> None:
    """It never ends a connection; who leaves it at its default has made no mistake."""
    assert load(file, f"[timeouts]\n{text}").warnings == ([f"{file}:{warning}"] if warning else [])


def test_an_allowed_network_that_is_denied_is_warned_of(file: Path) -> None:
    """Each where it stands; what is denied in part has an effect."""
    text = (
        '[access]\nallow = [\n"10.0.0.0/8",\n"192.0.2.0/24",\n"2001:db8::/32",\n"10.1.0.0/16", "::1"]\n'
        'deny = ["10.0.0.0/9", "10.128.0.0/9", "192.0.2.0/25", "::/16"]'
    )
    assert load(file, text).warnings == [
        f'{file}:3: access.allow: "10.0.0.0/8" has no effect, access.deny covers it',
        f'{file}:6: access.allow: "10.1.0.0/16" has no effect, access.deny covers it',
        f'{file}:6: access.allow: "::1/128" has no effect, access.deny covers it',
    ]
    assert load(file, text, {"access.allow": "10.0.0.0/8,2001:db8::/32"}).warnings == [
        '--access.allow: access.allow: "10.0.0.0/8" has no effect, access.deny covers it'
    ]


@pytest.mark.parametrize(
    ("text", "size", "where"),
    [("[pool]\nsize = 905", 905, "FILE:2"), ("[pool]\nwhen_full = 'wait'", 1024, "default")],
    ids=["from the file", "by default"],
)
def test_a_pool_above_the_hard_limit_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch, file: Path, text: str, size: int, where: str
) -> None:
    """At start, and not when the descriptors have run out."""
    monkeypatch.setattr(limits, "hard_limit", lambda: 1000)
    assert problems(file, text) == [
        (
            f"{where}: pool.size: {size} workers need {size + limits.RESERVE} file descriptors, the hard limit is 1000:"
            " raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        )
    ]


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("deny = ['0.0.0.0/0', '::/0']", "every address", 2),
        ("deny = ['0.0.0.0/1', '128.0.0.0/1', '::/1', '8000::/1']", "every address", 2),
        ("deny = ['::ffff:0:0/96', '::/0']", "every address", 2),
        ("allow = '10.1.0.0/16'\ndeny = '10.0.0.0/8'", "all that access.allow holds", 3),
        ("allow = ['10.1.0.0/16', '::1']\ndeny = ['10.0.0.0/8', '::/0']", "all that access.allow holds", 3),
        ("deny = '0.0.0.0/0'\nallow = '0.0.0.0/0'", "all that access.allow holds", 2),
    ],
)
def test_a_configuration_that_lets_nobody_in_is_refused(file: Path, text: str, what: str, line: int) -> None:
    """It is no echo daemon then; who wants none stops it."""
    assert problems(file, f"[access]\n{text}") == [
        f"FILE:{line}: access.deny: covers {what}: nobody could connect",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "deny = '0.0.0.0/0'",
        "deny = '::/0'",
        "deny = ['0.0.0.0/1', '128.0.0.0/2', '::/0']",
        "allow = '10.0.0.0/8'\ndeny = '10.0.0.0/9'",
    ],
)
def test_a_configuration_that_lets_somebody_in_is_not(file: Path, text: str) -> None:
    """To deny all of one version is a way to serve the other."""
    assert load(file, f"[access]\n{text}").warnings == []


def test_an_interface_that_does_not_exist_is_refused_where_it_stands(file: Path) -> None:
    """The kernel would take no such address, at the worst time: at start."""
    text = "[listen]\nhost = [\n'::1',\n'fe80::1%lo',\n'fe80::1%nope0',\n'fe80::2%nope1']"
    assert problems(file, text) == [
        'FILE:5: listen.host: this machine has no interface "nope0"',
        'FILE:6: listen.host: this machine has no interface "nope1"',
    ]
    assert load(file, text, {"listen.host": "fe80::1%lo,fe80::1%1"}).settings.listen.host[1] == "fe80::1%1"


@pytest.mark.parametrize("number", ["0", "99999999", "99999999999999"])
def test_the_number_of_an_interface_that_does_not_exist_is_refused(number: str) -> None:
    """It is as good as a name, and as bad."""
    assert problems(flags={"listen.host": f"fe80::1%{number}"})


@pytest.mark.parametrize(
    ("host", "access", "line"),
    [
        ("127.0.0.1", "allow = ['::/0']", "FILE:4: access.allow: has no network of IPv4, on which alone is listened"),
        ("::1", "allow = ['10.0.0.0/8']", "FILE:4: access.allow: has no network of IPv6, on which alone is listened"),
        ("::1", "deny = ['::/0']", "FILE:4: access.deny: covers every address"),
        (
            "::1",
            "allow = ['10.0.0.0/8', '::1']\ndeny = '::/64'",
            "FILE:5: access.deny: covers all that access.allow holds",
        ),
    ],
)
def test_rules_that_let_nobody_in_are_refused_by_what_is_listened_on(
    file: Path, host: str, access: str, line: str
) -> None:
    """A network of the other version of IP lets nobody in; with both, it does."""
    assert problems(file, f"[listen]\nhost = '{host}'\n[access]\n{access}") == [f"{line}: nobody could connect"]
    load(file, f"[listen]\nhost = ['127.0.0.1', '::1']\n[access]\n{access}")


@pytest.mark.parametrize(
    ("host", "http", "on"),
    [
        ("'*'", "127.0.0.1", "*"),
        ("'127.0.0.1'", "127.0.0.1", "127.0.0.1"),
        ("['::1', '0.0.0.0']", "127.0.0.1", "0.0.0.0"),  # noqa: S104 - is refused
        ("'::1'", "[::]", "::1"),
    ],
)
def test_one_port_for_both_is_refused(file: Path, host: str, http: str, on: str) -> None:
    """As far as the addresses overlap."""
    text = f"[listen]\nhost = {host}\n[admin]\nhttp = '{http}:7007'"
    line = f"FILE:4: admin.http: listen.port is 7007 too, on {on}: take another port for one of them"
    assert problems(file, text) == [line]


@pytest.mark.parametrize(
    ("host", "http"),
    [("'*'", "127.0.0.1:7008"), ("['127.0.0.2', '::1']", "127.0.0.1:7007"), ("'127.0.0.1'", "[::]:7007")],
)
def test_addresses_that_do_not_overlap_may_have_one_port(file: Path, host: str, http: str) -> None:
    """And on any, another port will do."""
    load(file, f"[listen]\nhost = {host}\n[admin]\nhttp = '{http}'")


def test_what_this_machine_refuses_is_said_at_once(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Whatever the number of problems, one look shows them; warnings wait until there is none."""
    monkeypatch.setattr(limits, "hard_limit", lambda: 1000)
    text = "[access]\ndeny = ['0.0.0.0/0', '::/0']\n[pool]\nsize = 5000\n[listen]\nhost = 'fe80::1%nope0'"
    assert [line.partition(":")[0] for line in problems(file, text)] == ["FILE"] * 3
    assert [line.split(": ")[1] for line in problems(file, text)] == ["pool.size", "listen.host", "access.deny"]


@pytest.mark.parametrize("hard", [1000, None])
def test_a_pool_may_take_all_of_the_hard_limit(monkeypatch: pytest.MonkeyPatch, file: Path, hard: int | None) -> None:
    """The reserve is within what a pool needs; and there may be no limit."""
    monkeypatch.setattr(limits, "hard_limit", lambda: hard)
    size = 1000 - limits.RESERVE
    assert load(file, f"[pool]\nsize = {size}").settings.pool.size == size


# Once more, for a reload


def test_a_regular_file_is_read_again(file: Path) -> None:
    """As it is now; a link to one is one."""
    link = file.with_name("link.toml")
    link.symlink_to(file)
    for size in (1, 2):
        file.write_text(f"[pool]\nsize = {size}")
        assert config.load(link, {}, {}, again=True).settings.pool.size == size
    assert config.load(None, {}, {}, again=True).file is None


def test_a_file_that_can_be_read_only_once_is_no_file_for_a_reload(file: Path) -> None:
    """From a pipe nothing comes a second time: the reload would wait for ever, or give the defaults."""
    os.mkfifo(file)
    for path in (Path("/dev/zero"), file):
        with pytest.raises(Refusal) as caught:
            config.load(path, {}, {}, again=True)
        assert caught.value.lines == (f"{path}: a reload needs a regular file, not a pipe or a device",)
        assert caught.value.exit_code == os.EX_NOINPUT
    assert config.load(Path("/dev/null"), {}, {}).settings == load().settings


def test_a_file_that_has_gone_is_refused_by_a_reload(file: Path) -> None:
    """As at start: the daemon goes on as it was."""
    with pytest.raises(Refusal, match="No such file or directory"):
        config.load(file, {}, {}, again=True)


def test_a_file_that_can_be_seen_no_more_is_refused_by_a_reload(file: Path) -> None:
    """A line says why, as at start. A name that is too long stands for all that stat(2) can say."""
    path = file.with_name("x" * 300)
    with pytest.raises(Refusal, match="can't be read: File name too long"):
        config.load(path, {}, {}, again=False)
    with pytest.raises(Refusal, match="can't be read: File name too long"):
        config.load(path, {}, {}, again=True)


# For who asks the daemon


def asks(file: Path, text: str, flags: dict[str, str] | None = None, environ: dict[str, str] | None = None) -> str:
    """Return where it is asked with this file; nothing is wrong with that."""
    file.write_text(text)
    where = config.admin_socket(file, flags or {}, environ or {})
    assert where.trouble is None
    assert where.of_file == (where.setting == "/file.sock")
    return where.setting


def test_where_to_ask_comes_from_where_every_setting_does(file: Path) -> None:
    """Flag, variable, file, default."""
    text = "[admin]\nsocket = '/file.sock'"
    variable, flag = {"ECHOD_ADMIN__SOCKET": "/variable.sock"}, {"admin.socket": "/flag.sock"}
    assert asks(file, text, flag, variable) == "/flag.sock"
    assert asks(file, text, {}, variable) == "/variable.sock"
    assert asks(file, text) == "/file.sock"
    assert asks(file, "[admin]\nhttp = '127.0.0.1:9107'") == "auto"
    assert asks(file, "") == "auto"


def test_where_to_ask_is_found_whatever_else_is_wrong(file: Path) -> None:
    """The daemon may run on what was right when it started."""
    text = "[pool]\nsize = 0\nsise = 1\n[admin]\nsocket = '/file.sock'\nnonsense = 1\nhttp = 'x'"
    assert asks(file, text, {"listen.port": "x"}) == "/file.sock"
    assert asks(file, "admin = 7") == "auto"


def test_where_to_ask_may_be_wrong_itself(file: Path) -> None:
    """Then it is that setting, and no other, that is told."""
    file.write_text("[pool]\nsize = 0\n[admin]\nsocket = 'a.sock'")
    with pytest.raises(Refusal) as caught:
        config.admin_socket(file, {}, {})
    (line,) = caught.value.lines
    assert line.startswith(f"{file}:4: admin.socket: must be ")


def test_a_file_that_can_not_be_read_is_no_end_yet(file: Path) -> None:
    """A daemon may answer where one is by default; if none does, that is why. A flag makes it of no interest."""
    file.write_text("nonsense")
    for trouble in ("nonsense", None):
        socket, refusal, _ = config.admin_socket(file, {}, {})
        assert socket == "auto"
        assert refusal
        assert str(file) in refusal.lines[0]
        if trouble:
            file.unlink()
    assert config.admin_socket(file, {"admin.socket": "/a.sock"}, {}) == ("/a.sock", None, False)
