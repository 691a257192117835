"""Every reader of input against real files that were mutated: a JSON line a reader, its cases counted by outcome.

    python benchmarks/fuzz.py --cases 10000 --seed 0

A reader may refuse a mutated file, with InputError. It may accept it, if what it returns is sound: finite numbers, or
what the file held before. Anything else is a bug: its traceback is printed and its file kept in the folder `--keep`.
Of the kinds of wrong input in fuzz_kinds.py, it must give the answer that is known to be right.
"""

import argparse
import contextlib
import gzip
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from timing import HERE  # first: it sets the threads

sys.path.insert(0, str(HERE))

import nibabel as nib
import numpy as np
import pandas as pd
from fuzz_kinds import Kind, attempt, keep, scan_kinds, table_kinds

from cohort import tables
from cohort.ids import id_key
from cohort.volume import preprocess, read_image
from config import Config, read_config
from runs.files import read_json, write_json
from runs.manifest import RECORD, list_files, read_record
from runs.record import Record
from runs.stages import STAGES
from runs.threads import fix_threads

SHAPE = (16, 16, 16)
TOKENS = [
    *["NA", "", "nan", "inf", "-1", "1e400", "1e39", "2019-01-01", "2019", "43466", "1,5", "1.5", "0x10", "1_0", "yes"],
    *["True", "'", '"', ";", "\t", "\0", "../x", "<script>", "\u0663", "\u066b", "9" * 40, "\r", "\n", "\ufeff"],
    *[
        "Unnamed: 0",
        "NULL",
        "n/a",
        "#N/A",
        "?",
        "-",
        "1,495",
        "1.495",
        "1.113,5",
        "3.5 ml",
        "\u22123.5",
        "1.0",
        "001.0",
    ],
    *["000", "\u200b", "I0V0", "zo\u00e9", "zoe\u0301", "9.25", "1 495", "#DIV/0!"],
]
VALUES = [None, True, 0, -1, 5, 1.5, 2**70, "", "x", "../x", "<script>", [], [1, "a"], {}, {"a": 1}]  # of JSON


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut, repeat, overwrite or insert bytes, at one to three places."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, max(1, min(len(changed), 600 if rng.random() < 0.5 else len(changed)))))
        match int(rng.integers(0, 6)):
            case 0 | 1 if changed:
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del changed[at:]
            case 3:
                changed[at : at + 8] = rng.bytes(8)
            case 4:
                changed[at:at] = changed[at : at + int(rng.integers(1, 200))]
            case _:
                changed[at:at] = str(rng.choice(TOKENS)).encode()
    return bytes(changed)


def mutate_cells(content: bytes, rng: np.random.Generator) -> bytes:
    """Put tokens into one to three cells of a CSV and write it in another dialect; or mutate its bytes."""
    if rng.random() < 0.4:
        return mutate(content, rng)
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(int(rng.integers(1, 4))):
        row = rows[int(rng.integers(0, len(rows)))]
        row[int(rng.integers(0, len(row)))] = str(rng.choice(TOKENS))
    delimiter = str(rng.choice([",", ";", "\t"]))
    end = str(rng.choice(["\n", "\r\n", "\r"]))
    return end.join(delimiter.join(row) for row in rows).encode(str(rng.choice(["utf-8", "utf-8-sig", "utf-16"])))


def mutate_values(content: bytes, rng: np.random.Generator) -> bytes:
    """Put another value into one place of a JSON file; or mutate its bytes."""
    if rng.random() < 0.4:
        return mutate(content, rng)
    changed = json.loads(content)
    parent, depth = changed, int(rng.integers(0, 5))
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = keys[int(rng.integers(0, len(keys)))]
        if depth == 0 or not isinstance(parent[key], dict | list) or not parent[key]:
            break
        parent, depth = parent[key], depth - 1
    parent[key] = VALUES[int(rng.integers(0, len(VALUES)))]
    return json.dumps(changed).encode()


