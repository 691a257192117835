"""The embedded cohort: brains that shrink at known places and rates, and whom that will make demented when.

Each scan is the MNI152 template (nilearn's, skull-stripped) under known atrophy a(t) = level + rate * t, which
narrows and darkens the hippocampus and widens the lateral ventricles, under nuisance that has nothing to do with the
hazard. The time left after the last visit is Weibull with log-hazard `LEVEL_EFFECT * level + RATE_EFFECT * z`, times
the cohort's effect, where `rate = RATE * exp(RATE_SPREAD * z)`: one scan shows a(t), and only several show the rate.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import ndimage
from tqdm import tqdm

from runs.files import written_whole

SHAPE = (48, 56, 48)  # voxels
AFFINE = np.array([[4.0, 0, 0, -94], [0, 4.0, 0, -126], [0, 0, 4.0, -82], [0, 0, 0, 1]])  # RAS, MNI, mm
REGIONS = {1: "hippocampus left", 2: "hippocampus right", 3: "lateral ventricles", 4: "nuisance: frontal lobes"}
ATROPHY_LABELS = (1, 2, 3)  # of truth_regions.nii.gz; 4 is where the nuisance anatomy varies
LEVEL_EFFECT, RATE_EFFECT = 0.7, 1.4  # of the level (its sd is 1) and of the rate's z-score on the log-hazard
RATE, RATE_SPREAD = 0.4, 0.6  # median atrophy a year, in sd of the level; sd of its logarithm
SHAPE_WEIBULL, SCALE_WEIBULL = 1.4, 8.0  # of the time left at log-hazard 0; years
FOLLOW_UP = (2.0, 8.0)  # years seen after the last visit, uniform
SHRINK = 0.16  # of the hippocampus' width, per unit of atrophy
DARKEN = 0.07  # of the hippocampus' intensity, per unit of atrophy: partial volume with fluid
WIDEN = 1.2  # mm by which the ventricles' surface moves, per unit of atrophy
SHIFT, SCALE, GAIN, BIAS, NOISE = 0.6, 0.01, 0.05, 0.02, 0.03  # mm, then shares: sd of the light nuisance
FRONTAL = 1.5  # mm: sd of the age-like shrinkage of the frontal lobes
BRIGHT = 1000.0  # int16 value of the template's brightest voxel


@dataclass(frozen=True)
class Anatomy:
    """The template and its known deformations, on the voxels of the cohort's grid that hold brain."""

    template: np.ndarray  # (X, Y, Z) at 2 mm, smoothed to the 4 mm grid
    inverse: np.ndarray  # (4, 4) world -> the template's voxels
    mask: np.ndarray  # (48, 56, 48) bool
    points: np.ndarray  # (P, 3) mm, of the voxels in the mask
    atrophy: np.ndarray  # (P, 3) mm per unit: where the tissue at a point comes from
    frontal: np.ndarray  # (P, 3) mm, likewise, for the nuisance
    hippocampus: np.ndarray  # (P,) 0 ... 1
    labels: np.ndarray  # (48, 56, 48) of REGIONS


def write_cohort(
    folder: str | Path,
    *,
    num_subjects: int = 300,
    nuisance: float = 1.0,
    effect: float = 1.0,
    seed: int = 0,
    jobs: int = -1,
) -> Path:
    """Write the cohort: `cohort.csv`, `mri/*.nii.gz`, `truth.csv` and `truth_regions.nii.gz`.

    Args:
        folder: made whole or not at all; one that is there already is kept as it is.
        num_subjects: each with 3 visits within 18 months.
        nuisance: 1 is light; multiplies everything that has nothing to do with the hazard; 0: none.
        effect: multiplies the log-hazard; 0: brains shrink as ever, and it tells nobody's event.
        seed: the same seed gives the same bytes, and the same first subjects however many there are.
        jobs: processes; -1: one a core.
    Returns:
        The path of `cohort.csv`.
    Raises:
        OSError: the folder can't be written.
    """
    folder = Path(folder)
    if not folder.exists():
        with written_whole(folder) as part:
            (part / "mri").mkdir(parents=True)
            truth = draw_truth(num_subjects, effect=effect, seed=seed)
            _write_cohort(part, truth, nuisance=nuisance, seed=seed, jobs=jobs)
    return folder / "cohort.csv"


