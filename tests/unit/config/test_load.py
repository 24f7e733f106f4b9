"""From flags, variables and a file to the settings in force."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from echod.config import explain as lines
from echod.config import load as config
from echod.config.settings import Setting, Settings, declared
from echod.errors import Refusal
from tests.support.certificates import pem_file
from tests.support.loading import load, problems

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLE = Path(__file__).parents[3] / "config" / "echod.toml"
GUIDE = Path(__file__).parents[3] / "docs" / "configuration.md"

SETTINGS = list(declared())


# Declarations


def test_the_example_file_holds_each_setting_with_its_default(file: Path) -> None:
    """Users rely on these names and defaults. The file is committed, so that a change of one shows in two places."""
    written = tomllib.loads(EXAMPLE.read_text())
    assert [f"{section}.{key}" for section, keys in written.items() for key in keys] == [each.name for each in SETTINGS]
    loaded = load(EXAMPLE)
    assert (loaded.settings, loaded.file, loaded.warnings) == (load().settings, EXAMPLE, [])
    assert load(file, "").settings == load().settings


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_declared_setting_has_a_description_and_a_valid_default(setting: Setting) -> None:
    """Pydantic does not validate defaults; `--help` shows the description."""
    assert setting.field.description
    settings = config.load(None, {setting.name: _as_text(setting.default)}, {}).settings
    assert setting.of(settings) == setting.of(load().settings)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_the_bounds_that_help_shows_are_enforced(setting: Setting) -> None:
    """And each form has a word for help texts."""
    assert setting.form.word
    for bound, beyond in (("minimum", -1), ("maximum", 1)):
        limit = setting.bounds.get(bound)
        if limit is not None:
            (line,) = problems(flags={setting.name: str(limit + beyond)})
            assert line.startswith(f"--{setting.name}: {setting.name}: must be at ")
            assert line.endswith(f" {limit}, got {limit + beyond}")


def test_only_what_is_bound_at_start_needs_a_restart() -> None:
    """A reload changes every other setting. The guide lists those that it refuses to change."""
    (listed,) = re.findall(r"^- a setting changed that needs a restart: (.*);$", GUIDE.read_text(), re.MULTILINE)
    assert re.findall(r"`([\w.]+)`", listed) == [setting.name for setting in SETTINGS if not setting.live]


def test_settings_are_immutable() -> None:
    """A reload builds a new object."""
    settings = load().settings
    with pytest.raises(ValidationError):
        settings.pool.size = 1
    with pytest.raises(ValidationError):
        settings.pool = settings.pool


# Layers


def _toml(value: Any) -> str:
    return json.dumps(value)


def _as_text(literal: str) -> str:
    """Return a value of the file as the text of a flag: without quotes, a list with commas."""
    value = json.loads(literal)
    return ",".join(value) if value and isinstance(value, list) else value if isinstance(value, str) else literal


SAMPLES: dict[str, tuple[Any, Any]] = {
    "ADDRESS": (["127.0.0.1", "::1"], ["127.0.0.2"]),
    "ADDRESS:PORT": ("127.0.0.1:9107", "[::1]:9107"),
    "BOOL": (True, False),
    "DURATION": ("off", "7s"),
    "NAME": (["echod", "echod.example.net"], ["other"]),
    "NETWORK": (["10.0.0.0/8", "2001:db8::/32"], ["192.0.2.7"]),
    "MODE": ("0600", "777"),
    "NUMBER": (7, "8"),
    "PORT": (7, "off"),
    "SIZE": ("32Ki", "auto"),
    "FILE": (pem_file(), pem_file("two.example")),
    "PATH": ("/one", "/two"),
    "RATE": ("off", "7/s"),
}
"""For each form, two values that differ."""


def _samples(setting: Setting) -> tuple[Any, Any]:
    """Return two values that follow from the declaration, so that a new setting is tested like the others."""
    return SAMPLES.get(setting.form.word) or (setting.form.schema["enum"][0], setting.form.schema["enum"][-1])


def in_force(setting: Setting, file: Path, sources: Mapping[str, Any]) -> tuple[object, str]:
    """Return the value in force and its origin, given the values of some layers."""
    file.write_text(f"[{setting.section}]\n{setting.key} = {_toml(sources['file'])}\n" if "file" in sources else "")
    flags = {"tls.certificate": pem_file()} if setting.name == "tls.port" else {}
    flags |= {setting.name: _as_text(_toml(sources["flag"]))} if "flag" in sources else {}
    environ = {setting.variable: _as_text(_toml(sources["variable"]))} if "variable" in sources else {}
    loaded = config.load(file, flags, environ)
    return setting.of(loaded.settings), lines.origin((setting.section, setting.key), loaded.layers)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(setting: Setting, file: Path) -> None:
    """For each setting, the value in force and its origin are those of the highest layer."""
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
def test_true_and_false_in_a_flag_may_have_any_case(text: str) -> None:
    """Python and shells write them differently."""
    assert load(flags={"listen.reuse_port": text}).settings.listen.reuse_port is True


@pytest.mark.parametrize("text", ["1", "yes", "on", ""])
def test_no_other_word_in_a_flag_is_a_boolean(text: str) -> None:
    """As in the file."""
    assert problems(flags={"listen.reuse_port": text}) == [
        f'--listen.reuse_port: listen.reuse_port: must be true or false, got "{text}"'
    ]


@pytest.mark.parametrize("text", ["127.0.0.1,::1", " 127.0.0.1 , ::1 "])
def test_commas_separate_the_items_of_a_list_in_a_variable(text: str) -> None:
    """Space around them is ignored."""
    assert load(environ={"ECHOD_LISTEN__HOST": text}).settings.listen.host == ("127.0.0.1", "::1")


@pytest.mark.parametrize("text", ['["127.0.0.1","::1"]', '[ "127.0.0.1", "::1" ]'])
def test_a_list_in_a_flag_or_a_variable_may_be_json(text: str) -> None:
    """As it is written in the file, so that it can be copied from there."""
    for loaded in (load(flags={"listen.host": text}), load(environ={"ECHOD_LISTEN__HOST": text})):
        assert loaded.settings.listen.host == ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ('["::1"', r'"[\"::1\""'),
        ("[::1]", '"[::1]"'),
        ("[::1],[::2]", '"[::1],[::2]"; write several as a list: ["...", "..."]'),
        ('["::1"]]', r'"[\"::1\"]]"'),
    ],
)
def test_a_list_that_is_not_json_is_shown_unchanged(text: str, got: str) -> None:
    """Its brackets are the problem."""
    assert problems(flags={"listen.host": text}) == [
        f'--listen.host: listen.host: must be "*" or IP addresses, e.g. "127.0.0.1" or "::1"; got {got}'
    ]


def test_a_list_nested_too_deeply_is_refused() -> None:
    """As in the file."""
    assert problems(flags={"access.allow": "[" * 100_000})


def test_an_empty_list_is_written_with_brackets() -> None:
    """So that a flag can override the list of the file. An empty variable was probably not set, and is refused."""
    environ = {"ECHOD_ACCESS__ALLOW": "10.0.0.0/8"}
    assert load(flags={"access.allow": "[]"}, environ=environ).settings.access.allow == ()
    assert problems(environ={"ECHOD_ACCESS__ALLOW": ""}) == [
        ('ECHOD_ACCESS__ALLOW: access.allow: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got ""')
    ]


def test_layers_are_merged_within_a_section(file: Path) -> None:
    """A flag for one key leaves the other keys of its section to the file."""
    listen = load(
        file,
        "[listen]\nport = 1\nbacklog = 2\nhost = '::1'",
        {"listen.port": "11"},
        {"ECHOD_LISTEN__BACKLOG": "12"},
    ).settings.listen
    assert (listen.port, listen.backlog, listen.host, listen.reuse_port) == (11, 12, ("::1",), False)


# The choice of the file


def test_the_named_file_wins_over_the_variable_over_the_default_file(file: Path, default_file: Path) -> None:
    """Only one file is read; without a file, the defaults are in force."""
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
    """Also if the directory of the default file is not a directory."""
    loaded = load()
    assert (loaded.settings, loaded.file, loaded.warnings) == (Settings(sources=[]), None, [])  # type: ignore[call-arg]
    file.touch()
    monkeypatch.setattr(config, "DEFAULT_FILE", file / "echod.toml")
    assert load().file is None


def test_a_default_file_that_cannot_be_read_is_refused(
    file: Path, default_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To serve with the defaults instead could admit clients that the file denies."""
    default_file.parent.mkdir()
    default_file.mkdir()
    file.symlink_to(file)
    for path, reason in ((default_file, "Is a directory"), (file, "Too many levels of symbolic links")):
        monkeypatch.setattr(config, "DEFAULT_FILE", path)
        with pytest.raises(Refusal) as caught:
            load()
        assert caught.value.lines == (f"{path}: can't be read: {reason}",)
        assert caught.value.exit_code == os.EX_NOINPUT


