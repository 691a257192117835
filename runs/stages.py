"""TODO: runs.stages."""

ARTEFACTS = {  # what each stage leaves in the run's folder
    "cnn": ("cnn",),
    "features": ("features", "cnn/crossfit"),
    "tlstm": ("tlstm",),
    "explain": ("explain", "explained_cohort"),
    "report": ("report.html", "metrics.json", "figures"),
}
READS = {  # the stages whose files each stage reads, the one whose settings it depends on last
    "cnn": (),
    "features": ("cnn",),
    "tlstm": ("features",),
    "explain": ("cnn", "tlstm"),
    "report": ("features",),
}
DEPENDS = {  # the settings that a stage's result depends on, beside those of the stages above it
    "cnn": (
        "SEED TARGET_SHAPE RESAMPLE WIDTH NORM PRECISION DROPOUT_RATE LOSS TIES VISIT_ORDER_WEIGHT BATCH_SIZE RISK_SET "
        "LEARNING_RATE LR_SCHEDULE WARMUP_EPOCHS CLIP_NORM EMA RECOMPUTE EPOCHS PATIENCE "
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
GOES_ON_FROM = {  # folders of what a stopped stage left; they are removed if it begins anew
    "cnn": ("cnn",),
    "features": ("cnn/crossfit",),
    "tlstm": (),
    "explain": ("explain", "explained_cohort"),
}
