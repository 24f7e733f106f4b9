from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import pytest
from pydantic import BeforeValidator, ValidationError

from echod import config, descriptors, values
from echod.errors import Refusal
from echod.settings import Setting, Settings, declared

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = Path(__file__).parents[2] / "config" / "echod.toml"

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
    assert load(EXAMPLE) == (load().settings, EXAMPLE, [])
    assert load(file, "").settings == load().settings


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_declared_setting_has_a_description_and_a_valid_default(setting: Setting) -> None:
    """Pydantic checks no defaults; the description is what `--help` says."""
    assert setting.field.description
    default = setting.field.default
    text = "off" if default is None else f"{default}s" if isinstance(default, float) else default
    settings = config.load(None, {setting.name: _as_text(_toml(text))}, {}).settings
    assert _value(settings, setting) == default


def test_only_what_is_bound_at_start_needs_a_restart() -> None:
    """Everything else a reload changes."""
    fixed = [setting.name for setting in SETTINGS if setting.field.json_schema_extra != {"live": True}]
    assert fixed == ["listen.backlog", "listen.reuse_port", "admin.socket", "admin.http"]


def test_settings_do_not_change() -> None:
    """A reload builds others, and whoever holds the old ones keeps them whole."""
    settings = load().settings
    with pytest.raises(ValidationError):
        settings.pool.size = 1
    with pytest.raises(ValidationError):
        settings.pool = settings.pool


# Where values come from


def _value(settings: Settings, setting: Setting) -> object:
    return getattr(getattr(settings, setting.section), setting.key)


def _toml(value: Any) -> str:
    return json.dumps(value)


def _as_text(literal: str) -> str:
    """Return what a flag says for a value of the file: bare, a list with commas."""
    value = json.loads(literal)
    return ",".join(value) if isinstance(value, list) else value if isinstance(value, str) else literal


def _samples(setting: Setting) -> tuple[Any, Any]:
    """Return two values for the setting that differ from each other, and at least one from the default.

    They follow from the declaration, so that a new setting is tested with the others.
    """
    field = setting.field
    kind = field.annotation
    if kind is bool:
        return not field.default, field.default
    if kind is int:
        return field.default, field.default + 1
    if kind is str:
        return "/one", "/two"
    if get_origin(kind) is tuple:
        return ["127.0.0.1", "::1"], ["127.0.0.2"] if field.default else []
    choices = get_args(kind)
    if float in choices:
        forms = {entry.func for entry in field.metadata if isinstance(entry, BeforeValidator)}
        return "off", "7/s" if values.rate in forms else "7s"
    return choices[0], choices[-1]


def outcome(setting: Setting, file: Path, sources: Mapping[str, Any]) -> object:
    """Return the value in force, or what it is refused with, given the values of some sources."""
    file.write_text(f"[{setting.section}]\n{setting.key} = {_toml(sources['file'])}\n" if "file" in sources else "")
    flags = {setting.name: _as_text(_toml(sources["flag"]))} if "flag" in sources else {}
    environ = {setting.variable: _as_text(_toml(sources["variable"]))} if "variable" in sources else {}
    try:
        return _value(config.load(file, flags, environ).settings, setting)
    except Refusal as refusal:
        (line,) = refusal.lines
        return line


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(setting: Setting, file: Path) -> None:
    """Of each setting, the value in force is that of the highest source, and so is the place in a message."""
    default = outcome(setting, file, {})
    assert default == setting.field.default
    origins = {"flag": f"--{setting.name}: ", "variable": f"{setting.variable}: "}
    one, other = _samples(setting)
    seen = []
    for value, lower in ((one, other), (other, one)):
        in_file = outcome(setting, file, {"file": value})
        seen.append(in_file)
        for source, below in (("flag", ("variable", "file")), ("flag", ("file",)), ("variable", ("file",))):
            found = outcome(setting, file, {source: value, **dict.fromkeys(below, lower)})
            assert found == (in_file.replace(f"{file}:2: ", origins[source]) if isinstance(in_file, str) else in_file)
    assert seen[0] != seen[1]
    assert seen != [default, default]


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
    assert load() == (load().settings, None, [])
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
        ("[pool]\nwhen_full = 'x'", 'FILE:2: pool.when_full: must be "reject" or "wait", got "x"'),
        ("[pool]\nwhen_full = [\n1]", 'FILE:2: pool.when_full: must be "reject" or "wait", got a list'),
        ("[pool]\nwhen_full = {}", 'FILE:2: pool.when_full: must be "reject" or "wait", got a table'),
        ("[timeouts]\nidle = '0s'", 'FILE:2: timeouts.idle: must be more than 0, or "off"; got "0s"'),
        (
            "[listen]\nhost = [\n'::1',\n'x']",
            'FILE:2: listen.host: must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got "x"',
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


@pytest.mark.parametrize(
    "setting",
    [setting for setting in SETTINGS if setting.section == "access"],
    ids=lambda setting: setting.name,
)
def test_a_rule_that_is_not_applied_is_refused(setting: Setting, file: Path) -> None:
    """A setting that would let fewer people in must not be ignored."""
    value = next(sample for sample in _samples(setting) if sample not in ("off", [], 0))
    assert problems(file, f"[access]\n{setting.key} = {_toml(value)}") == [
        f"FILE:2: {setting.name}: is not supported by this version of echod, and a rule must not be ignored silently"
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
    assert load(environ={"ECHOD_ZZZ": "1", "ECHOD_POOL_SIZE": "7"}).settings == load().settings


def test_an_admin_socket_that_is_not_opened_is_warned_of(file: Path) -> None:
    """Whoever wrote it down waits for it; the warning says where it is written."""
    text = "[admin]\nhttp = '127.0.0.1:9107'\n"
    assert load(file, text, {"admin.socket": "/run/echod.sock"}).warnings == [
        "--admin.socket: admin.socket: this version of echod opens none",
        f"{file}:2: admin.http: this version of echod opens none",
    ]
    assert load(file, "[admin]\nsocket = 'off'").warnings == []


@pytest.mark.parametrize(
    ("text", "size", "where"),
    [("[pool]\nsize = 937", 937, "FILE:2"), ("[pool]\nwhen_full = 'wait'", 1024, "default")],
    ids=["from the file", "by default"],
)
def test_a_pool_above_the_hard_limit_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch, file: Path, text: str, size: int, where: str
) -> None:
    """At start, and not when the descriptors have run out."""
    monkeypatch.setattr(descriptors, "hard_limit", lambda: 1000)
    assert problems(file, text) == [
        (
            f"{where}: pool.size: {size} workers need {size + 64} file descriptors, the hard limit is 1000:"
            " raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        )
    ]


@pytest.mark.parametrize("hard", [1000, None])
def test_a_pool_may_take_all_of_the_hard_limit(monkeypatch: pytest.MonkeyPatch, file: Path, hard: int | None) -> None:
    """The reserve is within what a pool needs; and there may be no limit."""
    monkeypatch.setattr(descriptors, "hard_limit", lambda: hard)
    assert load(file, "[pool]\nsize = 936").settings.pool.size == 936
