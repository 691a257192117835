"""How the programs begin, stop and end, and how one of them runs another.

The other one is a process of its own, so that what it holds of a GPU is free when it ends. It never outlives the
process that runs it.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar

from runs.errors import InputError
from runs.files import ROOT
from runs.log import begin_log

STOPPED = 143  # the exit code of what a signal stopped; the same command goes on
RUN_BY = "CNN_TLSTM_RUN_BY"  # set for a program that another one runs; the other one holds the end of its stdin
TENSORFLOW = {  # before it is imported, whichever program starts
    "TF_ENABLE_ONEDNN_OPTS": "1",  # off by default without AVX-512: half the speed
    "TF_CPP_MIN_LOG_LEVEL": "3",  # that there is no GPU is no error
}
REASONS = {signal.SIGTERM: "by SIGTERM", signal.SIGINT: "by Ctrl-C", signal.SIGALRM: "after MAX_HOURS"}

logger = logging.getLogger(__name__)


@dataclass
class _Stop:
    """Whether this process was asked to stop, and whether it first finishes what it is at."""

    reason: str = ""
    finishing: bool = False


_stop = _Stop()


def stop_on_signals(max_hours: float | None = None) -> None:
    """From now on SIGTERM, SIGINT and the end of `max_hours` raise KeyboardInterrupt, with the reason.

    Args:
        max_hours: wall clock from now on; None: no limit.
    """
    _stop.reason = ""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    if max_hours is not None:
        signal.signal(signal.SIGALRM, _on_signal)
        signal.setitimer(signal.ITIMER_REAL, 3600 * max_hours)
    if RUN_BY in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()


@contextmanager
def finishing_step() -> Iterator[None]:
    """Within this, a signal is only noted, for `asked`; a second one stops at once.

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


class HasMaxHours(Protocol):
    """Settings of a program; hours of wall clock after which it stops, None: no limit."""

    @property
    def MAX_HOURS(self) -> float | None:
        """Hours."""
        ...


Settings = TypeVar("Settings", bound=HasMaxHours)


def run_main(read_settings: Callable[[], Settings], work: Callable[[Settings], object]) -> int:
    """Run a program: read its settings, do its work, and turn what goes wrong into an exit code and one message.

    Args:
        read_settings: from the command line.
        work: what the program does with them.
    Returns:
        As `exit_code`.
    """

    def run() -> None:
        for name, value in TENSORFLOW.items():
            os.environ.setdefault(name, value)
        begin_log()
        settings = read_settings()
        stop_on_signals(settings.MAX_HOURS)
        work(settings)

    return exit_code(run)


def exit_code(run: Callable[[], object]) -> int:
    """Run something and print what went wrong as one message.

    Args:
        run: without arguments.
    Returns:
        0 done; 2 the user can mend it; 1 the environment failed; 143 stopped, and the same command goes on.
    """
    try:
        run()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped {_stop.reason}. The same command goes on from here.", file=sys.stderr)
        return STOPPED
    except _failures() as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        print(f"Failed: {why}. What is finished stays; mend this, and the same command goes on.", file=sys.stderr)
        return 1
    return 0


def exit_process(code: int) -> NoReturn:
    """End this process.

    After a write that failed it ends at once: HDF5 would try the write again as Python ends, and crash.

    Args:
        code: the exit code.
    """
    if code == 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_program(name: str, settings: Mapping[str, Any]) -> None:
    """Run a program with these settings and wait for it; its output goes to ours. If we are stopped, it is too.

    Args:
        name: such as `tlstm.py`.
        settings: values as JSON has them.
    Raises:
        SystemExit: it ended with another exit code than 0; ours is the same.
    """
    arguments = [f"--{setting}={_in_words(value)}" for setting, value in settings.items()]
    with subprocess.Popen(
        [sys.executable, str(ROOT / name), *arguments],
        stdin=subprocess.PIPE,  # closed when we end, however we end
        process_group=0,  # Ctrl-C reaches us alone, and we stop it: one signal, not two
        env=os.environ | {RUN_BY: str(os.getpid())},
    ) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code:
        logger.error("%s ended with exit code %d", name, code)
        raise SystemExit(code if code > 0 else STOPPED)


def _on_signal(number: int, _: Any) -> None:
    again = stop_requested()
    _stop.reason = REASONS[signal.Signals(number)]
    if again or not _stop.finishing:
        raise KeyboardInterrupt(_stop.reason)


def _end_with_parent() -> None:
    """End at once when the process that runs us has ended: no one would see to what we write."""
    os.read(0, 1)
    os._exit(STOPPED)


def _failures() -> tuple[type[BaseException], ...]:
    """The errors of the environment, with those of the libraries that are loaded."""
    found: list[type[BaseException]] = [OSError, MemoryError, BrokenExecutor]
    if tensorflow := sys.modules.get("tensorflow"):
        found.append(tensorflow.errors.OpError)
    if torch := sys.modules.get("torch"):
        found += [torch.OutOfMemoryError, torch.AcceleratorError]
    return tuple(found)


def _in_words(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return json.dumps(value) if isinstance(value, list) else str(value)
