"""The number of threads of a run: sums in another order differ in the last bits, so it stays what it was at first."""

import logging
import os
from pathlib import Path

from joblib import cpu_count
from threadpoolctl import threadpool_limits

from runs.manifest import read_record

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # that libraries read as they load

logger = logging.getLogger(__name__)


def fix_threads(folder: Path) -> int:
    """Give NumPy's libraries the threads of a run: those that are loaded, those that will be, and other programs'.

    Args:
        folder: of the run; its record says how many. A first run takes the cores that this process may use, or
            OMP_NUM_THREADS if that is less.
    Returns:
        The number of threads, for TensorFlow and PyTorch.
    """
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    cores = min(cpu_count(), int(allowed) if allowed.isdigit() else cpu_count())
    threads = read_record(folder).get("machine", {}).get("threads", cores)
    if threads > cores:
        logger.warning(
            "the run began with %d threads and keeps them, so that its numbers stay the same; here are %d cores, so it "
            "takes longer",
            threads,
            cores,
        )
    for name in VARIABLES:
        os.environ[name] = str(threads)
    threadpool_limits(threads)
    return threads
