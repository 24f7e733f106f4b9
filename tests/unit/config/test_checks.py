"""Values that are valid by themselves, and wrong on this machine or together."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from echod import limits
from echod.config import checks
from tests.support.certificates import pem_file
from tests.support.loading import load, problems


def test_an_unknown_variable_gives_a_warning() -> None:
    """Not an error: another version may know it."""
    environ = {
        "ECHOD_ZZZ": "1",
        "ECHOD_POOL_SIZE": "1",
        "ECHOD_POOL__SIZE": "1",
        "ECHOD_CONFIG": "/x",
        "ECHOD_INSTANCE": "1",
        "echod_pool__size": "1",
        "PATH": "/bin",
    }
    assert list(checks.unknown_variables(environ)) == [
        "ECHOD_POOL_SIZE: unknown variable, ignored; did you mean ECHOD_POOL__SIZE?",
        "ECHOD_ZZZ: unknown variable, ignored",
    ]
    del environ["ECHOD_CONFIG"]
    loaded = load(environ=environ)
    assert loaded.warnings == list(checks.unknown_variables(environ))
    assert loaded.settings == load(environ={"ECHOD_POOL__SIZE": "1"}).settings


def test_a_variable_in_lower_case_gives_a_hint() -> None:
    """Names of variables are case-sensitive; the search for the nearest is not."""
    assert list(checks.unknown_variables({"ECHOD_pool__size": "1"})) == [
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
def test_a_backlog_above_the_kernels_cap_gives_a_warning(
    monkeypatch: pytest.MonkeyPatch, file: Path, most: float, text: str, *, warned: bool
) -> None:
    """But not the default, which nobody has set."""
    monkeypatch.setattr(checks, "_somaxconn", lambda: most)
    loaded = load(file, f"[listen]\n{text}")
    assert loaded.warnings == [
        f"{file}:2: listen.backlog: the kernel caps {loaded.settings.listen.backlog} at {most} (net.core.somaxconn)"
    ] * int(warned)


def test_the_kernels_cap_is_read_from_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where it can't be read, as in a sandbox, there is no cap."""
    assert checks._somaxconn() == int(Path("/proc/sys/net/core/somaxconn").read_text())
    monkeypatch.setattr(checks, "_SOMAXCONN", tmp_path / "missing")
    assert checks._somaxconn() == float("inf")
    (tmp_path / "missing").write_text("unlimited\n")
    assert checks._somaxconn() == float("inf")


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
def test_a_write_timeout_above_the_idle_timeout_gives_a_warning(file: Path, text: str, warning: str | None) -> None:
    """It never applies. The default gives none: nobody has set it."""
    assert load(file, f"[timeouts]\n{text}").warnings == ([f"{file}:{warning}"] if warning else [])


def test_an_allowed_network_that_is_denied_gives_a_warning(file: Path) -> None:
    """With its own line in the file; a network that is denied in part gives none."""
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
def test_a_pool_above_the_hard_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch, file: Path, text: str, size: int, where: str
) -> None:
    """At start, with both numbers, and not when the descriptors have run out."""
    monkeypatch.setattr(limits, "hard_limit", lambda: 1000)
    assert problems(file, text) == [
        (
            f"{where}: pool.size: {size} workers need {size + limits.RESERVE} file descriptors, the hard limit is 1000:"
            " raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        )
    ]


def test_behind_proxies_a_pool_needs_more_descriptors(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """As many connections as there are workers may wait for their header."""
    monkeypatch.setattr(limits, "hard_limit", lambda: 1000)
    text = "[access]\nproxies = '10.0.0.0/8'\n[pool]\nsize = "
    size = (1000 - limits.RESERVE) // 2
    assert load(file, f"{text}{size}").settings.pool.size == size
    assert problems(file, f"{text}{size + 1}") == [
        (
            f"FILE:4: pool.size: {size + 1} workers, and as many connections without a PROXY header, need 1002 file"
            " descriptors, the hard limit is 1000: raise it (LimitNOFILE=, ulimit -Hn) or make the pool smaller"
        )
    ]


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("deny = ['0.0.0.0/0', '::/0']", "every address", 2),
        ("deny = ['0.0.0.0/1', '128.0.0.0/1', '::/1', '8000::/1']", "every address", 2),
        ("deny = ['::ffff:0:0/96', '::/0']", "every address", 2),
        ("allow = '10.1.0.0/16'\ndeny = '10.0.0.0/8'", "all of access.allow", 3),
        ("allow = ['10.1.0.0/16', '::1']\ndeny = ['10.0.0.0/8', '::/0']", "all of access.allow", 3),
        ("deny = '0.0.0.0/0'\nallow = '0.0.0.0/0'", "all of access.allow", 2),
    ],
)
def test_a_configuration_that_denies_everyone_is_refused(file: Path, text: str, what: str, line: int) -> None:
    """A daemon that nobody can connect to is a mistake."""
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
        "allow = '2001:db8::/32'\nproxies = '127.0.0.1'\n[listen]\nhost = '127.0.0.1'",  # of clients behind the proxy
    ],
)
def test_a_configuration_that_denies_one_version_of_ip_is_valid(file: Path, text: str) -> None:
    """The other one is served."""
    assert load(file, f"[access]\n{text}").warnings == []


