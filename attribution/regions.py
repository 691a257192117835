"""Maps by anatomical region: parcels or an atlas, sums of a map, Shapley values with regions as players."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to

from cohort.scans import open_scan, read_greys
from cohort.table_files import read_rows
from runs.errors import InputError

ELSEWHERE = "elsewhere"  # voxels of no region: label 0
LEAST_COVERED = 0.25  # of the brain, by an atlas in the scans' space
LARGEST_LABEL = 2**24  # beyond it two whole numbers may be one in float32
CHUNK = 8  # volumes in memory at a time
Predict = Callable[[np.ndarray], np.ndarray]  # (B, X, Y, Z, 1) -> (B,)


@dataclass(frozen=True)
class Regions:
    """Which region each voxel of the network's grid belongs to."""

    labels: np.ndarray  # (X, Y, Z) int; 0: none
    names: dict[int, str]  # of each label above 0


def make_parcels(brain: np.ndarray, affine: np.ndarray, *, num_parcels: int = 40, seed: int = 0) -> Regions:
    """Cut the brain into compact parcels of about equal size, each beside its mirror image.

    Args:
        brain: (X, Y, Z) bool.
        affine: (4, 4) voxel -> RAS mm; x = 0 is the midline.
        num_parcels: an even number; half of them on each side.
        seed: of the k-means.
    Returns:
        Parcels named by side, place and centre in mm, such as `left anterior inferior lateral (-34, 28, -12)`.
    Raises:
        ValueError: fewer voxels than parcels.
    """
    from sklearn.cluster import KMeans  # slow to import

    points = nib.affines.apply_affine(affine, np.argwhere(brain))  # (P, 3)
    left = points[:, 0] < 0
    folded = np.abs(points) * [1, 0, 0] + points * [0, 1, 1]
    if len(points) < num_parcels:
        raise ValueError(f"brain: expected at least {num_parcels} voxels, received {len(points)}")
    places = KMeans(num_parcels // 2, n_init=1, random_state=seed).fit_predict(folded)
    labels = np.zeros(brain.shape, np.int16)
    labels[brain] = 2 * places + np.where(left, 1, 2)
    centres = {int(label): points[labels[brain] == label].mean(axis=0) for label in np.unique(labels[brain])}
    return Regions(labels, {label: _describe(centre, points) for label, centre in centres.items()})


def _describe(centre: np.ndarray, points: np.ndarray) -> str:
    """A parcel's name by the thirds of the brain that its centre lies in."""
    words = ["left" if centre[0] < 0 else "right"]
    for axis, (low, high) in ((1, ("posterior", "anterior")), (2, ("inferior", "superior"))):
        thirds = np.quantile(points[:, axis], [1 / 3, 2 / 3])
        words += [low] if centre[axis] < thirds[0] else [high] if centre[axis] > thirds[1] else []
    words.append("lateral" if abs(centre[0]) > np.median(np.abs(points[:, 0])) else "medial")
    return f"{' '.join(words)} ({', '.join(f'{mm:.0f}' for mm in centre)})"


def read_atlas(path: str | Path, brain: np.ndarray, affine: np.ndarray) -> Regions:
    """Read a label image in the scans' space; on another grid it is resampled to the nearest label.

    Args:
        path: NIfTI of whole numbers; 0 is no region. A CSV of the same name beside it, `label,region`, names them;
            a label without a name is called by its number.
        brain: (X, Y, Z) bool on the network's grid.
        affine: (4, 4) of that grid.
    Returns:
        The regions on the network's grid.
    Raises:
        InputError: not a label image, one that covers too little of the brain to lie in the same space, or names
            that can't be read.
    """
    path = Path(path)
    try:
        scan = open_scan(path)
        values = read_greys(scan)
    except InputError as error:
        raise InputError(f"ATLAS: {path}: {error}") from error
    if not np.array_equal(values, np.rint(values)) or values.min() < 0 or values.max() > LARGEST_LABEL:
        raise InputError(f"ATLAS: {path}: expected a 3-D image of whole numbers from 0, received another.")
    image = nib.Nifti1Image(values.astype(np.int32), scan.affine)
    labels = np.asarray(resample_from_to(image, (brain.shape, affine), order=0).dataobj).astype(np.int32)
    covered = np.count_nonzero(labels[brain]) / np.count_nonzero(brain)
    if covered < LEAST_COVERED:
        raise InputError(
            f"ATLAS: {path}: expected labels in the scans' space, received an image that covers {covered:.0%} of the "
            "brain. Register the atlas to the scans."
        )
    names = _read_names(path.with_name(path.name.split(".nii")[0] + ".csv"))
    present = np.unique(labels[labels > 0]).tolist()
    return Regions(labels, {label: names.get(label, str(label)) for label in present})


def _read_names(path: Path) -> dict[int, str]:
    if not path.exists():
        return {}
    table, problems = read_rows(path, text=("label", "region"))
    if not {"label", "region"} <= set(table.columns) or not table["label"].str.fullmatch(r"\d{1,9}").all():
        received = ", ".join(table.columns)
        raise InputError(f"ATLAS: {path}: expected columns label (whole numbers) and region. Received: {received}.")
    labels = table["label"].astype(int)
    problems += [f"row {row}: label {label} stands twice" for row, label in labels[labels.duplicated()].items()]
    if problems:
        raise InputError(f"ATLAS: {path}: {'; '.join(problems)}.")
    return dict(zip(labels, table["region"], strict=True))


def sum_by_region(values: np.ndarray, regions: Regions) -> pd.DataFrame:
    """A map's sums: a row a region, the largest first; the column `attribution` sums to the map's sum.

    Returns:
        `label`, `region`, `num_voxels`, `attribution` (signed, log-hazard), `absolute`, and `share` of all |map|.
    """
    flat, mass = regions.labels.ravel(), values.ravel().astype(np.float64)
    keys = [0, *regions.names]
    table = pd.DataFrame({"label": keys, "region": [ELSEWHERE, *regions.names.values()]})
    table["num_voxels"] = np.bincount(flat, minlength=max(keys) + 1)[keys]
    table["attribution"] = np.bincount(flat, mass, minlength=max(keys) + 1)[keys]
    table["absolute"] = np.bincount(flat, np.abs(mass), minlength=max(keys) + 1)[keys]
    table["share"] = table["absolute"] / max(table["absolute"].sum(), np.finfo(float).tiny)
    return table.sort_values("attribution", key=np.abs, ascending=False, kind="stable").reset_index(drop=True)


def region_shapley(
    predict: Predict, volume: np.ndarray, background: np.ndarray, regions: Regions, *, rounds: int = 1, seed: int = 0
) -> pd.Series:
    """Shapley values with regions as players; a region that does not play looks like the background's.

    Orders are drawn in pairs, each with its reverse, equally often for each background. Whatever is drawn, the values
    sum to f(volume) - mean f(background).

    Args:
        predict: (B, X, Y, Z, 1) -> (B,) log-hazard.
        volume: (X, Y, Z, 1) float32.
        background: (B, X, Y, Z, 1) float32.
        regions: the players; the voxels of no region are one more.
        rounds: pairs of orders for each background.
        seed: of the orders.
    Returns:
        The value of each region, log-hazard; the index is its label, 0 for `elsewhere`.
    Source: Castro et al. (2009); antithetic orders by Mitchell et al. (2022), JMLR 23, 43.
    """
    rng = np.random.default_rng(seed)
    players = np.array([0, *regions.names])
    total = np.zeros(len(players))
    for other in background:
        for _ in range(rounds):
            order = rng.permutation(len(players))
            for one in (order, order[::-1]):
                curve = switch_on(predict, volume, other, regions, players[one])
                total[one] += np.diff(curve)
    return pd.Series(total / (2 * rounds * len(background)), index=players, name="shapley")


def switch_on(
    predict: Predict, volume: np.ndarray, other: np.ndarray, regions: Regions, order: np.ndarray
) -> np.ndarray:
    """(R + 1,) log-hazard as the labels of `order` turn, one by one, from `other` (X, Y, Z, 1) into `volume`."""
    rank = np.full(int(max(regions.labels.max(), order.max())) + 1, len(order))
    rank[order] = np.arange(len(order))
    turn = rank[regions.labels][..., None]  # (X, Y, Z, 1): when each voxel turns
    steps = np.arange(len(order) + 1)
    chunks = [steps[at : at + CHUNK] for at in range(0, len(steps), CHUNK)]
    return np.concatenate(
        [predict(np.stack([np.where(turn < step, volume, other) for step in part])) for part in chunks]
    )


def deletion_insertion(
    predict: Predict,
    volume: np.ndarray,
    other: np.ndarray,
    regions: Regions,
    attribution: pd.Series,
    *,
    num_random: int = 3,
    seed: int = 0,
) -> dict[str, float | None]:
    """Does taking out what the map calls important change the log-hazard soonest? By region: voxels alone mislead.

    Args:
        predict: (B, X, Y, Z, 1) -> (B,) log-hazard.
        volume: (X, Y, Z, 1) float32.
        other: (X, Y, Z, 1) float32, what a region taken out looks like: the background's mean.
        regions: what is taken out.
        attribution: of each label, the index; signed.
        num_random: orders drawn at random to compare with.
        seed: of those orders.
    Returns:
        Mean share of the gap f(volume) - f(other) that is left while the regions go out, and that is there while they
        come in, most important first: `deletion` should be below `deletion_random`, `insertion` above
        `insertion_random`. None if there is no gap.
    Source: Petsiuk et al. (2018), arXiv 1806.07421, with regions.
    """
    gap = float(np.subtract(*predict(np.stack([volume, other]))))
    names = ("deletion", "insertion", "deletion_random", "insertion_random")
    if gap == 0:
        return dict.fromkeys(names)
    base = float(predict(other[None])[0])
    rng = np.random.default_rng(seed)
    best = attribution.index.to_numpy()[np.argsort(-np.sign(gap) * attribution.to_numpy(), kind="stable")]

    def areas(order: np.ndarray) -> tuple[float, float]:
        out = switch_on(predict, other, volume, regions, order)
        into = switch_on(predict, volume, other, regions, order)
        return float((out.mean() - base) / gap), float((into.mean() - base) / gap)

    chance = np.mean([areas(rng.permutation(best)) for _ in range(num_random)], axis=0).tolist()
    return dict(zip(names, [*areas(best), *chance], strict=True))


def cohort_table(
    tables: Mapping[str, pd.DataFrame], event: Mapping[str, bool], *, num_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean attribution of each region over subjects, by outcome, with a 95 % bootstrap interval over the subjects.

    Args:
        tables: of `sum_by_region`, by subject.
        event: whether each subject converted.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    Returns:
        A row a region and group (`all`, `converted`, `stable`): `region, group, num_subjects`, then `attribution` and
        `absolute`, each with `_low` and `_high`; NaN intervals for a group of one.
    """
    rng = np.random.default_rng(seed)
    subjects = list(tables)
    converted = np.array([bool(event[subject]) for subject in subjects])
    names = next(iter(tables.values()))["region"].sort_values().to_list()
    columns = ("attribution", "absolute")
    stacked = {c: np.stack([tables[s].set_index("region")[c].loc[names] for s in subjects]) for c in columns}  # (N, R)
    parts = []
    for group, chosen in (("all", converted | True), ("converted", converted), ("stable", ~converted)):
        if not chosen.any():
            continue
        part = pd.DataFrame({"region": names, "group": group, "num_subjects": int(chosen.sum())})
        draws = rng.multinomial(chosen.sum(), np.full(chosen.sum(), 1 / chosen.sum()), size=num_resamples)  # (K, N)
        for column in columns:
            values = stacked[column][chosen]
            part[column] = values.mean(axis=0)
            low, high = np.quantile(draws @ values / len(values), [0.025, 0.975], axis=0)
            part[f"{column}_low"], part[f"{column}_high"] = (low, high) if len(values) > 1 else (np.nan, np.nan)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
