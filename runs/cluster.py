"""Who does the work of `joblib.Parallel`: the cores here, or the workers of a Dask cluster."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import cloudpickle
from joblib import parallel_config, wrap_non_picklable_objects

from runs.errors import InputError
from runs.files import ROOT

PATIENCE = 30  # seconds for the scheduler to answer and for a first worker to come
LIBRARIES = ("joblib", "nibabel", "numpy", "pandas", "tqdm")  # that a task imports


@contextmanager
def workers(scheduler: str | None) -> Iterator[Callable[[Any], Any]]:
    """Within, `joblib.Parallel` gives its tasks to these workers.

    A task carries our code with it. What the workers must have: the same release of Python and of the libraries of
    requirements.txt that the task uses (joblib, nibabel, NumPy, pandas, tqdm), and the scans and the cache under the
    same paths, as on a shared disk.

    Args:
        scheduler: address such as `tcp://host:8786`; None: processes here.
    Yields:
        What makes a function portable to them.
    Raises:
        InputError: Dask is not installed here, nobody answers at the address, there is no worker, or one lacks a
            library.
        OSError: the workers were lost.
    """
    if scheduler is None:
        yield lambda function: function
        return
    try:
        import distributed
    except ImportError as error:
        raise InputError(f"SCHEDULER: expected Dask, can't import it: {error}. pip install dask distributed") from error
    for module in _our_modules():  # else a worker would import them, and it has other modules of these names, or none
        cloudpickle.register_pickle_by_value(module)
    try:
        client = distributed.Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"SCHEDULER: expected a scheduler at {scheduler}, can't reach it: {error}") from error
    try:
        with client, parallel_config(backend="dask", client=client):
            client.wait_for_workers(1, timeout=PATIENCE)
            client.run(exec, f"import {', '.join(LIBRARIES)}")  # joblib would wait forever for a task that can't begin
            yield wrap_non_picklable_objects
    except TimeoutError as error:
        raise InputError(f"SCHEDULER: expected workers of {scheduler}, none came in {PATIENCE} s") from error
    except ImportError as error:
        raise InputError(f"SCHEDULER: a worker of {scheduler} lacks a library: {error}") from error
    except (distributed.KilledWorker, distributed.CancelledError) as error:
        raise OSError(f"SCHEDULER: the workers of {scheduler} were lost: {error}") from error


def _our_modules() -> list[ModuleType]:
    """The loaded modules and packages of this project; a package stands for all that is in it."""
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    return [module for name, module in sys.modules.items() if name in ours]