def test_a_missing_file_that_was_named_is_refused(file: Path) -> None:
    """By flag or by variable."""
    for named, environ in ((file, {}), (None, {"ECHOD_CONFIG": str(file)})):
        with pytest.raises(Refusal) as caught:
            load(named, environ=environ)
        assert caught.value.lines == (f"{file}: can't be read: No such file or directory",)
        assert caught.value.exit_code == os.EX_NOINPUT


# Problems


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
def test_an_invalid_value_gives_one_line(file: Path, text: str, line: str) -> None:
    """The origin, the setting, what it must be, and what it is."""
    assert problems(file, text) == [line]


def test_a_huge_integer_is_out_of_bounds(file: Path) -> None:
    """TOML can write it in hexadecimal."""
    (line,) = problems(file, f"[pool]\nsize = 0x{'f' * 5000}")
    assert line.startswith("FILE:2: pool.size: must be at most 1000000, got 0x")


def test_each_item_of_a_list_has_its_own_line(file: Path) -> None:
    """An invalid network among a hundred is found without counting."""
    text = '[access]\nallow = [\n"10.0.0.0/8",\n"10.0.0.0/33", # why\n\n7, "10.1.0.0/8"]\n[listen]\nhost = ["::1",\n1]'
    assert problems(file, text) == [
        'FILE:4: access.allow: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got "10.0.0.0/33"',
        'FILE:6: access.allow: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got 7',
        'FILE:6: access.allow: must be a network; "10.1.0.0/8" is an address within "10.0.0.0/8"',
        "FILE:9: listen.host: must be a string, got 1",
    ]


