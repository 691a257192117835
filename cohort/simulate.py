"""The simulated cohort: brains that shrink at known places and rates, and event times drawn from that atrophy.

Each scan is the MNI152 template (nilearn's, skull-stripped), deformed by the subject's atrophy, which narrows and
darkens the hippocampus and widens the lateral ventricles. A nuisance that does not enter the hazard changes it further.
Of a subject with the atrophy a(t), t years from baseline, and g, what the hazard follows of it, both of `courses`:

    log-hazard   eta = effect g
    time left    S(u) = exp(-exp(eta) (u / SCALE_WEIBULL)^SHAPE_WEIBULL), u years after the last visit

One scan shows a(t) alone; only several scans show its course.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import ndimage
from tqdm import tqdm

from cohort.courses import LINES, History, draw_course, draw_visits, expect_from_one_scan
from runs.files import written_whole

SHAPE = (48, 56, 48)  # (X, Y, Z) voxels
AFFINE = np.array([[4.0, 0, 0, -94], [0, 4.0, 0, -126], [0, 0, 4.0, -82], [0, 0, 0, 1]])  # voxel -> RAS mm, MNI
REGIONS = {1: "hippocampus left", 2: "hippocampus right", 3: "lateral ventricles", 4: "nuisance: frontal lobes"}
ATROPHY_LABELS = (1, 2, 3)  # of REGIONS: where the atrophy is; 4 is where the nuisance anatomy varies

# The hazard, as in the equations above
SHAPE_WEIBULL, SCALE_WEIBULL = 1.4, 8.0  # shape; scale, years
FOLLOW_UP = (2.0, 8.0)  # years observed after the last visit, uniform

# The atrophy; one unit is a standard deviation of the level of straight lines
SHRINK = 0.16  # share of the hippocampus' width that a unit takes
DARKEN = 0.07  # share of the hippocampus' intensity that a unit takes: partial volume with fluid
WIDEN = 1.2  # mm by which a unit moves the ventricles' surface

# The nuisance at strength 1: standard deviations
SHIFT, SCALE = 0.6, 0.01  # translation, mm; scale along each axis, share
GAIN, BIAS, NOISE = 0.05, 0.02, 0.03  # log of the gain; bias field, share per BIAS_MM; noise, share of BRIGHT
BIAS_MM = 70  # the bias field changes linearly over this distance
FRONTAL = 1.5  # mm: shrinkage of the frontal lobes, as by age
FRONTAL_A_YEAR = 0.1  # by how much that grows a year, in its standard deviations
BRIGHT = 1000.0  # int16 value of intensity 1, that of the template's brightest voxel

# The template
TEMPLATE_MM = 2.0  # size of its voxels
BLUR = 0.85  # sigma of the smoothing in its voxels, which suits the cohort's grid of 4 mm
NEAR_MM = 6.0  # distance from the ventricles' surface over which their widening fades


@dataclass(frozen=True)
class Anatomy:
    """The template and its known deformations, on the voxels of the cohort's grid that hold brain."""

    template: np.ndarray  # (X, Y, Z) voxels of TEMPLATE_MM, smoothed; 0 to 1
    inverse: np.ndarray  # (4, 4) RAS mm -> the template's voxels
    mask: np.ndarray  # SHAPE, bool: where the brain is
    points: np.ndarray  # (P, 3) RAS mm of the P voxels in the mask
    atrophy: np.ndarray  # (P, 3) mm per unit of atrophy: from how far away the tissue at a point comes
    frontal: np.ndarray  # (P, 3) mm per unit of the nuisance anatomy, likewise
    hippocampus: np.ndarray  # (P,) 0 to 1: how much of the hippocampus is at a point
    labels: np.ndarray  # SHAPE, uint8, of REGIONS; 0 elsewhere


def write_cohort(
    folder: str | Path,
    *,
    num_subjects: int = 300,
    nuisance: float = 1.0,
    effect: float = 1.0,
    seed: int = 0,
    history: History = LINES,
    jobs: int = -1,
) -> Path:
    """Write the cohort: `cohort.csv`, `mri/*.nii.gz`, `truth.csv` and `truth_regions.nii.gz`.

    Args:
        folder: where; written whole or not at all. A folder that exists already is left as it is.
        num_subjects: number of subjects.
        nuisance: strength of all that does not enter the hazard; 1 is light, 0 none.
        effect: factor of the log-hazard; 0: brains shrink all the same, but the atrophy predicts no event.
        seed: the same seed gives the same bytes, and the same first subjects however many there are.
        history: the visits, the atrophy's course over them, and what of it the hazard follows.
        jobs: number of processes; -1: one a core.
    Returns:
        The path of `cohort.csv`.
    Raises:
        WriteError: the disk is full, or the folder read-only.
    """
    folder = Path(folder)
    if not folder.exists():
        with written_whole(folder) as part:
            (part / "mri").mkdir(parents=True)
            truth = draw_truth(num_subjects, effect=effect, seed=seed, history=history)
            _write_cohort(part, truth, nuisance=nuisance, seed=seed, jobs=jobs)
    return folder / "cohort.csv"