class Reader:
    """One reader of input.

    Args:
        name: of the reader, in the report.
        path: of a sound file; each mutation of it is written in its place.
        read: the reader, given the path.
        check: raises if what was read from a mutated file is not sound, given that and what the sound file holds.
        change: mutates the file's bytes.
    """

    def __init__(self, name: str, path: Path, read: Callable, check: Callable, change: Callable = mutate):
        self.name, self.path, self.read, self.check, self.change = name, path, read, check, change
        self.content = path.read_bytes()
        self.sound = read(path)

    def run(self, cases: int, rng: np.random.Generator, bug_folder: Path) -> Counter:
        """Read mutations of the file.

        Args:
            cases: number of mutations.
            rng: draws them.
            bug_folder: for the files that show a bug.
        Returns:
            Number of cases by outcome.
        """
        counts: Counter = Counter()
        for case in range(cases):
            changed = self.change(self.content, rng)
            self.path.write_bytes(changed)
            outcome = attempt(lambda: self.check(self.read(self.path), self.sound))
            counts[outcome] += 1
            if outcome == "bug":
                keep(bug_folder, f"{self.name}-{case}{self.path.suffix}", changed)
        self.path.write_bytes(self.content)
        return counts


def check_table(table: pd.DataFrame, _: pd.DataFrame | None) -> None:
    """Assert that rows have ids that differ, times (years) in order, and features that are not infinite."""
    assert np.isfinite(table["visit_time"]).all() and (table["visit_time"] >= 0).all()
    assert (table["subject"].str.strip() != "").all()
    assert table["subject"].map(id_key).nunique() == table["subject"].nunique()
    if "time" in table:
        left = tables.time_left(table)
        assert (left >= 0).all() and (left[table["event"]] > 0).all() and (table["time"] <= 100).all()
    features = table[tables.feature_columns(table)].to_numpy(float)
    assert not np.isinf(features).any()


def check_volume(volume: np.ndarray, _: np.ndarray) -> None:
    """Assert that a volume, (16, 16, 16), is finite and z-scored over its voxels that are not 0."""
    assert np.isfinite(volume).all() and volume.shape == SHAPE
    brain = volume[volume != 0].astype(float)
    assert abs(brain.mean()) < 0.01 and abs(brain.std() - 1) < 0.01


def check_json(value: dict, _: dict) -> None:
    """Assert that a value is an object, and every number in it finite."""
    assert isinstance(value, dict)
    json.dumps(value, allow_nan=False)


def check_same(arrays: np.ndarray | list[np.ndarray], sound: np.ndarray | list[np.ndarray]) -> None:
    """Assert that predictions, (N,) log-hazards, or a model's weights are those of the sound file."""
    for array, expected in zip(arrays, sound, strict=True):
        np.testing.assert_array_equal(array, expected)


def check_finite(weights: list[np.ndarray], _: list[np.ndarray]) -> None:
    """Assert that all weights of a model are finite."""
    assert all(np.isfinite(array).all() for array in weights)


def table_readers(folder: Path) -> list[Reader]:
    """A cohort, features as CSV and as Parquet, and scans to predict: 24 rows, in `folder`, one column of text."""
    rng = np.random.default_rng(0)
    rows = [(f"{n:03}", f"i{n}v{v}", v / 2, 5.25, n % 2, 60 + n / 3) for n in range(8) for v in range(3)]
    table = pd.DataFrame(rows, columns=[*tables.ON_DISK.values(), "age"])
    for name in table["imageid"]:
        (folder / f"{name}.nii.gz").touch()
    cohort, csv, parquet = folder / "cohort.csv", folder / "features.csv", folder / "features.parquet"
    table["sex"] = ["FM"[row % 2] for row in range(len(table))]
    table.assign(volume=rng.normal(size=len(table))).to_csv(cohort, index=False)
    for number in range(4):
        table[f"feature_{number + 1}"] = rng.normal(size=len(table))
    table.to_csv(csv, index=False)
    table.to_parquet(parquet, index=False, write_page_checksum=True)
    read_scans = partial(tables.read_scans, mri_folder=folder)

    def read_cohort(path: Path) -> pd.DataFrame:
        return tables.read_cohort(path, mri_folder=folder)[0]

    return [
        Reader("cohort table", cohort, read_cohort, check_table, mutate_cells),
        Reader("feature table", csv, tables.read_features, check_table, mutate_cells),
        Reader("feature table, Parquet", parquet, tables.read_features, check_table),
        Reader("table to predict", cohort, read_scans, check_table, mutate_cells),
    ]