def test_the_origin_of_an_item_in_a_flag_is_the_flag() -> None:
    """It has no lines."""
    assert problems(flags={"access.deny": "::/0,x,y"}) == [
        f'--access.deny: access.deny: must be a network, e.g. "10.0.0.0/8" or "2001:db8::/32"; got "{name}"'
        for name in "xy"
    ]


def test_a_problem_of_a_whole_list_has_the_line_of_its_key(file: Path) -> None:
    """No single item is invalid."""
    assert problems(file, "[listen]\nhost = [\n'::1',\n'0::1']") == [
        'FILE:2: listen.host: must name each address once, got "0::1" twice'
    ]


def test_an_invalid_value_that_is_overridden_is_refused_too(file: Path) -> None:
    """Otherwise it would appear on the day on which somebody starts without the flag."""
    assert problems(file, "[pool]\nsize = 0", {"pool.size": "5"}) == ["FILE:2: pool.size: must be at least 1, got 0"]
    assert problems(file, "[pool]\nsize = 0", {"pool.size": "-1"}, {"ECHOD_POOL__SIZE": "x"}) == [
        "--pool.size: pool.size: must be at least 1, got -1",
        'ECHOD_POOL__SIZE: pool.size: must be a whole number, e.g. 1024 or "64Ki", got "x"',
        "FILE:2: pool.size: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(("number", "more"), [(100, []), (101, ["and 1 more"]), (250, ["and 150 more"])])
def test_only_a_hundred_problems_of_a_layer_are_shown(file: Path, number: int, more: list[str]) -> None:
    """The file belongs to another program; the first lines show that."""
    text = "".join(f"x{index} = 1\n" for index in range(number))
    found = problems(file, text)
    assert [line.partition(": unknown")[0] for line in found[:100]] == [f"FILE:{i + 1}: x{i}" for i in range(100)]
    assert found[100:] == more


def test_the_limit_of_problems_is_for_each_layer(file: Path) -> None:
    """Each layer has its own hundred."""
    text = "".join(f"x{index} = 1\n" for index in range(101))
    networks = ",".join(["x"] * 102)
    found = problems(file, text, {"access.allow": networks, "pool.size": "0"}, {"ECHOD_POOL__SIZE": "0"})
    assert len(found) == 101 + 1 + 101
    assert [found[100], found[101], found[-1]] == [
        "and 3 more",
        "ECHOD_POOL__SIZE: pool.size: must be at least 1, got 0",
        "and 1 more",
    ]


def test_problems_come_in_the_order_flags_variables_file(file: Path) -> None:
    """Within the file from top to bottom, whatever the order of declaration."""
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


def test_a_flag_does_not_hide_a_section_that_is_not_a_table(file: Path) -> None:
    """Otherwise the mistake would appear only without the flag."""
    assert problems(file, "pool = 3", {"pool.size": "7"}) == ["FILE:1: pool: must be a table, got 3"]


@pytest.mark.parametrize("name", ["pool.size", "listen.host", "listen.reuse_port", "log.level", "timeouts.idle"])
def test_a_variable_that_is_not_utf_8_is_refused(name: str) -> None:
    """Python passes its bytes on as surrogates, which can't be written to any output."""
    setting = next(setting for setting in SETTINGS if setting.name == name)
    (line,) = problems(environ={setting.variable: "\udcff"})
    assert line.startswith(f"{setting.variable}: {name}: must be ")
    assert line.endswith(r'"\udcff"')


ALL_SECTIONS = "[listen], [tls], [udp], [pool], [timeouts], [access], [log], [admin]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[pol]", "FILE:1: pol: unknown section; did you mean [pool]?"),
        ("\n[listn.x]\na = 1", "FILE:2: listn: unknown section; did you mean [listen]?"),
        ("[[timeout]]", "FILE:1: timeout: unknown section; did you mean [timeouts]?"),
        ("pol.size = 1", "FILE:1: pol: unknown section; did you mean [pool]?"),
        ("[zzz]", f"FILE:1: zzz: unknown section; known: {ALL_SECTIONS}"),
        ("port = 7", "FILE:1: port: unknown key; did you mean listen.port or tls.port or udp.port?"),
        ("zzz = 7", f"FILE:1: zzz: unknown key; known: {ALL_SECTIONS}"),
        ("self = 7", f"FILE:1: self: unknown key; known: {ALL_SECTIONS}"),
        ("[pool]\nsise = 1", "FILE:2: pool.sise: unknown key; did you mean pool.size?"),
        ("[listen]\nhotp = 1", "FILE:2: listen.hotp: unknown key; did you mean listen.host?"),
        ("[admin]\nhotp = 1", "FILE:2: admin.hotp: unknown key; did you mean admin.http?"),
        ("[pool]\nport = 1", "FILE:2: pool.port: unknown key; did you mean listen.port or tls.port or udp.port?"),
        ("[pool]\nzzz = 1", "FILE:2: pool.zzz: unknown key; known: pool.size, pool.when_full"),
        ("[pool]\n[pool.sise]\nx = 1", "FILE:2: pool.sise: unknown key; did you mean pool.size?"),
        ("[POOL]", "FILE:1: POOL: unknown section; did you mean [pool]?"),
        ("[Pool]\nsize = 1", "FILE:1: Pool: unknown section; did you mean [pool]?"),
        ("PORT = 7", "FILE:1: PORT: unknown key; did you mean listen.port or tls.port or udp.port?"),
        ("[pool]\nSize = 1", "FILE:2: pool.Size: unknown key; did you mean pool.size?"),
        ("[pool]\nWHENFULL = 1", "FILE:2: pool.WHENFULL: unknown key; did you mean pool.when_full?"),
        ("[pool.zzz.x]", "FILE:1: pool.zzz: unknown key; known: pool.size, pool.when_full"),
        ('"a\\nb" = 1', f'FILE:1: "a\\nb": unknown key; known: {ALL_SECTIONS}'),
        ('[pool]\n"size.x" = 1', 'FILE:2: pool."size.x": unknown key; did you mean pool.size?'),
        ('"" = 1', f'FILE:1: "": unknown key; known: {ALL_SECTIONS}'),
    ],
)
def test_an_unknown_key_gives_a_hint(file: Path, text: str, line: str) -> None:
    """The nearest key of its section, else of any section, else all known ones."""
    assert problems(file, text) == [line]


