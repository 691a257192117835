"""The pipeline as a user runs it, for the tests that start processes: a small run, and what must come out of it."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent.parent
SMALL = (
    "--SIM_SUBJECTS=24 --TEST_RATIO=0.25 --VAL_TRAIN_RATIO=0.25 --TARGET_SHAPE=16,16,16 --WIDTH=4 --EPOCHS=2 "
    "--NUM_SEEDS=2 --TLSTM_EPOCHS=5 --NUM_RESAMPLES=100 --SHAP_BACKGROUND_SIZE=4 --SHAP_NSAMPLES=8 "
    "--EXPLAIN=highest,lowest --EXPLAIN_COHORT=3 --NUM_WORKERS=1"
).split()
RESULTS = (
    "cnn/best.weights.h5 features/train.parquet features/val.parquet features/test.parquet tlstm/model.pt "
    "tlstm/model.json tlstm/predictions.csv tlstm/by_visit.csv metrics.json"
).split()


def start(*arguments, program="main.py", cwd=None, **kwargs):
    command = [sys.executable, str(HERE / program), *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def run(*arguments, program="main.py", cwd=None, **kwargs):
    process = start(*arguments, program=program, cwd=cwd, **kwargs)
    ((stdout, stderr),) = outputs(process)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextlib.contextmanager
def none_outlives(*processes):
    """Kill what is left of these processes at the end of the block, also when pytest's limit to a test ends it."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def outputs(*processes):
    """What processes print, (stdout, stderr) each, once all have ended, however slow the machine."""
    with none_outlives(*processes):
        return [process.communicate() for process in processes]


def wait_until(is_so, *processes):
    """Wait for what these processes bring about, however slow the machine; an error if one of them ends before."""
    while not is_so():
        codes = [process.poll() for process in processes]
        assert is_so() or codes == [None] * len(codes), f"ended with {codes} before that"
        time.sleep(0.05)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.log", ".run.json")
    }


def results(folder):
    """What two runs of the same settings must have alike, bit for bit: all but timings."""
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RESULTS}
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics.get("change", {}).pop("map", None)  # of the stage explain, which a run may leave out
    found["metrics.json"] = json.dumps(metrics)
    for stage in ("cnn", "tlstm"):
        history = pd.read_csv(folder / stage / "history.csv").drop(columns="seconds", errors="ignore")
        found[f"{stage}/history.csv"] = history.to_csv()
    return found


def stages_done(folder):
    """Names of the stages that the record says are done."""
    path = folder / "config.json"
    stages = json.loads(path.read_text())["stages"] if path.exists() else {}
    return [name for name, stage in stages.items() if stage["done"]]


def temporaries(folder):
    """What is being written, or was left half-written, in a folder that may change meanwhile."""
    found = []
    for place, folders, names in os.walk(folder):
        found += [os.path.join(place, name) for name in (*folders, *names) if name.startswith(".part-")]
        folders[:] = [name for name in folders if not name.startswith(".part-")]
    return found