def draw_truth(num_subjects: int, *, effect: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Who shrinks how fast, and when the event comes: a row a scan, without any image.

    Returns:
        Columns `subjectid, imageid, visit_time, time, convert_status` as in the cohort's table, then `atrophy` at the
        visit, `level`, `rate` (a year), `log_hazard` of the time left after the last visit, and the baseline's
        `weibull_shape` and `weibull_scale` (years): S(t) = exp(-exp(log_hazard) * (t / scale) ** shape).
    """
    subjects = range(1, num_subjects + 1)
    return pd.concat([_draw_subject(subject, effect, seed) for subject in subjects], ignore_index=True)


def _draw_subject(subject: int, effect: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([seed, subject, 0])
    visits = np.round([0.0, rng.uniform(0.4, 0.8), rng.uniform(1.1, 1.5)], 3)
    level, z = rng.normal(size=2)
    rate = RATE * np.exp(RATE_SPREAD * z)
    log_hazard = effect * (LEVEL_EFFECT * level + RATE_EFFECT * z)
    left = SCALE_WEIBULL * (rng.exponential() / np.exp(log_hazard)) ** (
        1 / SHAPE_WEIBULL
    )  # counted from the last visit
    follow_up = rng.uniform(*FOLLOW_UP)
    return pd.DataFrame(
        {
            "subjectid": f"S{subject:04d}",
            "imageid": [f"S{subject:04d}_v{visit}" for visit in (1, 2, 3)],
            "visit_time": visits,
            "time": np.round(visits[-1] + max(min(left, follow_up), 0.01), 3),
            "convert_status": int(left <= follow_up),
            "atrophy": level + rate * visits,
            "level": level,
            "rate": rate,
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
        aged = frontal + 0.1 * nuisance * time
        volume = draw_scan(anatomy, atrophy=atrophy, frontal=aged, nuisance=nuisance, rng=rng)
        nib.save(nib.Nifti1Image(volume, AFFINE), folder / f"{image}.nii.gz")


def draw_scan(
    anatomy: Anatomy, *, atrophy: float, frontal: float, nuisance: float, rng: np.random.Generator
) -> np.ndarray:
    """One scan: (48, 56, 48) int16, 0 outside the brain.

    Args:
        anatomy: of `build_anatomy`.
        atrophy: 0 is the template; 1 a subject a standard deviation worse.
        frontal: the nuisance anatomy, in its own standard deviations.
        nuisance: strength of shift, scale, gain, bias field and noise.
        rng: of that nuisance.
    """
    shift = rng.normal(scale=SHIFT * nuisance, size=3)
    scale = 1 + rng.normal(scale=SCALE * nuisance, size=3)
    source = anatomy.points + atrophy * anatomy.atrophy + frontal * anatomy.frontal
    voxels = (source * scale + shift) @ anatomy.inverse[:3, :3].T + anatomy.inverse[:3, 3]
    values = ndimage.map_coordinates(anatomy.template, voxels.T, order=1)
    values *= 1 - DARKEN * atrophy * anatomy.hippocampus
    gain = np.exp(rng.normal(scale=GAIN * nuisance))
    slope = rng.normal(scale=BIAS * nuisance, size=3) / 70  # the field changes linearly, by a share per 70 mm
    values *= gain * (1 + anatomy.points @ slope)
    values += rng.normal(scale=NOISE * nuisance, size=values.shape)
    volume = np.zeros(SHAPE, np.int16)
    volume[anatomy.mask] = np.clip(np.rint(BRIGHT * values), 1, np.iinfo(np.int16).max)  # brain is never 0
    return volume


def build_anatomy() -> Anatomy:
    """Load the template and lay out where it shrinks, widens and varies."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template  # slow to import

    image = load_mni152_template(resolution=2)
    template = ndimage.gaussian_filter(image.get_fdata(), 0.85)  # voxels of 2 mm: half the 4 mm grid's width
    inverse = np.linalg.inv(image.affine)
    points = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]

    def sample(values: np.ndarray, at: np.ndarray = points, order: int = 1) -> np.ndarray:
        voxels = at @ inverse[:3, :3].T + inverse[:3, 3]
        return ndimage.map_coordinates(np.asarray(values, float), np.moveaxis(voxels, -1, 0), order=order)

    mask = sample(load_mni152_brain_mask(resolution=2).get_fdata(), order=0) > 0
    brain = points[mask]
    sides = [_hippocampus(brain, side) for side in (-1, 1)]
    distance = _distance_to_ventricles(image)  # mm, negative inside
    outward = np.stack([sample(part, brain) for part in np.gradient(distance, 2.0)], axis=-1)
    near = np.exp(-((sample(distance, brain) / 6.0) ** 2))
    frontal_weight = np.exp(-0.5 * (((brain - [0, 48, 22]) / [30, 16, 20]) ** 2).sum(axis=-1))
    labels = np.zeros(SHAPE, np.uint8)
    labels[mask] = np.select(
        [sides[0][0] > 0.5, sides[1][0] > 0.5, sample(distance, brain) < 2.0, frontal_weight > 0.6], list(REGIONS), 0
    )
    return Anatomy(
        template=template,
        inverse=inverse,
        mask=mask,
        points=brain,
        atrophy=SHRINK * (sides[0][1] + sides[1][1]) - WIDEN * near[:, None] * outward,
        frontal=FRONTAL * frontal_weight[:, None] * _unit(brain - [0, 10, 0]),
        hippocampus=sides[0][0] + sides[1][0],
        labels=labels,
    )


