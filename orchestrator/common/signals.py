"""The signals that stop a command."""

from __future__ import annotations

import signal


def stops() -> tuple[signal.Signals, ...]:
    """The numbers of SIGINT, SIGTERM, SIGUSR2 (a queue's warning) and SIGHUP, the end of the terminal.

    SIGHUP is not among them where it is ignored, as under nohup, and stays ignored.
    """
    always = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    return always if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*always, signal.SIGHUP)
