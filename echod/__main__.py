"""The `echod` command, also as `python -m echod`.

Knows nothing but the signals that must not find the program unprepared, which is why little is imported before.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line and exit."""
    # Until the daemon listens for it, a Ctrl-C ends the process quietly, without a traceback, and HUP does nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # To other daemons these say to open their logs anew, or to stop. Who takes us for one of them ends no connection.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    from echod import cli  # noqa: PLC0415 - takes some hundredths of a second

    cli.main()


if __name__ == "__main__":
    main()