def volume_readers(folder: Path) -> list[Reader]:
    """A scan of 18 x 20 x 17 voxels, as it is and packed by gzip."""
    rng = np.random.default_rng(0)
    greys = rng.integers(0, 300, (18, 20, 17)).astype(np.int16)
    greys[:3] = 0
    content = nib.Nifti1Image(greys, np.diag([4.0, 4, 4, 1])).to_bytes()
    (folder / "scan.nii").write_bytes(content)
    (folder / "scan.nii.gz").write_bytes(gzip.compress(content))

    def read(path: Path) -> np.ndarray:
        """What the network sees, (16, 16, 16)."""
        return preprocess(read_image(path, 2**20), SHAPE)

    def repacked(packed: bytes, rng: np.random.Generator) -> bytes:
        """Mutate the packed bytes, or those that they unpack to."""
        return gzip.compress(mutate(gzip.decompress(packed), rng), 1) if rng.random() < 0.5 else mutate(packed, rng)

    return [
        Reader("NIfTI", folder / "scan.nii", read, check_volume),
        Reader("NIfTI, packed", folder / "scan.nii.gz", read, check_volume, repacked),
    ]


def json_reader(folder: Path) -> Reader:
    """A run's figures, `metrics.json`."""
    path = folder / "metrics.json"
    write_json(path, {"cnn": {"test": {"c_index": {"value": 0.7, "low": 0.6, "high": 0.8}, "auc": None}}, "n": [1, 2]})
    return Reader("JSON", path, read_json, check_json, mutate_values)


def record_reader(folder: Path) -> Reader:
    """A run's record: its settings, threads, and stages with their files."""
    path = folder / "run" / RECORD
    files = list_files(folder, ["scan.nii"])
    stages = {name: {"done": True, "needs": {"SEED": 0}, "files": files} for name in STAGES}
    machine = {"cores": 2, "threads": 2}
    write_json(path, {"settings": {"SEED": 0}, "machine": machine, "stages": stages, "seed": 0})

    def read(path: Path) -> dict:
        """The record, and what the next run makes of it."""
        run = path.parent
        content = read_record(run)
        record = Record(run, read_config([f"--OUTPUT_DIR={run}"]).model_dump(mode="json"), inputs="input")
        changes = {"cnn": record.changes("cnn"), "explain": record.changes("explain")}
        return {**content, "changes": changes, "threads": fix_threads(run)}

    return Reader("a run's record", path, read, check_json, mutate_values)


def model_readers(folder: Path) -> list[Reader]:
    """Stage 2 as it is saved, its weights and its JSON file; what it predicts is log-hazards, (N,)."""
    import tlstm

    table = tables.read_features(folder / "features.csv")
    columns = [*tables.feature_columns(table), "sex"]
    validation = np.arange(8) % 4 < 2  # by subject
    settings = tlstm.Settings.of(Config(NUM_SEEDS=1, TLSTM_EPOCHS=2, HIDDEN=4, COMPONENTS=(0,)))
    predictor, _ = tlstm.fit(table, validation[None], columns, grid=(), settings=settings)
    tlstm.save(predictor, folder / "tlstm")

    def read(_: Path) -> np.ndarray:
        """Log-hazards, (N,), by what is saved now."""
        return tlstm.load(folder / "tlstm").predict(table, years=[1.0, 2.0])["log_hazard"].to_numpy()

    return [Reader(f"saved {name}", folder / "tlstm" / name, read, check_same) for name in ("model.json", "model.pt")]