# For a reload


def test_a_reload_reads_the_file_again(file: Path) -> None:
    """Also through a symbolic link."""
    link = file.with_name("link.toml")
    link.symlink_to(file)
    for size in (1, 2):
        file.write_text(f"[pool]\nsize = {size}")
        assert config.load(link, {}, {}, again=True).settings.pool.size == size
    assert config.load(None, {}, {}, again=True).file is None


def test_a_reload_refuses_a_file_that_can_be_read_only_once(file: Path) -> None:
    """A pipe would block the reload, or give the defaults."""
    os.mkfifo(file)
    for path in (Path("/dev/zero"), file):
        with pytest.raises(Refusal) as caught:
            config.load(path, {}, {}, again=True)
        assert caught.value.lines == (f"{path}: a reload needs a regular file, not a pipe or a device",)
        assert caught.value.exit_code == os.EX_NOINPUT
    assert config.load(Path("/dev/null"), {}, {}).settings == load().settings


def test_a_reload_refuses_a_missing_file(file: Path) -> None:
    """As at start."""
    with pytest.raises(Refusal, match="No such file or directory"):
        config.load(file, {}, {}, again=True)


def test_a_reload_refuses_a_file_that_stat_fails_for(file: Path) -> None:
    """With the same line as at start. A name that is too long stands for all errors of stat(2)."""
    path = file.with_name("x" * 300)
    with pytest.raises(Refusal, match="can't be read: File name too long"):
        config.load(path, {}, {}, again=False)
    with pytest.raises(Refusal, match="can't be read: File name too long"):
        config.load(path, {}, {}, again=True)
