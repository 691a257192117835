"""How the programs begin, stop and end, and how one of them runs another.

The other one is a process of its own, so that what it holds of a GPU is free when it ends. It never outlives the
process that runs it.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor
from typing import Any, NoReturn, Protocol, TypeVar

from runs.errors import InputError
from runs.files import ROOT
from runs.log import LOG_OF_RUNNER, begin_log, log_path, write_to_file
from runs.signals import RUN_BY, STOPPED, end_work, stop_message, stop_on_signals, was_interrupted

TENSORFLOW = {  # before it is imported, whichever program starts
    "TF_ENABLE_ONEDNN_OPTS": "1",  # off by default without AVX-512: half the speed
    "TF_CPP_MIN_LOG_LEVEL": "3",  # that there is no GPU is no error
}

logger = logging.getLogger(__name__)


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
        end_work(code := _run_and_report(run))
    except KeyboardInterrupt:  # a signal, while something else was reported
        end_work(code := _report_stop())
    return code


def _run_and_report(run: Callable[[], object]) -> int:
    """Run something and report what went wrong; returns the exit code."""
    try:
        run()
    except KeyboardInterrupt:
        return _report_stop()
    except InputError as error:
        return _report_stop() if was_interrupted() else _report(str(error), 2)
    except SystemExit as end:
        if end.code != STOPPED:
            raise
        return _report_stop()
    except _failures() as error:
        if was_interrupted():  # what a library has made of the KeyboardInterrupt
            return _report_stop()
        why = (str(error) or type(error).__name__).splitlines()[0]
        return _report(f"Failed: {why}. What is finished stays; mend this, and the same command goes on.", 1)
    return 0


def _report(message: str, code: int) -> int:
    """Say on the screen and in the log's file, if it is begun, how the program ends; returns the exit code."""
    print(message, file=sys.stderr, flush=True)
    write_to_file(message, logging.INFO if code == STOPPED else logging.ERROR)
    return code


def _report_stop() -> int:
    """The same of a program that was stopped; one that another program runs leaves the words to that one."""
    if RUN_BY not in os.environ:
        _report(stop_message(), STOPPED)
    return STOPPED


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
        env=os.environ | {RUN_BY: str(os.getpid())} | ({LOG_OF_RUNNER: log} if (log := log_path()) else {}),
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
