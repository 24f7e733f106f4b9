"""echod@.service, for one of several processes on one port, made from echod.service.

The two units differ in the comment at their top and in the lines below. Each of these lines has to be in echod.service
exactly once: after an edit there, a difference cannot get lost unnoticed.
"""

from __future__ import annotations

_HEAD = """\
# One of several echod processes on one port, one per core. To use them in place of echod.service:
#
#   systemctl disable --now echod && systemctl enable --now echod@1 echod@2
#
# To restart them without refusing a client: echod-restart, and not `systemctl restart 'echod@*'`, which stops all at once.
# They share the configuration. Each has its own pool, its own admin socket (/run/echod/1/) and its own log in the journal.
# A setting that cannot be shared goes to /etc/echod/N.env, as a variable. For example, to let Prometheus scrape both,
# leave admin.http "off" in echod.toml, and write:
#
#   /etc/echod/1.env    ECHOD_ADMIN__HTTP=127.0.0.1:9107
#   /etc/echod/2.env    ECHOD_ADMIN__HTTP=127.0.0.1:9108
#
# This file is made from echod.service, which explains what systemd-analyze security reports.

"""

_CHANGED = {
    "Description=Echo daemon (RFC 862)": "Description=Echo daemon (RFC 862), instance %i",
    "ExecStart=/usr/bin/echod run": "ExecStart=/usr/bin/echod run --listen.reuse_port true",
    "RuntimeDirectory=echod": "RuntimeDirectory=echod/%i",
}

_ADDED = {
    "After=network.target": """\
# echod.service and echod.socket bind the port without reuse_port, so no other process can share it. And systemd removes
# /run/echod, with all that is below, when echod.service stops.
Conflicts=echod.service echod.socket
After=echod.service echod.socket""",
    "NotifyAccess=main": """\
# Each line of the log has the field "instance".
Environment=ECHOD_INSTANCE=%i
# Variables for this instance only, see above. "-": the file may be missing.
EnvironmentFile=-/etc/echod/%i.env""",
}
"""What follows a line that stays."""


def instance(service: str) -> str:
    """Return the template unit for an instance; ValueError if echod.service has a line of the differences not once."""
    lines = service[service.index("[Unit]\n") :].splitlines()
    for line in (*_CHANGED, *_ADDED):
        if lines.count(line) != 1:
            raise ValueError(
                f"echod.service has the line {line!r} {lines.count(line)} times; see packaging/generate/units.py"
            )
    made = []
    for line in lines:
        made.append(_CHANGED.get(line, line))
        if line in _ADDED:
            made.append(_ADDED[line])
    return _HEAD + "\n".join(made) + "\n"
