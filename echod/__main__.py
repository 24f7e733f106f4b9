"""The `echod` command, also as `python -m echod`.

Sets the signals before anything large is imported, so that none ends the process with a traceback meanwhile.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line and exit."""
    # Until the daemon installs its handlers, Ctrl-C ends the process without a traceback, and SIGHUP does nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Other daemons reopen their logs or stop at these. Ignored, so that a mistaken signal drops no connection.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    from echod import cli  # noqa: PLC0415 - takes tens of milliseconds

    cli.main()


if __name__ == "__main__":
    main()