def draw_truth(num_subjects: int, *, effect: float = 1.0, seed: int = 0, history: History = LINES) -> pd.DataFrame:
    """Draw each subject's atrophy, visits and event, without any image.

    Args:
        num_subjects: number of subjects.
        effect: factor of the log-hazard.
        seed: of the draws; the first subjects are the same however many there are.
        history: the visits, the atrophy's course over them, and what of it the hazard follows.
    Returns:
        A row a scan.
        Columns `subjectid, imageid, visit_time, time, convert_status` as in the cohort's table (years), then
        `atrophy` at the visit, for straight lines `level` and `rate` (units of atrophy a year), `log_hazard` of the
        time left after the last visit, and `weibull_shape` and `weibull_scale` (years) of its survival curve. Where
        the log-hazard that is expected from one scan does not rise with the atrophy, `log_hazard_one_scan` is what
        would be expected if this scan were the last.
    """
    subjects = range(1, num_subjects + 1)
    truth = pd.concat([_draw_subject(subject, effect, seed, history) for subject in subjects], ignore_index=True)
    if history.kind != "linear":
        truth["log_hazard_one_scan"] = effect * expect_from_one_scan(history, truth["atrophy"].to_numpy())
    return truth


def _draw_subject(subject: int, effect: float, seed: int, history: History) -> pd.DataFrame:
    """A row a visit of one subject; the equations are those of the module's docstring."""
    rng = np.random.default_rng([seed, subject, 0])
    visits = draw_visits(history, rng)  # (V,)
    course = draw_course(history, visits, rng)
    log_hazard = effect * course.log_hazard  # eta
    cumulative_hazard = rng.exponential()  # exp(eta) (u / scale)^shape at the event is Exp(1); solved for u, years:
    left = SCALE_WEIBULL * (cumulative_hazard / np.exp(log_hazard)) ** (1 / SHAPE_WEIBULL)
    follow_up = rng.uniform(*FOLLOW_UP)
    return pd.DataFrame(
        {
            "subjectid": f"S{subject:04d}",
            "imageid": [f"S{subject:04d}_v{visit}" for visit in range(1, len(visits) + 1)],
            "visit_time": visits,
            "time": np.round(visits[-1] + max(min(left, follow_up), 0.01), 3),
            "convert_status": int(left <= follow_up),
            "atrophy": course.atrophy,  # a(t)
            **course.line,
            "log_hazard": log_hazard,
            "weibull_shape": SHAPE_WEIBULL,
            "weibull_scale": SCALE_WEIBULL,
        }
    )


def _write_cohort(folder: Path, truth: pd.DataFrame, *, nuisance: float, seed: int, jobs: int) -> None:
    anatomy = build_anatomy()
    tasks = (
        delayed(_write_subject)(folder / "mri", anatomy, visits, nuisance, np.random.default_rng([seed, number, 1]))
        for number, (_, visits) in enumerate(truth.groupby("subjectid", sort=False), start=1)
    )
    done = Parallel(n_jobs=jobs, return_as="generator")(tasks)
    for _ in tqdm(done, total=truth["subjectid"].nunique(), desc="simulating", unit="subject"):
        pass
    truth["nifti_path"] = "mri/" + truth["imageid"] + ".nii.gz"
    columns = ["subjectid", "imageid", "visit_time", "time", "convert_status", "nifti_path"]
    truth[columns].to_csv(folder / "cohort.csv", index=False)
    truth.drop(columns="nifti_path").to_csv(folder / "truth.csv", index=False)
    nib.save(nib.Nifti1Image(anatomy.labels, AFFINE), folder / "truth_regions.nii.gz")


def _write_subject(
    folder: Path, anatomy: Anatomy, visits: pd.DataFrame, nuisance: float, rng: np.random.Generator
) -> None:
    frontal = nuisance * rng.normal()
    for image, time, atrophy in zip(visits["imageid"], visits["visit_time"], visits["atrophy"], strict=True):
        aged = frontal + FRONTAL_A_YEAR * nuisance * time
        volume = draw_scan(anatomy, atrophy=atrophy, frontal=aged, nuisance=nuisance, rng=rng)
        nib.save(nib.Nifti1Image(volume, AFFINE), folder / f"{image}.nii.gz")


