"""The table of a run's stages: what each one needs, makes and depends on.

Resume, `--VERIFY`, the manifest, the setting STAGES and `main.py` read it; a new stage is one entry here.
"""

from dataclasses import dataclass
from typing import Literal, get_args

StageName = Literal["cnn", "features", "tlstm", "explain", "report"]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)  # in the order in which they run


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: StageName
    function: str  # the method of `main.Pipeline` that does it
    needs: tuple[StageName, ...]  # stages whose files it reads; the last one's settings are its own too
    makes: tuple[str, ...]  # files and folders that it leaves in the run's folder
    settings: tuple[str, ...] = ()  # that its result depends on, besides those of the last stage in `needs`
    resumes_from: tuple[str, ...] = ()  # folders that a stopped stage goes on from; removed when it begins anew
    always: bool = False  # done in every run that asks for it, finished or not


STAGES: dict[StageName, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="cnn",
            function="train",
            needs=(),
            makes=("cnn",),
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
                *("CLIP_NORM", "EMA", "RECOMPUTE", "EPOCHS", "PATIENCE", "AUGMENT_SHIFT", "AUGMENT_ROTATE"),
                *("AUGMENT_SCALE", "AUGMENT_FLIP", "AUGMENT_BIAS", "AUGMENT_GAIN", "AUGMENT_NOISE"),
            ),
            resumes_from=("cnn",),
        ),
        Stage(
            name="features",
            function="extract_features",
            needs=("cnn",),
            makes=("features", "cnn/crossfit"),
            settings=("CROSS_FIT",),
            resumes_from=("cnn/crossfit",),
        ),
        Stage(
            name="tlstm",
            function="train_tlstm",
            needs=("features",),
            makes=("tlstm",),
            settings=(
                *("POOL", "LINK", "NUM_SEEDS", "COMPONENTS", "PENALTIES", "HIDDEN", "TLSTM_DROPOUT"),
                *("TLSTM_LEARNING_RATE", "TLSTM_WEIGHT_DECAY", "TLSTM_EPOCHS", "TLSTM_PATIENCE", "RECALIBRATE"),
                *("LANDMARKS", "LANDMARK_STEP", "HORIZONS", "NUM_RESAMPLES"),
            ),
        ),
        Stage(
            name="explain",
            function="explain",
            needs=("cnn", "tlstm"),
            makes=("explain", "explained_cohort"),
            settings=(
                *("EXPLAIN", "EXPLAIN_COHORT", "SAMPLE_INDEX", "SHAP_ENGINE", "SHAP_BACKGROUND_SIZE"),
                *("SHAP_NSAMPLES", "GRAD_CAM_LAYER", "HIRES_CAM_LAYER", "ATLAS"),
            ),
            resumes_from=("explain", "explained_cohort"),
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
