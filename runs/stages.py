"""The tables of a run's stages: what each one needs, makes and depends on.

Resume, `--VERIFY`, the manifest, the setting STAGES and `main.py` read STAGES; a new stage is one entry there. What
`tlstm.py` does with a table of the user's is recorded as the stages of TABLE_STAGES.
"""

from dataclasses import dataclass
from typing import Literal, get_args

StageName = Literal["cnn", "features", "tlstm", "explain", "report"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)  # in the order in which they run
AS_BEFORE = {  # settings with the value that gives what versions without the setting gave: their stages stay done
    "KEEP_EPOCH": "best",
    "PROGRESS": "off",
    "SHAPLEY_BACKGROUND": 0,
    "STAGE2": "tlstm",
    "WINSORISE": 0.0,
}
BY_CONTENT = {"REFERENCE": (), "ATLAS": (".csv",)}  # settings that name a file, and what is read beside it


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    function: str  # the method of `main.Pipeline` that does it, or the function of `tlstm`
    needs: tuple[str, ...]  # stages whose files it reads; the last one's settings are its own too
    makes: tuple[str, ...]  # files and folders that it leaves in the run's folder
    settings: tuple[str, ...] = ()  # that its result depends on, besides those of the last stage in `needs`
    results: tuple[str, ...] = ()  # of these, files and folders that other stages read
    removes: tuple[str, ...] = ()  # what is removed when it begins anew: what it may go on from, or not make this time
    always: bool = False  # done in every run that asks for it, finished or not


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="cnn",
            function="train",
            needs=(),
            makes=("cnn",),
            results=("cnn/best.weights.h5", "cnn/progress.npz"),
            settings=(
                *("SEED", "TARGET_SHAPE", "RESAMPLE", "REFERENCE", "WIDTH", "NORM", "PRECISION", "DROPOUT_RATE"),
                *(
                    "LOSS",
                    "TIES",
                    "VISIT_ORDER_WEIGHT",
                    "BATCH_SIZE",
                    "RISK_SET",
                    "PROGRESS",
                    "LEARNING_RATE",
                    "LR_SCHEDULE",
                    "WARMUP_EPOCHS",
                ),
                *("CLIP_NORM", "EMA", "RECOMPUTE", "EPOCHS", "PATIENCE", "KEEP_EPOCH", "AUGMENT_SHIFT"),
                *("AUGMENT_ROTATE", "AUGMENT_SCALE", "AUGMENT_FLIP", "AUGMENT_BIAS", "AUGMENT_GAIN", "AUGMENT_NOISE"),
            ),
            removes=("cnn",),
        ),
        Stage(
            name="features",
            function="extract_features",
            needs=("cnn",),
            makes=("features", "cnn/crossfit"),
            results=("features/train.parquet", "features/val.parquet", "features/test.parquet"),
            settings=("CROSS_FIT",),
            removes=("cnn/crossfit", "features/change.csv", "features/change.json"),
        ),
        Stage(
            name="tlstm",
            function="train_tlstm",
            needs=("features",),
            makes=("tlstm",),
            results=("tlstm/model.json", "tlstm/model.pt", "tlstm/predictions.csv"),
            settings=(
                *(
                    "STAGE2",
                    "POOL",
                    "LINK",
                    "NUM_SEEDS",
                    "COMPONENTS",
                    "PENALTIES",
                    "WINSORISE",
                    "HIDDEN",
                    "TLSTM_DROPOUT",
                ),
                *("TLSTM_LEARNING_RATE", "TLSTM_WEIGHT_DECAY", "TLSTM_EPOCHS", "TLSTM_PATIENCE", "RECALIBRATE"),
                *("LANDMARKS", "LANDMARK_STEP", "HORIZONS", "NUM_RESAMPLES"),
            ),
        ),
        Stage(
            name="explain",
            function="explain",
            needs=("cnn", "tlstm"),
            makes=("explain", "explained_cohort", "explained_progress"),
            settings=(
                *("EXPLAIN", "EXPLAIN_COHORT", "SAMPLE_INDEX", "SHAP_ENGINE", "SHAP_BACKGROUND_SIZE"),
                *("SHAP_NSAMPLES", "SHAPLEY_BACKGROUND", "GRAD_CAM_LAYER", "HIRES_CAM_LAYER", "ATLAS"),
            ),
            removes=("explain", "explained_cohort", "explained_progress"),
        ),
        Stage(
            name="report",
            function="report",
            needs=("features",),
            makes=("report.html", "metrics.json", "figures"),
            always=True,
        ),
    )
}

_OF_FIGURES = ("HORIZONS", "NUM_RESAMPLES")  # settings of the evaluation alone
_FIT = (*STAGES["tlstm"].settings, "SEED", "TIES")

TABLE_STAGES: dict[str, Stage] = {
    "tlstm": Stage(
        name="tlstm",
        function="run",
        needs=(),
        makes=("tlstm", "splits"),
        settings=(*_FIT, "TEST_RATIO", "VAL_TRAIN_RATIO"),
    ),
    "cv": Stage(
        name="cv",
        function="compare_in_folds",
        needs=(),
        makes=("cv",),
        settings=(*(name for name in _FIT if name not in _OF_FIGURES), "FOLDS", "REPEATS", "WINDOWS"),
        removes=("cv/backup",),
    ),
    "report": STAGES["report"],
}