def _hippocampus(points: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(P,) weight of a tilted ellipsoid about the hippocampus, 1 within; (P, 3) offset from its long axis, fading."""
    axis = _unit(np.array([side * -0.25, 0.85, -0.45]))  # from the tail, forward and down to the head
    offset = points - [side * 27.0, -22.0, -14.0]
    along = offset @ axis
    across = offset - along[:, None] * axis
    radius = np.sqrt((along / 19.0) ** 2 + (across**2).sum(axis=-1) / 7.5**2)
    weight = 1 / (1 + np.exp((radius - 1) * 8))
    fading = np.exp(-0.5 * np.maximum(radius - 0.6, 0) ** 2 / 0.5**2)
    return weight, fading[:, None] * across


def _distance_to_ventricles(image: nib.Nifti1Image) -> np.ndarray:
    """Signed distance in mm from the lateral ventricles' surface at 2 mm, smoothed; negative inside."""
    values = image.get_fdata()
    x, y, z = np.meshgrid(*(np.arange(n) * 2.0 + image.affine[i, 3] for i, n in enumerate(values.shape)), indexing="ij")
    box = (np.abs(x) < 36) & (-46 < y) & (y < 32) & (0 < z) & (z < 32)
    parts, _ = ndimage.label(box & (values < 0.5) & (values > 0.05))
    at = np.rint(np.linalg.inv(image.affine) @ [[8, -8], [-10, -10], [20, 20], [1, 1]]).astype(int)[:3]
    ventricles = np.isin(parts, parts[tuple(at)]) & (parts > 0)
    outside, inside = ndimage.distance_transform_edt(~ventricles), ndimage.distance_transform_edt(ventricles)
    return ndimage.gaussian_filter(2.0 * (outside - inside), 1.0)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)  # a point at the centre stays
