"""The run's own record, OUTPUT_DIR/config.json: settings, versions, and which stages of which settings are done."""

import hashlib
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from config import Config
from data import Grid
from files import InputError, read_json, remove_temporaries, write_json

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
LIBRARIES = ("tensorflow", "keras", "torch", "numpy", "pandas", "nibabel", "nilearn", "lifelines", "torchsurv", "shap")
UPSTREAM = {"cnn": None, "features": "cnn", "tlstm": "features", "explain": "tlstm", "report": "features"}
DEPENDS = {  # the settings that a stage's result depends on, beside those of the stages above it
    "cnn": (
        "SEED TARGET_SHAPE RESAMPLE WIDTH NORM PRECISION DROPOUT_RATE LOSS TIES VISIT_ORDER_WEIGHT BATCH_SIZE RISK_SET "
        "LEARNING_RATE LR_SCHEDULE WARMUP_EPOCHS CLIP_NORM EMA EPOCHS PATIENCE "
        "AUGMENT_SHIFT AUGMENT_ROTATE AUGMENT_SCALE AUGMENT_FLIP AUGMENT_BIAS AUGMENT_GAIN AUGMENT_NOISE"
    ),
    "features": "CROSS_FIT",
    "tlstm": (
        "POOL LINK NUM_SEEDS COMPONENTS PENALTIES HIDDEN TLSTM_DROPOUT TLSTM_LEARNING_RATE TLSTM_WEIGHT_DECAY "
        "TLSTM_EPOCHS TLSTM_PATIENCE RECALIBRATE LANDMARKS LANDMARK_STEP HORIZONS NUM_RESAMPLES"
    ),
    "explain": (
        "EXPLAIN EXPLAIN_COHORT SAMPLE_INDEX SHAP_ENGINE SHAP_BACKGROUND_SIZE SHAP_NSAMPLES GRAD_CAM_LAYER "
        "HIRES_CAM_LAYER ATLAS"
    ),
}


class Record:
    """Which stages are done, with what; written after every change.

    Args:
        config: the run's settings.
        inputs: a digest of the tables and the volumes that the run reads.
        grid: of the scans; new scans must lie on it too.
    """

    def __init__(self, config: Config, inputs: str, grid: Grid):
        self.config, self.inputs, self.grid = config, inputs, grid
        self.path = config.OUTPUT_DIR / "config.json"
        self.stages: dict[str, Any] = read_json(self.path).get("stages", {})

    def write(self) -> None:
        """Write settings, versions, commit and the state of the stages."""
        write_json(
            self.path,
            {
                "settings": json.loads(self.config.model_dump_json()),
                "seed": self.config.SEED,
                "inputs": self.inputs,
                "grid": {"shape": self.grid.shape, "affine": self.grid.affine},
                "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
                "machine": {"system": platform.platform(), "cores": os.cpu_count()},
                "commit": _commit(),
                "stages": self.stages,
            },
        )

    def needs(self, stage: str) -> dict[str, Any]:
        """What a stage's result depends on: its settings, the input, and the same of the stage above it."""
        settings = {name: json.loads(self.config.model_dump_json())[name] for name in DEPENDS[stage].split()}
        above = UPSTREAM[stage]
        return settings | (self.needs(above) if above else {"the input": self.inputs})

    def is_done(self, stage: str) -> bool:
        """Whether a stage was finished with these settings and this input."""
        known = self.stages.get(stage, {})
        return bool(known.get("done")) and known["needs"] == self.needs(stage)

    def resumes(self, stage: str) -> bool:
        """Whether `doing` goes on with what a stopped run of these settings and this input left."""
        return bool(self.stages[stage].get("resumes"))

    def changes(self, stage: str) -> list[str]:
        """What differs from when the stage was last begun; empty if it never was."""
        old, new = self.stages.get(stage, {}).get("needs"), self.needs(stage)
        if old is None:
            return []
        differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        return [
            name if name == "the input" else f"{name} was {old.get(name)}, is {new.get(name)}" for name in differing
        ]

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """Mark a stage as begun, and, if nothing is raised, as done."""
        for problem in self.changes(stage):
            logger.info("%s: done anew, since it depends on what has changed: %s", stage, problem)
        begun = self.stages.get(stage, {})
        resumes = not begun.get("done", True) and not self.changes(stage)
        self.stages[stage] = {"needs": self.needs(stage), "done": False, "resumes": resumes}
        self.write()
        began = time.monotonic()
        yield
        seconds = round(time.monotonic() - began, 1)
        self.stages[stage] = {"needs": self.needs(stage), "done": True, "seconds": seconds}
        self.write()


def open_folder(folder: Path) -> None:
    """Make the run's folder, and see that it can be written; removes what killed runs left half-written.

    Raises:
        InputError: it can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"OUTPUT_DIR: expected a folder that can be written, received {folder}: {error}") from error
    if removed := remove_temporaries(folder):
        logger.info("%d files that a stopped run left half-written are removed", removed)


def log_to(path: Path) -> None:
    """Send the pipeline's log to a file, with times and levels, and to stderr."""
    kept = logging.FileHandler(path)
    kept.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[kept, shown], force=True)
    logging.captureWarnings(True)


def digest(*parts: str | bytes) -> str:
    """A short hash of texts."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b"\0")
    return found.hexdigest()


def _commit() -> str | None:
    """The commit of the code, `+` if files differ from it; None where there is no git."""
    try:
        described = subprocess.run(
            ["git", "-C", str(HERE), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