def test_an_interface_that_does_not_exist_is_a_warning(file: Path) -> None:
    """With the line of its address: it may come later, but its name may be mistyped."""
    text = "[listen]\nhost = [\n'::1',\n'fe80::1%lo',\n'fe80::1%nope0',\n'fe80::2%nope1']"
    assert load(file, text).warnings == [
        f'{file}:5: listen.host: this machine has no interface "nope0"',
        f'{file}:6: listen.host: this machine has no interface "nope1"',
    ]
    assert load(file, text, {"listen.host": "fe80::1%lo,fe80::1%1"}).settings.listen.host[1] == "fe80::1%1"


@pytest.mark.parametrize("number", ["0", "99999999", "99999999999999"])
def test_the_number_of_an_interface_that_does_not_exist_is_refused(number: str) -> None:
    """An interface has a name and a number, and nobody knows which one will get a number."""
    assert problems(flags={"listen.host": f"fe80::1%{number}"})


@pytest.mark.parametrize(
    ("host", "access", "line"),
    [
        (
            "127.0.0.1",
            "allow = ['::/0']",
            "FILE:4: access.allow: has no IPv4 network, and listen.host no other address",
        ),
        (
            "::1",
            "allow = ['10.0.0.0/8']",
            "FILE:4: access.allow: has no IPv6 network, and listen.host no other address",
        ),
        ("::1", "deny = ['::/0']", "FILE:4: access.deny: covers every address"),
        (
            "::1",
            "allow = ['10.0.0.0/8', '::1']\ndeny = '::/64'",
            "FILE:5: access.deny: covers all of access.allow",
        ),
    ],
)
def test_rules_that_deny_every_client_of_the_listeners_are_refused(
    file: Path, host: str, access: str, line: str
) -> None:
    """A network of the other version of IP admits nobody; with listeners of both versions, it does."""
    assert problems(file, f"[listen]\nhost = '{host}'\n[access]\n{access}") == [f"{line}: nobody could connect"]
    load(file, f"[listen]\nhost = ['127.0.0.1', '::1']\n[access]\n{access}")


@pytest.mark.parametrize(
    ("host", "http", "on"),
    [
        ("'*'", "127.0.0.1", "*"),
        ("'127.0.0.1'", "127.0.0.1", "127.0.0.1"),
        ("['::1', '0.0.0.0']", "127.0.0.1", "0.0.0.0"),  # noqa: S104 - is refused
        ("'::1'", "[::]", "::1"),
        ("'::1'", "*", "::1"),
        ("'*'", "*", "*"),
    ],
)
def test_admin_http_on_the_port_of_a_listener_is_refused(file: Path, host: str, http: str, on: str) -> None:
    """If the addresses overlap."""
    text = f"[listen]\nhost = {host}\n[admin]\nhttp = '{http}:7007'"
    line = f"FILE:4: admin.http: port 7007 is also listen.port, on {on}: change one of them"
    assert problems(file, text) == [line]


@pytest.mark.parametrize(
    ("host", "http"),
    [("'*'", "127.0.0.1:7008"), ("['127.0.0.2', '::1']", "127.0.0.1:7007"), ("'127.0.0.1'", "[::]:7007")],
)
def test_addresses_that_do_not_overlap_may_share_a_port(file: Path, host: str, http: str) -> None:
    """And any addresses may have different ports."""
    load(file, f"[listen]\nhost = {host}\n[admin]\nhttp = '{http}'")