def draw_scan(
    anatomy: Anatomy, *, atrophy: float, frontal: float, nuisance: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw one scan.

    Args:
        anatomy: of `build_anatomy`.
        atrophy: in standard deviations of the level; 0 is the template.
        frontal: the nuisance anatomy, in its own standard deviations.
        nuisance: strength of shift, scale, gain, bias field and noise; 1 is light, 0 none.
        rng: of that nuisance.
    Returns:
        (48, 56, 48) int16 in RAS order; 0 outside the brain, at least 1 inside.
    """
    shift = rng.normal(scale=SHIFT * nuisance, size=3)
    scale = 1 + rng.normal(scale=SCALE * nuisance, size=3)
    source = anatomy.points + atrophy * anatomy.atrophy + frontal * anatomy.frontal  # (P, 3) mm
    voxels = (source * scale + shift) @ anatomy.inverse[:3, :3].T + anatomy.inverse[:3, 3]
    values = ndimage.map_coordinates(anatomy.template, voxels.T, order=1)
    values *= 1 - DARKEN * atrophy * anatomy.hippocampus
    gain = np.exp(rng.normal(scale=GAIN * nuisance))
    slope = rng.normal(scale=BIAS * nuisance, size=3) / BIAS_MM  # share per mm along each axis
    values *= gain * (1 + anatomy.points @ slope)
    values += rng.normal(scale=NOISE * nuisance, size=values.shape)
    volume = np.zeros(SHAPE, np.int16)
    volume[anatomy.mask] = np.clip(np.rint(BRIGHT * values), 1, np.iinfo(np.int16).max)  # brain is never 0
    return volume


def build_anatomy() -> Anatomy:
    """Load the template and lay out where it shrinks, widens and varies; arrays in mm, on the cohort's own grid."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template  # slow to import

    image = load_mni152_template(resolution=2)
    inverse = np.linalg.inv(image.affine)
    points = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    mask = _sample(load_mni152_brain_mask(resolution=2).get_fdata(), inverse, points, order=0) > 0
    brain = points[mask]  # (P, 3)
    (left, left_offset), (right, right_offset) = (_hippocampus(brain, side) for side in (-1, 1))
    distances = _distance_to_ventricles(image)
    distance = _sample(distances, inverse, brain)  # (P,)
    outward = np.stack([_sample(part, inverse, brain) for part in np.gradient(distances, TEMPLATE_MM)], axis=-1)
    near = np.exp(-((distance / NEAR_MM) ** 2))  # 1 at the ventricles' surface
    frontal = np.exp(-0.5 * (((brain - [0, 48, 22]) / [30, 16, 20]) ** 2).sum(axis=-1))  # 1 at the lobes' centre
    labels = np.zeros(SHAPE, np.uint8)
    labels[mask] = np.select([left > 0.5, right > 0.5, distance < 2.0, frontal > 0.6], list(REGIONS), 0)
    return Anatomy(
        template=ndimage.gaussian_filter(image.get_fdata(), BLUR),
        inverse=inverse,
        mask=mask,
        points=brain,
        atrophy=SHRINK * (left_offset + right_offset) - WIDEN * near[:, None] * outward,
        frontal=FRONTAL * frontal[:, None] * _unit(brain - [0, 10, 0]),
        hippocampus=left + right,
        labels=labels,
    )


def _sample(values: np.ndarray, inverse: np.ndarray, points: np.ndarray, order: int = 1) -> np.ndarray:
    """(...) values of a volume at points, (..., 3) RAS mm; linearly, or the nearest voxel's with order 0."""
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    return ndimage.map_coordinates(np.asarray(values, float), np.moveaxis(voxels, -1, 0), order=order)


def _hippocampus(points: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """One hippocampus, a tilted ellipsoid, at points, (P, 3) RAS mm; side -1 is left, 1 right.

    Returns:
        (P,) its weight, 1 inside; (P, 3) mm, the offset from its long axis, fading outside.
    """
    axis = _unit(np.array([side * -0.25, 0.85, -0.45]))  # from the tail forward and down to the head
    offset = points - [side * 27.0, -22.0, -14.0]
    along = offset @ axis
    across = offset - along[:, None] * axis
    radius = np.sqrt((along / 19.0) ** 2 + (across**2).sum(axis=-1) / 7.5**2)  # 1 at the surface
    weight = 1 / (1 + np.exp((radius - 1) * 8))
    fading = np.exp(-0.5 * np.maximum(radius - 0.6, 0) ** 2 / 0.5**2)
    return weight, fading[:, None] * across


def _distance_to_ventricles(image: nib.Nifti1Image) -> np.ndarray:
    """Signed distance from the lateral ventricles' surface, mm, on the template's voxels, smoothed; negative inside."""
    values = image.get_fdata()
    axes = (np.arange(n) * TEMPLATE_MM + image.affine[i, 3] for i, n in enumerate(values.shape))
    x, y, z = np.meshgrid(*axes, indexing="ij")
    box = (np.abs(x) < 36) & (-46 < y) & (y < 32) & (0 < z) & (z < 32)
    parts, _ = ndimage.label(box & (values < 0.5) & (values > 0.05))
    inside_both = [[8, -8], [-10, -10], [20, 20], [1, 1]]  # RAS mm: a point in either ventricle
    voxels = np.rint(np.linalg.inv(image.affine) @ inside_both).astype(int)[:3]
    ventricles = np.isin(parts, parts[tuple(voxels)]) & (parts > 0)
    outside, inside = ndimage.distance_transform_edt(~ventricles), ndimage.distance_transform_edt(ventricles)
    return ndimage.gaussian_filter(TEMPLATE_MM * (outside - inside), 1.0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; one of length 0 stays as it is."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
