"""The `echod` command, also as `python -m echod`.

Sets the signals before anything large is imported. The daemon's own handlers come a tenth of a second later, and what arrives
until then counts:

- TERM and INT end the process, with 0, as they do later. It serves nobody yet, so there is nothing to finish. As PID 1 it needs
  a handler for that: the kernel gives no signal to PID 1 that it has no handler for (pid_namespaces(7)).
- HUP stays blocked, and so pending, until the daemon takes it. It reloads once it serves: the file may have changed just after
  it was read.

Python itself takes some 20 ms before the first line here. Whoever starts echod as PID 1 and wants to lose nothing in them
either blocks these signals: `env --block-signal=TERM,INT,HUP echod run`.
"""

from __future__ import annotations

import os
import signal
import sys

_STOP = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:2] == ["run"]:
        _begin_daemon()
    else:  # Ctrl-C ends it without a traceback, and HUP does nothing
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)  # the entry point of the image has blocked them for `run`
    # Other daemons reopen their logs or stop at these. Ignored, so that a mistaken signal drops no connection.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.argv[1:2] in (["ping"], ["bench"]):
        from echod import probes  # noqa: PLC0415 - as below

        probes.main(sys.argv[1:])
    from echod import cli  # noqa: PLC0415 - takes tens of milliseconds

    cli.main()


def _begin_daemon() -> None:
    # TERM and INT only until both have a handler: between the two, Python's own for INT would write a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, *_STOP})
    for number in _STOP:
        # Not by an exception: in the midst of an import, Python may lose it.
        signal.signal(number, lambda *_: os._exit(os.EX_OK))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
    if os.getpid() == 1:
        _reap()
    try:
        with open("/proc/self/comm", "wb") as name:  # noqa: PTH123 - pathlib takes milliseconds that count here
            name.write(b"echod")  # otherwise it may be "python", and `pkill -x echod` misses it
    except OSError:  # no /proc
        pass


def _reap() -> None:
    """Leave no zombie of those that the kernel gives to PID 1 when their own parent ends. The daemon has no children."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them from now on
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended before
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
