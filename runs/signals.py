"""What a signal does to a program: it ends with exit code 143 and one message, at whichever moment signals come.

A program calls `end_on_signals` before its slow imports, so this module imports nothing slow.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

STOPPED = 143  # the exit code of what a signal stopped; the same command goes on
RUN_BY = "CNN_TLSTM_RUN_BY"  # set for a program that another one runs; the other one holds the end of its stdin
GRACE = 2.0  # seconds that a stopped program has to end by itself: a second signal in a hurry ends it no sooner
REASONS = {signal.SIGTERM: "by SIGTERM", signal.SIGINT: "by Ctrl-C", signal.SIGALRM: "after MAX_HOURS"}


@dataclass
class _Stop:
    """Whether this process was asked to stop, and what the next signal does."""

    reason: str = ""  # of the last signal
    finishing: bool = False  # a step is finished first
    raised: float | None = None  # when KeyboardInterrupt was raised; GRACE later, a signal ends the process at once
    code: int | None = None  # the exit code, once the work has ended
    watching: bool = False  # a thread ends this process with the one that runs it
    handlers: dict[signal.Signals, Any] = field(default_factory=dict)  # before `stop_on_signals`


_stop = _Stop()


def end_on_signals() -> None:
    """From now on SIGTERM and SIGINT end this process at once, with their message; nothing is begun yet."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)
    atexit.register(_ignore_signals)  # first of all, so it is called last
    _watch_parent()


def stop_on_signals(max_hours: float | None = None) -> None:
    """From now on SIGTERM, SIGINT and the end of `max_hours` raise KeyboardInterrupt, with the reason.

    It is raised once. If the process has not ended GRACE seconds later, the next signal ends it at once.

    Args:
        max_hours: wall clock from now on; None: no limit.
    """
    _stop.reason, _stop.raised, _stop.code = "", None, None
    for number in (signal.SIGTERM, signal.SIGINT):
        _stop.handlers[number] = signal.signal(number, _on_signal)
    if max_hours is not None:
        _stop.handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, _on_signal)
        signal.setitimer(signal.ITIMER_REAL, 3600 * max_hours)
    _watch_parent()


def end_work(code: int) -> None:
    """Note that the work has ended: a signal no longer changes the exit code.

    Args:
        code: the exit code.
    """
    _stop.code = code
    if signal.SIGALRM in _stop.handlers:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in list(_stop.handlers):
        signal.signal(number, _stop.handlers.pop(number))


@contextmanager
def finishing_step() -> Iterator[None]:
    """Within this, a signal is only noted, for `stop_requested`; a second one stops at once.

    Raises:
        KeyboardInterrupt: on leaving, if a signal was noted that nobody acted on.
    """
    _stop.finishing = True
    try:
        yield
    finally:
        _stop.finishing = False
    if stop_requested():
        raise KeyboardInterrupt(_stop.reason)


def stop_requested() -> bool:
    """Whether a signal has asked this process to stop."""
    return bool(_stop.reason)


def was_interrupted() -> bool:
    """Whether a signal has raised KeyboardInterrupt, of which a library may have made another error."""
    return _stop.raised is not None


def stop_message() -> str:
    """What a stopped program says."""
    reason = f" {_stop.reason}" if _stop.reason else ""
    return f"Stopped{reason}. The same command goes on from here."


def _on_signal(number: int, _: Any) -> None:
    again = stop_requested()
    _stop.reason = REASONS[signal.Signals(number)]
    if _stop.raised is not None:
        if time.monotonic() - _stop.raised > GRACE:
            _end_at_once(number, _)
    elif again or not _stop.finishing:
        _stop.raised = time.monotonic()
        raise KeyboardInterrupt(_stop.reason)


def _end_at_once(number: int, _: Any) -> None:
    """End this process with the exit code of its work, or else with the message of a stopped one."""
    with suppress(Exception):  # the signal may have come within a write of the same stream
        sys.stdout.flush()
    if _stop.code is None:
        _stop.reason = REASONS[signal.Signals(number)]
        if RUN_BY not in os.environ:  # else the program that runs this one says so
            os.write(2, f"{stop_message()}\n".encode())
    os._exit(STOPPED if _stop.code is None else _stop.code)


def _ignore_signals() -> None:
    """Python is about to give signals back their default, which would be another exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _watch_parent() -> None:
    """From now on end with the process that runs us, if one does."""
    if RUN_BY in os.environ and not _stop.watching:
        _stop.watching = True
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End at once when the process that runs us has ended: no one would see to what we write."""
    os.read(0, 1)
    os._exit(STOPPED)
