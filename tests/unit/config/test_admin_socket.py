"""The path of the admin socket, for the daemon and for the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from echod.config import admin_socket
from echod.config import load as config
from echod.errors import Refusal

SYSTEM = Path("/run/echod/admin.sock")
RUNTIME, XDG = Path("/run/echod@7"), Path("/run/user/1000")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "echod.toml"


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({"RUNTIME_DIRECTORY": str(RUNTIME), "XDG_RUNTIME_DIR": str(XDG)}, RUNTIME / "admin.sock"),
        ({"RUNTIME_DIRECTORY": f"{RUNTIME}:/run/other"}, RUNTIME / "admin.sock"),
        ({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": str(XDG)}, XDG / "echod" / "admin.sock"),
        ({"XDG_RUNTIME_DIR": ""}, None),
        ({}, None),
    ],
    ids=["service", "service with two directories", "session", "an empty name", "neither"],
)
def test_auto_is_in_the_runtime_directory(environ: dict[str, str], where: Path | None) -> None:
    """That of the service, else that of the user; without either, there is no socket."""
    assert admin_socket.of_daemon("auto", environ) == where


def test_a_path_is_used_as_it_is() -> None:
    """Whatever the environment; "off" means no socket."""
    environ = {"RUNTIME_DIRECTORY": str(RUNTIME), "XDG_RUNTIME_DIR": str(XDG)}
    assert admin_socket.of_daemon("/a/b.sock", environ) == Path("/a/b.sock")
    assert admin_socket.of_daemon("off", environ) is None


# Where the commands look


def paths(setting: str, environ: dict[str, str]) -> list[Path]:
    """Return the paths that a command tries if a flag has this value."""
    found, trouble, _ = admin_socket.candidates(None, {"admin.socket": setting}, environ)
    assert trouble is None
    return found


def test_a_command_tries_only_the_path_that_is_set() -> None:
    """Whatever the environment; with "off" there is none."""
    environ = {"RUNTIME_DIRECTORY": str(RUNTIME), "XDG_RUNTIME_DIR": str(XDG)}
    assert paths("/a/b.sock", environ) == [Path("/a/b.sock")]
    assert paths("off", environ) == []


def test_with_auto_a_command_tries_the_users_socket_then_the_systems() -> None:
    """Each once."""
    assert paths("auto", {"XDG_RUNTIME_DIR": str(XDG)}) == [XDG / "echod" / "admin.sock", SYSTEM]
    assert paths("auto", {"RUNTIME_DIRECTORY": "/run/echod"}) == [SYSTEM]
    assert paths("auto", {}) == [SYSTEM]


def test_a_command_also_tries_auto_if_the_default_file_has_changed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon may have started with another file. With -c, the daemon of that file is meant."""
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    file.write_text("[admin]\nsocket = '/file.sock'")
    assert admin_socket.candidates(None, {}, {}).paths == [Path("/file.sock"), SYSTEM]
    assert admin_socket.candidates(file, {}, {}).paths == [Path("/file.sock")]
    file.write_text(f"[admin]\nsocket = '{SYSTEM}'")
    assert admin_socket.candidates(None, {}, {}).paths == [SYSTEM]
    file.write_text("[admin]\nsocket = 'off'")
    runtime = {"RUNTIME_DIRECTORY": str(RUNTIME)}
    assert admin_socket.candidates(None, {}, runtime).paths == [RUNTIME / "admin.sock", SYSTEM]
    assert admin_socket.candidates(file, {}, runtime).paths == []


def path_by(file: Path, text: str, flags: dict[str, str] | None = None, environ: dict[str, str] | None = None) -> Path:
    """Return the only path, given this file, these flags and variables."""
    file.write_text(text)
    found, trouble, _ = admin_socket.candidates(file, flags or {}, environ or {})
    assert trouble is None
    (path,) = found
    return path


def test_the_path_has_the_precedence_of_every_setting(file: Path) -> None:
    """Flag, variable, file, default."""
    text = "[admin]\nsocket = '/file.sock'"
    variable, flag = {"ECHOD_ADMIN__SOCKET": "/variable.sock"}, {"admin.socket": "/flag.sock"}
    assert path_by(file, text, flag, variable) == Path("/flag.sock")
    assert path_by(file, text, {}, variable) == Path("/variable.sock")
    assert path_by(file, text) == Path("/file.sock")
    assert path_by(file, "[admin]\nhttp = '127.0.0.1:9107'") == SYSTEM
    assert path_by(file, "") == SYSTEM


def test_the_path_is_found_although_other_settings_are_invalid(file: Path) -> None:
    """The daemon may run with the values that it started with."""
    text = "[pool]\nsize = 0\nsise = 1\n[admin]\nsocket = '/file.sock'\nnonsense = 1\nhttp = 'x'"
    assert path_by(file, text, {"listen.port": "x"}) == Path("/file.sock")
    assert path_by(file, "admin = 7") == SYSTEM


def test_only_the_path_is_validated(file: Path) -> None:
    """A command reports no problem of another setting."""
    file.write_text("[pool]\nsize = 0\n[admin]\nsocket = 'a.sock'")
    with pytest.raises(Refusal) as caught:
        admin_socket.candidates(file, {}, {})
    (line,) = caught.value.lines
    assert line.startswith(f"{file}:4: admin.socket: must be ")


def test_without_a_readable_file_the_default_path_is_tried(file: Path) -> None:
    """The refusal is kept for the case that no daemon answers. With a flag, the file does not matter."""
    file.write_text("nonsense")
    for _ in ("no TOML", "not there"):
        found, trouble, _ = admin_socket.candidates(file, {}, {})
        assert found == [SYSTEM]
        assert trouble
        assert str(file) in trouble.lines[0]
        file.unlink(missing_ok=True)
    assert admin_socket.candidates(file, {"admin.socket": "/a.sock"}, {}) == ([Path("/a.sock")], None, ())


# Instances


def test_with_auto_instances_are_looked_for_beside_the_sockets(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the user and of the system; also if the default file names a path now."""
    user = {"XDG_RUNTIME_DIR": str(XDG)}
    directories = [XDG / "echod", SYSTEM.parent]
    assert admin_socket.candidates(None, {}, {}).directories == [SYSTEM.parent]
    assert admin_socket.candidates(None, {}, user).directories == directories == admin_socket.directories(user)
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    file.write_text("[admin]\nsocket = '/file.sock'")
    assert admin_socket.candidates(None, {}, user).directories == directories


def test_a_command_that_means_one_daemon_looks_for_no_instance(file: Path) -> None:
    """One whose path is set, or the service inside which it runs, as `ExecReload=` does."""
    file.write_text("[admin]\nsocket = '/file.sock'")
    assert admin_socket.candidates(file, {}, {}).directories == ()
    assert admin_socket.candidates(None, {"admin.socket": "off"}, {}).directories == ()
    assert admin_socket.candidates(None, {}, {"RUNTIME_DIRECTORY": "/run/echod/1"}).directories == ()


def test_instances_are_the_directories_below(tmp_path: Path) -> None:
    """Whether anybody listens there or not; those with numbers come first, in their order. A name can be shown on a terminal."""
    for name in ("blue", "10", "9", "1", "\x1b[2J"):
        (tmp_path / name).mkdir()
    (tmp_path / "admin.sock").touch()
    found = admin_socket.instances(tmp_path)
    assert list(found.items()) == [(name, tmp_path / name / "admin.sock") for name in ("1", "9", "10", "blue")]
    assert admin_socket.instances(tmp_path / "none") == {}
