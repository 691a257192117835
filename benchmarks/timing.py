"""What the benchmarks share: two sides in turn, on one thread; a process of its own where memory is weighed.

Import it before NumPy and TensorFlow: it sets their threads.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "TF_ENABLE_ONEDNN_OPTS": "1"}
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def report(
    name: str, ours: float, goal: str, *, peer: float | None = None, peer_name: str = "", unit: str = ""
) -> None:
    """One line; `ratio` is ours over the peer's."""
    line = {"name": name, "ours": _short(ours), "peer": _short(peer), "peer_name": peer_name}
    ratio = None if peer is None else _short(ours / peer)
    print(json.dumps(line | {"ratio": ratio, "unit": unit, "goal": goal}), flush=True)


def compare(name: str, ours: Callable, peer: Callable, peer_name: str, goal: str, repeats: int = 7) -> None:
    """Medians of the process's CPU seconds, the two sides in turn, after one run of each to warm up."""
    mine, others = alternate([ours, peer], repeats)
    report(name, mine, goal, peer=others, peer_name=peer_name, unit="CPU s")


def alternate(sides: list[Callable], repeats: int) -> list[float]:
    """Median CPU seconds of each side."""
    taken: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for times, run in zip(taken, sides, strict=True):
            began = time.process_time()
            run()
            if repeat:
                times.append(time.process_time() - began)
    return [sorted(times)[len(times) // 2] for times in taken]


def in_own_process(script: str, *arguments: str) -> list[float]:
    """The numbers that a benchmark's own file prints last when it is run with these arguments."""
    command = [sys.executable, str(HERE / "benchmarks" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def _short(value: float | None) -> float | None:
    """A number with three digits."""
    return None if value is None else float(f"{value:.3g}")
