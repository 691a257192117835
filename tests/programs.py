"""The pipeline as a user runs it, for the tests that start processes: a small run, and what must come out of it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent.parent
SMALL = (
    "--SIM_SUBJECTS=24 --TEST_RATIO=0.25 --VAL_TRAIN_RATIO=0.25 --TARGET_SHAPE=16,16,16 --WIDTH=4 --EPOCHS=2 "
    "--NUM_SEEDS=2 --TLSTM_EPOCHS=5 --NUM_RESAMPLES=100 --SHAP_BACKGROUND_SIZE=4 --SHAP_NSAMPLES=8 --EXPLAIN_COHORT=3 "
    "--NUM_WORKERS=1"
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
    stdout, stderr = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.log", ".run.json")
    }


def results(folder):
    """What two runs of the same settings must have alike, bit for bit: all but timings."""
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RESULTS}
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
