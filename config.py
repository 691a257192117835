"""Every setting of the pipeline: edit a default here, or override it for one run.

    python main.py                         the embedded cohort: about 4 minutes on 2 cores
    python main.py --EPOCHS 3 --SEED 1     other values, for this run only
    python main.py --help                  this list
    python main.py --version               of the project

A relative path is relative to the working directory. "Paper" is Aghajanian et al. (2025).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from runs.effects import log_without_effect, without_effect
from runs.errors import InputError, raise_if_any
from runs.stages import STAGE_NAMES, StageName
from runs.version import VERSION

FOLDERS = ("OUTPUT_DIR", "MRI_FOLDER", "CACHE_DIR")
FILES = ("COHORT_CSV", "TRAIN_CSV", "VAL_CSV", "TEST_CSV", "FEATURES", "PREDICT_CSV", "REFERENCE", "ATLAS")
Ratio = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Visits = Annotated[int, Field(ge=1, le=50)]
Voxels = Annotated[int, Field(ge=16, le=512)]


class Config(BaseSettings):
    """From longitudinal brain MRI to who converts to dementia, when, and where one can see it."""

    model_config = SettingsConfigDict(
        use_attribute_docstrings=True,
        validate_default=True,
        extra="forbid",
        frozen=True,
        case_sensitive=True,
        cli_hide_none_type=True,
    )

    # ---- The cohort ------------------------------------------------------------------------------
    COHORT_CSV: Path | None = None
    """Table of scans, a row a scan; subjects are split by TEST_RATIO. A subject whose `convert_status` is empty in all
    rows has no outcome: it is in no part, and with PROGRESS its scans teach that. Unset: the simulated cohort."""
    TRAIN_CSV: Path | None = None
    """Your own split: the three tables are used as they are. All three, or none. This one alone may hold subjects
    without an outcome."""
    VAL_CSV: Path | None = None
    """See TRAIN_CSV."""
    TEST_CSV: Path | None = None
    """See TRAIN_CSV."""
    MRI_FOLDER: Path = Path("data")
    """Where `imageid.nii.gz` or `imageid.nii` lies when the table has no `nifti_path`."""
    TIME_UNIT: Literal["years", "months", "days"] = "years"
    """Unit of `visit_time` and `time` in the tables; results are in years."""
    SIMILAR_IDS: Literal["refuse", "allow"] = "refuse"
    """Ids that differ only in case, in signs that can't be seen, or in zeros around a number (`1` and `1.0`): refused,
    since one person would stand in two parts; `allow` if they are different persons."""
    DECIMAL: Literal["auto", "point", "comma"] = "auto"
    """Sign before decimals in the tables; the other one, a blank or an apostrophe may stand between thousands. `auto`:
    a point; between semicolons what the cells show, and a number that can be read in two ways is refused."""
    LATE_VISITS: Literal["refuse", "drop"] = "refuse"
    """Visits at or after their subject's event, or after `time` of a censored one: refused, or left out and counted. A
    censored subject's last visit may lie at `time`: it belongs to the history."""
    EVENT_NAMES: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Names of the events that `convert_status` 1, 2, ... stand for, such as `conversion,death`. The first one is
    predicted; the others compete with it, and count as censored at `time`. Unset: 1 alone is expected."""
    TEST_RATIO: Ratio = 0.2
    """Share of the subjects in the test part, read once, at the end."""
    VAL_TRAIN_RATIO: Ratio = 0.2
    """Share of the other subjects in the validation part, which every choice is made on."""
    OUTPUT_DIR: Path = Path("outputs")
    """The run's folder."""
    STAGES: tuple[StageName, ...] = STAGE_NAMES
    """Which stages to run, comma-separated; a finished stage of the same settings is not repeated."""
    SEED: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the split, the weights, the shuffling, the augmentation and the bootstrap."""
    RESUME: Literal["auto", "require"] = "auto"
    """A stage whose settings or input have changed is done anew, or, with `require`, refused before it is touched."""
    VERIFY: bool = False
    """Only look: are the run's files as it left them, what is in the cohort, what would a run take; writes nothing."""
    MAX_HOURS: Positive | None = None
    """Hours of wall clock after which the run saves, stops and ends with exit code 143; the same command goes on."""

    PREDICT_CSV: Path | None = None
    """`python predict.py` alone: scans of new subjects, `subjectid, imageid, visit_time`, in the run's TIME_UNIT, with
    the covariates that the run was trained on; outcomes are not read."""

    # ---- The simulated cohort, when COHORT_CSV is unset ---------------------------------------------
    SIM_SUBJECTS: Annotated[int, Field(ge=12)] = 300
    """Subjects (paper: 228 of ADNI)."""
    SIM_VISITS: tuple[Visits, Visits] | None = None
    """Fewest and most visits of a subject, such as 2,7: their number is drawn, at irregular times within 3 years.
    Unset: 3 visits within 18 months."""
    SIM_HISTORY: Literal["linear", "accelerating", "highest", "variable", "jumping", "u_shaped"] = "linear"
    """What of the atrophy's course the hazard follows: level and rate of a line (linear), the last value of a curve and
    its rate there (accelerating), the highest value, the spread (variable), the time since a jump, or how far the last
    value lies from the middle (u_shaped). A Cox model on last value and slope can express the first alone."""
    SIM_NUISANCE: NotNegative = 1.0
    """Strength of what is unrelated to the hazard (shift, scale, gain, bias field, noise, anatomy); 3 is hard."""
    SIM_EFFECT: NotNegative = 1.0
    """Strength of the atrophy's effect on the hazard; 0: none, a cohort that no model can predict."""

    # ---- Volumes -------------------------------------------------------------------------------------
    TARGET_SHAPE: tuple[Voxels, Voxels, Voxels] = (48, 56, 48)
    """Voxels of a volume in the network (X, Y, Z); memory and time grow with their product (paper: 128,128,128)."""
    RESAMPLE: bool = False
    """Resample scans of another grid to REFERENCE's; off: they are refused, by name."""
    REFERENCE: Path | None = None
    """A NIfTI file whose grid (shape and place in mm) every scan must have; unset: the one that most scans have."""
    MAX_VOXELS: Count = 512**3
    """Voxels of the largest scan that is not refused; preprocessing one takes 8 bytes a voxel at most."""
    CACHE_DIR: Path | None = None
    """Preprocessed volumes, 2 bytes a voxel; unset: OUTPUT_DIR/cache. Runs may share one."""
    NUM_WORKERS: Annotated[int, Field(ge=-1)] = -1
    """Processes that preprocess; -1: one a core."""
    SCHEDULER: str | None = None
    """Address of a Dask cluster whose workers preprocess instead, such as tcp://host:8786; they share the disk."""
    AUGMENT_SHIFT: NotNegative = 0.5
    """Largest random shift of a training volume along each axis, voxels; 0: none."""
    AUGMENT_ROTATE: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest random rotation of a training volume about each axis, degrees; 0: none."""
    AUGMENT_SCALE: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest random change of a training volume's size, as a share; 0: none."""
    AUGMENT_FLIP: bool = False
    """Flip left and right at random. Off: atrophy of the hippocampus is lateralised."""
    AUGMENT_BIAS: Share = 0.0
    """Largest share by which a random smooth field brightens or darkens places of a training volume; 0: none."""
    AUGMENT_GAIN: Share = 0.1
    """Largest random change of a training volume's z-scores, as a share; 0: none."""
    AUGMENT_NOISE: NotNegative = 0.0
    """Largest standard deviation of noise in a training volume, z-scores; 0: none."""

    # ---- Stage 1: the 3D ResNet-18 -------------------------------------------------------------------
    WIDTH: Annotated[int, Field(ge=4, le=256)] = 16
    """Channels of the first stage; there are 8 times as many features (paper: 64)."""
    NORM: Literal["batch", "group"] = "batch"
    """Normalisation (paper: batch); group follows the slope of the simulated atrophy less well, .54 against .66."""
    PRECISION: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Of training's convolutions; weights, losses, features and explanations are in float32 whatever it is."""
    DROPOUT_RATE: Share = 0.0
    """Share of the features dropped in training."""
    LOSS: Literal["cox", "rank"] = "cox"
    """Cox partial likelihood, or pairwise ranking."""
    TIES: Literal["efron", "breslow"] = "efron"
    """How the Cox loss treats tied event times."""
    VISIT_ORDER_WEIGHT: NotNegative = 4.0
    """Weight of the loss by which a subject's later scan should not look healthier than an earlier one; 0: off."""
    PROGRESS: Literal["linear", "network", "off"] = "linear"
    """A second number for every scan, years along the course, learned from the times between a subject's own visits and
    no outcome: by a linear map of the volume; by a small network, which follows each subject's rate more closely and
    takes three times as long; off: none."""
    BATCH_SIZE: Count = 24
    """Volumes in memory at a time; batch normalisation takes its statistics of so many, and needs 2."""
    RISK_SET: Annotated[int, Field(ge=2)] = 8
    """Subjects per evaluation of the loss, so per step; more than BATCH_SIZE holds cost time, not memory."""
    LEARNING_RATE: Positive = 1.5e-3
    """Adam's, at its peak (paper: 1e-4)."""
    LR_SCHEDULE: Literal["cosine", "plateau"] = "cosine"
    """After WARMUP_EPOCHS: a cosine to 0 at the last epoch, or halved when validation stops improving."""
    WARMUP_EPOCHS: NotNegative = 0.5
    """Epochs over which the learning rate rises from 0."""
    CLIP_NORM: Positive = 1.0
    """The gradient is shortened to this norm."""
    EMA: Share = 0.0
    """Momentum of the averaged weights that validation and features use; 0: the weights themselves."""
    RECOMPUTE: bool = False
    """Keep only what passes between the network's stages and compute the rest again for the gradient; on a CPU it has
    saved 5 % of the memory at best."""
    EPOCHS: Count = 8
    """Most epochs; a step takes RISK_SET subjects with all their scans."""
    PATIENCE: Count = 8
    """Epochs without a better validation C-index before stage 1 stops."""
    KEEP_EPOCH: Literal["last", "best"] = "last"
    """Whose weights stage 1 keeps: the last epoch's, at the cosine's end, or those of the best validation C-index, as
    with LR_SCHEDULE=plateau and where PATIENCE stops it."""
    SAVE_SECONDS: NotNegative = 60.0
    """Between two saved states of stage 1; a killed run goes on from the last one, to the same result."""
    DISTRIBUTE: Literal["none", "mirrored", "multi_worker"] = "none"
    """Who trains stage 1: one device; the devices of this machine; those of every machine of TF_CONFIG or srun."""
    DEVICES: Annotated[int, Field(ge=0)] = 0
    """GPUs that DISTRIBUTE uses on each machine; 0: all."""
    CROSS_FIT: Annotated[int, Field(ge=0)] = 0
    """Folds of the training subjects whose features come from a further network without them; 0: off, one network.
    On the simulated cohort it helped models of the features alone, not the T-LSTM."""

    # ---- Stage 2: from a history to survival curves --------------------------------------------------
    STAGE2: Literal["stack", "tlstm", "link"] = "stack"
    """What predicts from a history. `stack`: a ridge Cox on last values and their change, another on summaries of the
    history, a small boosted Cox, and the T-LSTM, added up by what each tells of held-out subjects; `tlstm`: the
    T-LSTM that corrects one ridge Cox; `link`: the first of the stack alone."""
    POOL: Literal["attention", "last"] = "attention"
    """How the visits' states become one: additive attention, or the last visit's."""
    LINK: bool = True
    """With STAGE2=tlstm: start from a ridge Cox on the last values, and their change if validation prefers it."""
    NUM_SEEDS: Count = 5
    """T-LSTMs trained side by side from different seeds; their log-hazards are averaged. A stack takes a multiple of
    five, each without a fifth of the subjects."""
    COMPONENTS: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 4)
    """How many principal components may stand for the columns feature_<n> (0: none); subjects that are held out weigh
    or, with STAGE2=tlstm, choose."""
    PENALTIES: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Ridge penalties that they weigh or choose from; more is smoother."""
    WINSORISE: NotNegative = 10.0
    """A covariate counts as no further beyond its quartiles than so many times the distance between them (training
    subjects; of its logarithm where that is taken), so that no single cell decides a model; 0: off. The log counts
    the cells."""
    HIDDEN: Count = 16
    """Width of the T-LSTM's state."""
    RECALIBRATE: bool = False
    """Multiply the log-hazard by its slope on validation; steeper or flatter curves, the same order of risks."""
    TLSTM_DROPOUT: Share = 0.3
    """Share of the pooled state dropped in training."""
    TLSTM_LEARNING_RATE: Positive = 3e-3
    """AdamW's."""
    TLSTM_WEIGHT_DECAY: NotNegative = 0.05
    """AdamW's."""
    TLSTM_EPOCHS: Count = 200
    """Most epochs; each is one step over all training subjects."""
    TLSTM_PATIENCE: Count = 20
    """Epochs without a lower validation loss before training stops; the best epoch's weights are kept."""
    FEATURES: Path | None = None
    """`python tlstm.py` alone: a table of visits (CSV or Parquet) instead of OUTPUT_DIR/features."""
    FOLDS: Annotated[int, Field(ge=0)] = 0
    """Cross-validate in so many folds of the subjects: `main.py` the whole pipeline, each fold a run in
    OUTPUT_DIR/folds; `tlstm.py` stage 2 on FEATURES, against its rivals; 0: train once, on a split."""
    REPEATS: Count = 1
    """Cross-validations, each with another assignment to folds."""
    LANDMARKS: tuple[NotNegative, ...] = ()
    """Years from baseline at which to predict; unset: each subject's last visit, right only if the outcome
    did not decide when the visits end."""
    LANDMARK_STEP: Positive = 0.5
    """With LANDMARKS: years between the landmarks that the model is trained at."""
    WINDOWS: tuple[Positive, ...] = ()
    """With FOLDS: years ahead of each landmark that are evaluated, one for each of LANDMARKS."""
    HORIZONS: Annotated[tuple[Positive, ...], Field(min_length=1)] = (2.0, 3.0, 5.0)
    """Years after the landmark at which survival, AUC and calibration are given."""

    # ---- Evaluation and explanation --------------------------------------------------------------------
    NUM_RESAMPLES: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of the subjects, for the 95 % intervals."""
    EXPLAIN: tuple[str, ...] = ("highest", "median", "lowest")
    """Whom of the test part to explain, by the last scan: highest, median, lowest risk, or subject ids."""
    EXPLAIN_COHORT: Annotated[int, Field(ge=0)] = 20
    """Test subjects, spread over the predicted risk, in the mean map and the table of regions; 0: neither."""
    SAMPLE_INDEX: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Scans to explain besides: rows of splits/test.csv, counted from 0."""
    SHAP_ENGINE: Literal["expected_gradients", "shap"] = "expected_gradients"
    """Our expected gradients, or the GradientExplainer of the package shap, for parity."""
    SHAP_BACKGROUND_SIZE: Count = 32
    """Training scans against which SHAP explains; the map's largest noise is in who they are (paper: 10)."""
    SHAP_NSAMPLES: Count = 128
    """Gradients per explained scan; more is more exact."""
    SHAPLEY_BACKGROUND: Annotated[int, Field(ge=0)] = 0
    """Scans of that background for the regions' Shapley values, the column `shapley` of regions.csv; each takes two
    passes of the network a region. 0: no such values."""
    GRAD_CAM_LAYER: Literal["stage1", "stage2", "stage3", "stage4"] = "stage4"
    """The stage that Grad-CAM looks at; a later one knows more and sees more coarsely (paper: the last)."""
    HIRES_CAM_LAYER: Literal["stage1", "stage2", "stage3", "stage4"] = "stage2"
    """The stage that HiResCAM looks at."""
    ATLAS: Path | None = None
    """Regions to sum the SHAP map by: NIfTI labels in the scans' space, names in a CSV beside it; unset: parcels."""

    @field_validator(*FOLDERS, *FILES, mode="before")
    @classmethod
    def _not_blank(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():
            raise ValueError("expected a path")
        return path

    @field_validator("HORIZONS")
    @classmethod
    def _ascending(cls, horizons: tuple[float, ...]) -> tuple[float, ...]:
        if list(horizons) != sorted(set(horizons)):
            raise ValueError("expected ascending years without repeats")
        return horizons

    @field_validator("SIM_VISITS")
    @classmethod
    def _fewest_and_most(cls, visits: tuple[int, int] | None) -> tuple[int, int] | None:
        if visits is not None and visits[0] > visits[1]:
            raise ValueError("expected the fewest visits, then the most")
        return visits

    @field_validator("CROSS_FIT")
    @classmethod
    def _folds(cls, number: int) -> int:
        if number == 1:
            raise ValueError("expected 0, or 2 folds or more")
        return number

    @model_validator(mode="after")
    def _split_whole(self) -> Self:
        given = [name for name in ("TRAIN_CSV", "VAL_CSV", "TEST_CSV") if getattr(self, name) is not None]
        if 0 < len(given) < 3:
            raise ValueError(f"TRAIN_CSV, VAL_CSV, TEST_CSV: expected all three or none, received {', '.join(given)}")
        if given and self.COHORT_CSV is not None:
            raise ValueError("COHORT_CSV: expected unset when TRAIN_CSV, VAL_CSV and TEST_CSV are given")
        return self

    @model_validator(mode="after")
    def _batch_to_normalise(self) -> Self:
        if self.NORM == "batch" and self.BATCH_SIZE < 2:
            raise ValueError("BATCH_SIZE: expected 2 or more with NORM=batch, whose statistics of 1 volume are none")
        return self

    @model_validator(mode="after")
    def _one_network_on_many_machines(self) -> Self:
        if self.DISTRIBUTE == "multi_worker" and (self.FOLDS or self.CROSS_FIT):
            raise ValueError("DISTRIBUTE: expected none or mirrored with FOLDS or CROSS_FIT, received multi_worker")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Defaults and the command line alone: what the environment holds changes no run."""
        return (init_settings,)


def read_config(arguments: list[str] | None = None, program: str = "main.py") -> Config:
    """The settings: the defaults above, overridden by `arguments` of the command line.

    Args:
        arguments: such as `["--EPOCHS", "3"]`; None: no override.
        program: named by `--help`.
    Returns:
        The checked settings, frozen.
    Raises:
        InputError: names every wrong setting at once.
        SystemExit: `--help` or `--version` (0), or an option that does not exist (2).
    """
    if "--version" in (arguments or []):
        print(f"CNN-TLSTM {VERSION}")
        raise SystemExit(0)
    try:
        config = Config(_cli_parse_args=_switched_on(arguments or []), _cli_prog_name=f"python {program}")
    except ValidationError as error:
        raise InputError("\n".join(["Wrong settings:", *(_line(problem) for problem in error.errors())])) from error
    except SettingsError as error:
        raise InputError(f"Wrong settings: {error.__cause__ or error}") from error
    _check_places(config, program)
    log_without_effect(config, config.model_fields_set, program)
    return config


def _check_places(config: Config, program: str) -> None:
    """Refuse a file in the place of a folder, a folder in that of a file, and a folder of scans without their table.

    Raises:
        InputError: names each setting.
    """
    given = config.model_fields_set
    places = {name: path for name in (*FOLDERS, *FILES) if name in given and (path := getattr(config, name))}
    problems = [
        f"{name}: expected a folder, received the file {places[name]}"
        for name in FOLDERS
        if name in places and places[name].is_file()
    ]
    problems += [
        f"{name}: expected a file, received the folder {places[name]}"
        for name in FILES
        if name in places and places[name].is_dir()
    ]
    if program == "main.py" and without_effect(config, given & {"MRI_FOLDER"}, program):
        problems.append(
            "MRI_FOLDER: expected the table of its scans too, received no COHORT_CSV or TRAIN_CSV: the run would "
            "train on the simulated cohort"
        )
    raise_if_any("Wrong settings", problems, "Change these settings.")


def _switched_on(arguments: list[str]) -> list[str]:
    """`--VERIFY` alone is `--VERIFY=on`, and so for every setting that is on or off."""
    switches = {f"--{name}" for name, field in Config.model_fields.items() if field.annotation is bool}
    return [
        f"{argument}=on" if argument in switches and after.startswith("--") else argument
        for argument, after in zip(arguments, [*arguments[1:], "--"], strict=False)
    ]


def _line(problem: Mapping[str, Any]) -> str:
    """One wrong setting in words."""
    name = ".".join(str(part) for part in problem["loc"])
    if not name:
        return f"  {problem['msg'].removeprefix('Value error, ')}"
    expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"  {name}: expected {expected.removeprefix('expected ')}. Received: {problem['input']!r}"