def weights_reader(folder: Path) -> Reader:
    """Stage 1's weights as they are saved, for (16, 16, 16) voxels; the run's manifest alone notices a flipped bit."""
    from model import build_model
    from training.weights import load_weights, save_weights

    network, path = build_model(SHAPE, width=2), folder / "best.weights.h5"
    save_weights(network, path)

    def read(path: Path) -> list[np.ndarray]:
        """The weights that were loaded."""
        load_weights(network, path)
        return network.get_weights()

    return Reader("saved best.weights.h5", path, read, check_finite)


def state_reader(folder: Path) -> Reader:
    """The state from which a stopped training of stage 1 goes on, with 8 volumes of (16, 16, 16) voxels."""
    from loss import Outcome
    from model import build_model
    from training.devices import Workers
    from training.loop import Training
    from training.risk_sets import Scans
    from training.steps import Options

    rng, num = np.random.default_rng(0), 8
    index, zeros = np.arange(num, dtype=np.int32), np.zeros(num, np.float32)
    outcome = Outcome(index, zeros, rng.random(num).astype(np.float32), index % 2 == 0)
    alone = Scans([], index, outcome, index >= 0)
    model, parts = build_model(SHAPE, width=2), {"train": alone, "val": alone}
    training = Training(model, parts, Options.of(Config()), folder / "cnn", Workers(), save_seconds=60.0)
    training.save()

    def read(path: Path) -> list[np.ndarray]:
        """The variables that were loaded."""
        training.checkpoint.load(path.read_bytes())
        return [variable.numpy() for variable in training.steps.variables()]

    return Reader("saved state.npz", folder / "cnn" / "backup" / "state.npz", read, check_same)


def fuzz_settings(cases: int, rng: np.random.Generator) -> Counter:
    """Read command lines: names of settings, some of them wrong, with values of any kind.

    Args:
        cases: number of command lines.
        rng: draws them.
    Returns:
        Number of cases by outcome.
    """
    names, counts = [*Config.model_fields, "EPOCH", "", "seed"], Counter[str]()
    values = (*TOKENS, "0", "1", "0.5", "1e-3", "[1,2]", "{}", "48,56,48", "cox", "none", "on", "[" * 500)
    for _ in range(cases):
        arguments = [f"--{rng.choice(names)}={rng.choice(values)}" for _ in range(int(rng.integers(1, 4)))]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            counts[attempt(partial(read_config, arguments))] += 1
    return counts


def run(cases: int, seed: int, bug_folder: Path) -> dict[str, Counter]:
    """Run every reader and every kind of wrong input; the cases are shared among them.

    Args:
        cases: number of mutated files and command lines in all.
        seed: of the mutations.
        bug_folder: for the files that show a bug.
    Returns:
        Number of cases by reader or kind, and outcome.
    """
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers: list[Reader | Kind] = [*table_kinds(folder), *scan_kinds(folder)]
        readers += [*table_readers(folder), *volume_readers(folder), json_reader(folder), *model_readers(folder)]
        readers += [record_reader(folder), weights_reader(folder), state_reader(folder)]
        share = -(-cases // (len(readers) + 1))
        outcomes = {reader.name: reader.run(share, rng, bug_folder) for reader in readers}
    logging.disable(logging.NOTSET)
    return outcomes | {"settings": fuzz_settings(share, rng)}


def main() -> int:
    """Print a line for each reader; returns the exit code, 1 if there is a bug."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-bugs"))
    options = parser.parse_args()
    results = run(options.cases, options.seed, options.keep)
    for name, counts in results.items():
        outcomes = {outcome: counts[outcome] for outcome in ("accepted", "refused", "bug")}
        print(json.dumps({"name": name, "seed": options.seed, "cases": counts.total()} | outcomes), flush=True)
    return int(any(counts["bug"] for counts in results.values()))


if __name__ == "__main__":
    sys.exit(main())
