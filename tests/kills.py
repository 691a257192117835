"""Runs that are killed (SIGKILL), at chosen moments and inside writes, and gone on with by the same command."""

import time

from programs import none_outlives, run, stages_done, start, temporaries

POLL = 0.002  # seconds between two looks at the folder


def kill_at(folder, arguments, moment):
    """Start a run and kill it.

    Args:
        folder: of the run.
        arguments: of the run.
        moment: of the seconds since the start and the temporaries that there are now, whether it is now.
    Returns:
        Whether it was killed before its end, the stages that were done then, and the temporaries that it has left.
    """
    old, began = set(temporaries(folder)), time.monotonic()
    process = start(*arguments, f"--OUTPUT_DIR={folder}")
    with none_outlives(process):
        while process.poll() is None and not moment(time.monotonic() - began, set(temporaries(folder)) - old):
            time.sleep(POLL)
        killed = process.poll() is None
    process.stdout.close()  # not to its end: idle workers of joblib hold it for minutes
    process.stderr.close()
    return {"killed": killed, "done": stages_done(folder), "inside": temporaries(folder)}


def go_on(folder, arguments):
    """The same command, to its end; nothing half-written stays."""
    done = run(*arguments, f"--OUTPUT_DIR={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert temporaries(folder) == []
    return done