def test_all_problems_are_reported_at_once(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Warnings come only with a valid configuration."""
    monkeypatch.setattr(limits, "hard_limit", lambda: 1000)
    text = "[access]\ndeny = ['0.0.0.0/0', '::/0']\n[pool]\nsize = 5000\n[listen]\nhost = 'fe80::1%99999999'"
    assert [line.partition(":")[0] for line in problems(file, text)] == ["FILE"] * 3
    assert [line.split(": ")[1] for line in problems(file, text)] == ["pool.size", "listen.host", "access.deny"]


@pytest.mark.parametrize("hard", [1000, None])
def test_a_pool_may_need_exactly_the_hard_limit(monkeypatch: pytest.MonkeyPatch, file: Path, hard: int | None) -> None:
    """The reserve is part of what a pool needs; there may be no limit."""
    monkeypatch.setattr(limits, "hard_limit", lambda: hard)
    size = 1000 - limits.RESERVE
    assert load(file, f"[pool]\nsize = {size}").settings.pool.size == size


# What a reload lets in


def widened(before: dict[str, str], after: dict[str, str], *, binds: bool = True) -> list[str]:
    """Return the warnings, without the part that all of them have in common."""
    loaded = load(flags=after)
    lines = list(checks.widened(load(flags=before).settings, loaded.settings, loaded.layers, binds=binds))
    assert all(": lets in more clients than before: " in line for line in lines)
    return [line.replace(": lets in more clients than before", "") for line in lines]


@pytest.mark.parametrize(
    ("name", "before", "after", "warning"),
    [
        ("access.allow", "10.0.0.0/8", "[]", 'everyone, not only "10.0.0.0/8"'),
        ("access.allow", "10.0.0.0/8", "10.0.0.0/7", 'also "10.0.0.0/7"'),
        ("access.allow", "10.0.0.0/8,::1", "10.1.0.0/16,::1", ""),
        ("access.allow", "10.0.0.0/9,10.128.0.0/9", "10.0.0.0/8", ""),
        ("access.allow", "[]", "10.0.0.0/8", ""),
        ("access.allow", "::1", "::1,::2,::3,::4,::5,::6", 'also "::2/128", "::3/128", "::4/128" and 2 more'),
        ("access.deny", "10.0.0.0/8,::1", "::1", 'no longer denies "10.0.0.0/8"'),
        ("access.deny", "10.0.0.0/8", "10.0.0.0/9", 'no longer denies "10.0.0.0/8"'),
        ("access.deny", "10.0.0.0/9", "10.0.0.0/8", ""),
        ("access.per_source", "4", "0", "no limit for one source, it was 4"),
        ("access.per_source", "4", "5", ""),
        ("access.accept_rate", "30/m", "off", 'no limit, it was "30/m"'),
        ("access.accept_rate", "off", "30/m", ""),
        ("access.proxies", "[]", "10.0.0.1", '"10.0.0.1/32" may name any client'),
        ("access.proxies", "10.0.0.1", "[]", '"10.0.0.1/32" may connect without a PROXY header'),
        ("access.proxies", "10.0.0.0/9,10.128.0.0/9", "10.0.0.0/8", ""),
        ("listen.host", "127.0.0.1", "*", 'also listens on "*"'),
        ("listen.host", "192.0.2.1", "0.0.0.0", 'also listens on "0.0.0.0"'),  # noqa: S104 - as below: nothing is bound
        ("listen.host", "127.0.0.1", "127.0.0.1,::1", ""),
        ("listen.host", "192.0.2.1", "192.0.2.1,2001:db8::1", 'also listens on "2001:db8::1"'),
        ("listen.host", "0.0.0.0", "192.0.2.1", ""),  # noqa: S104
        ("listen.host", "0.0.0.0", "2001:db8::1", 'also listens on "2001:db8::1"'),  # noqa: S104
        ("listen.host", "*", "0.0.0.0", ""),  # noqa: S104
        ("udp.port", "off", "7", "also answers UDP"),
        ("udp.port", "7", "8", ""),
        ("udp.port", "7", "off", ""),
        ("udp.rate", "100/s", "off", ""),
        ("listen.unix", "off", "/run/e.sock", 'also listens on "unix:/run/e.sock"'),
        ("listen.unix", "/run/e.sock", "@name", 'also listens on "unix:@name"'),
        ("listen.unix", "/run/e.sock", "/run/e.sock", ""),
        ("listen.unix", "/run/e.sock", "off", ""),
        ("listen.unix_mode", "0600", "0666", ""),
    ],
)
def test_a_reload_that_lets_in_more_clients_is_warned_about(name: str, before: str, after: str, warning: str) -> None:
    """A number that only grows is not one of these; nor is an address that only this machine can reach."""
    expected = [f"--{name}: {name}: {warning}"] if warning else []
    assert widened({name: before}, {name: after}) == expected


@pytest.mark.parametrize(
    ("path", "before", "after", "warning"),
    [
        ("/run/e.sock", "0600", "0660", "mode 0660, it was 0600"),
        ("/run/e.sock", "0660", "0662", "mode 0662, it was 0660"),
        ("/run/e.sock", "0660", "0600", ""),
        ("/run/e.sock", "0660", "0775", ""),
        ("@name", "0600", "0666", ""),
    ],
)
def test_a_mode_that_lets_in_more_users_is_warned_about(path: str, before: str, after: str, warning: str) -> None:
    """Who may write to the file may connect (unix(7)); an abstract socket has no file."""
    old, new = ({"listen.unix": path, "listen.unix_mode": mode} for mode in (before, after))
    assert widened(old, new) == ([f"--listen.unix_mode: listen.unix_mode: {warning}"] if warning else [])
    assert widened(old, new, binds=False) == []


@pytest.mark.parametrize("name", ["udp.rate", "udp.total_rate"])
def test_a_rate_of_udp_that_is_turned_off_is_warned_about(name: str) -> None:
    """If there is UDP."""
    before, after = ({"udp.port": "7", name: rate} for rate in ("30/m", "off"))
    assert widened(before, after) == [f'--{name}: {name}: no limit, it was "30/m"']
    assert widened(before, after, binds=False) == [f'--{name}: {name}: no limit, it was "30/m"']
    assert widened(after, before) == []


def test_udp_without_a_rate_is_a_mistake(file: Path) -> None:
    """Nothing would end a loop of two echo servers."""
    text = "[udp]\nrate = 'off'\n"
    assert load(file, text).warnings == []
    assert load(file, f"{text}port = 7").warnings == [
        f"{file}:2: udp.rate: two echo servers that one forged datagram points at each other would go on for ever"
    ]


def test_a_mode_of_an_abstract_socket_is_a_mistake(file: Path) -> None:
    """Any process may connect to it."""
    text = "[listen]\nunix = '@name'\n"
    assert load(file, text).warnings == []
    assert load(file, f"{text}unix_mode = '0600'").warnings == [
        f"{file}:3: listen.unix_mode: has no effect, an abstract socket has no file: every user may connect"
    ]


def test_with_a_unix_socket_every_address_may_be_denied(file: Path) -> None:
    """Its clients have none."""
    assert load(file, "[access]\ndeny = ['::/0', '0.0.0.0/0']\n[listen]\nunix = '/run/e.sock'").warnings == []


def test_hosts_do_not_count_if_none_is_bound() -> None:
    """Sockets from systemd replace them."""
    assert widened({"listen.unix": "off"}, {"listen.unix": "/run/e.sock"}, binds=False) == []
    assert widened({"udp.port": "off"}, {"udp.port": "7"}, binds=False) == []
    assert widened({"listen.host": "127.0.0.1"}, {"listen.host": "*"}, binds=False) == []


# The memory limit of the control group


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a control group, of which this process is a member."""
    own = tmp_path / "groups" / "system.slice" / "echod.service"
    own.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("1:name=x:/elsewhere\n0::/system.slice/echod.service\n")
    monkeypatch.setattr(checks, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(checks, "_CGROUPS", tmp_path / "groups")
    return own


@pytest.mark.parametrize(
    ("limits", "warns"), [(("max", "max"), 0), (("200000000", "max"), 1), (("max", "200000000"), 1)]
)
def test_a_pool_that_can_take_more_memory_than_there_is_gets_a_warning(
    file: Path, groups: Path, limits: tuple[str, str], warns: int
) -> None:
    """The limit may be that of a group further up."""
    for folder, limit in zip((groups, groups.parent), limits, strict=True):
        (folder / "memory.max").write_text(f"{limit}\n")
    text = "[pool]\nsize = 1000\n"
    loaded = load(file, text)
    line = (
        f"{file}:2: pool.size: if no client reads its echo, 1000 connections take 271 MB, the memory limit of this control"
        " group is 200 MB: make the pool or listen.receive_buffer smaller"
    )
    assert loaded.warnings == [line][:warns]
    assert load(file, text + "[listen]\nreceive_buffer = '64Ki'\n").warnings == []


@pytest.mark.parametrize(
    ("more", "needed"),
    [("", 74), ("unix = '/run/e.sock'\n", 271)],
    ids=["tcp", "unix"],
)
def test_the_receive_buffer_bounds_no_unix_socket(file: Path, groups: Path, more: str, needed: int) -> None:
    """Of those, the buffer of the sender counts."""
    (groups / "memory.max").write_text("70000000\n")
    (line,) = load(file, f"[pool]\nsize = 1000\n[listen]\nreceive_buffer = '32Ki'\n{more}").warnings
    assert f" take {needed} MB" in line


def test_a_connection_with_tls_takes_more_memory(file: Path, groups: Path) -> None:
    """Any of them may be one."""
    (groups / "memory.max").write_text("200000000\n")
    text = "[pool]\nsize = 1000\n[listen]\nreceive_buffer = '80Ki'\n"
    assert load(file, text).warnings == []
    (line,) = load(file, f"{text}[tls]\nport = 7443\ncertificate = '{pem_file()}'\n").warnings
    assert "1000 connections take 211 MB" in line


def test_without_control_groups_there_is_no_memory_limit(
    tmp_path: Path, groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have none, or those of version 1."""
    assert checks._memory_limit() == math.inf
    (tmp_path / "cgroup").write_text("1:memory:/x\n")
    assert checks._memory_limit() == math.inf
    monkeypatch.setattr(checks, "_CGROUP", tmp_path / "missing")
    assert checks._memory_limit() == math.inf
    assert groups.is_dir()
