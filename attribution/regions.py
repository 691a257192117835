"""Anatomical regions: parcels or an atlas, sums of a map by region, Shapley values with regions as players."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to

from attribution.evidence import has_gap
from cohort.scans import open_scan, read_greys
from cohort.table_files import read_rows
from runs.errors import InputError

ELSEWHERE = "elsewhere"  # name of the voxels of no region, label 0
LEAST_COVERED = 0.25  # share of the brain that an atlas in the scans' space labels at least
LARGEST_LABEL = 2**24  # beyond it two whole numbers may be the same in float32
CHUNK = 8  # volumes in memory at a time
MEASURES = ("deletion", "insertion", "deletion_random", "insertion_random")  # keys of metrics.json
Predict = Callable[[np.ndarray], np.ndarray]  # (B, X, Y, Z, 1) -> (B,) log-hazard


@dataclass(frozen=True)
class Regions:
    """Which region each voxel of the network's grid belongs to."""

    labels: np.ndarray  # (X, Y, Z) int; 0: no region
    names: dict[int, str]  # of each label above 0


# ---- Where regions come from: the brain itself, or an atlas --------------------------------------------------


def make_parcels(brain: np.ndarray, affine: np.ndarray, *, num_parcels: int = 40, seed: int = 0) -> Regions:
    """Cut the brain into compact parcels of about equal size, each beside its mirror image if x = 0 is the midline.

    Args:
        brain: (X, Y, Z) bool.
        affine: (4, 4) voxel -> RAS mm.
        num_parcels: an even number; half of them on each side.
        seed: of the k-means.
    Returns:
        Labels (X, Y, Z); the names tell side, place and centre in mm, such as `left anterior inferior lateral (-34, 28,
        -12)`; without a midline, no side.
    Raises:
        InputError: fewer voxels than parcels.
    """
    from sklearn.cluster import KMeans  # slow to import

    check_parcels(brain, num_parcels=num_parcels)
    points = nib.affines.apply_affine(affine, np.argwhere(brain))  # (P, 3) mm
    has_sides = has_midline(brain, affine)
    folded = np.abs(points) * [1, 0, 0] + points * [0, 1, 1] if has_sides else points  # (P, 3): left onto right
    clusters = KMeans(num_parcels // 2 if has_sides else num_parcels, n_init=1, random_state=seed).fit_predict(folded)
    labels = np.zeros(brain.shape, np.int16)
    labels[brain] = 2 * clusters + np.where(points[:, 0] < 0, 1, 2) if has_sides else clusters + 1
    centres = {int(label): points[labels[brain] == label].mean(axis=0) for label in np.unique(labels[brain])}
    return Regions(labels, {label: _describe(centre, points, has_sides) for label, centre in centres.items()})


def check_parcels(brain: np.ndarray, *, num_parcels: int = 40) -> None:
    """Refuse a brain that can't be cut into parcels.

    Args:
        brain: (X, Y, Z) bool.
        num_parcels: as for `make_parcels`.
    Raises:
        InputError: fewer voxels than parcels.
    """
    if (num_voxels := np.count_nonzero(brain)) < num_parcels:
        raise InputError(
            f"brain: expected at least {num_parcels} voxels, received {num_voxels} on the network's grid: too few for "
            "regions to explain by. Set a larger TARGET_SHAPE, or STAGES without explain."
        )


def has_midline(brain: np.ndarray, affine: np.ndarray) -> bool:
    """Whether x = 0 lies within the middle half of a brain, so that it can tell left from right.

    A scan whose origin is a corner, or a region cut out of one side, has its brain elsewhere.

    Args:
        brain: (X, Y, Z) bool.
        affine: (4, 4) voxel -> RAS mm.
    """
    x = nib.affines.apply_affine(affine, np.argwhere(brain))[:, 0]  # (P,) mm
    return len(x) > 0 and abs(x.min() + x.max()) / 2 <= (x.max() - x.min()) / 4


def _describe(centre: np.ndarray, points: np.ndarray, has_sides: bool) -> str:
    """Name a parcel by the thirds of the brain's points (P, 3) mm in which its centre (3,) mm lies."""
    words = [] if not has_sides else ["left"] if centre[0] < 0 else ["right"]
    for axis, (low, high) in ((1, ("posterior", "anterior")), (2, ("inferior", "superior"))):
        thirds = np.quantile(points[:, axis], [1 / 3, 2 / 3])
        words += [low] if centre[axis] < thirds[0] else [high] if centre[axis] > thirds[1] else []
    if has_sides:
        words.append("lateral" if abs(centre[0]) > np.median(np.abs(points[:, 0])) else "medial")
    return " ".join([*(words or ["central"]), f"({', '.join(f'{mm:.0f}' for mm in centre)})"])


def read_atlas(path: str | Path, brain: np.ndarray, affine: np.ndarray) -> Regions:
    """Read a label image in the scans' space; one on another grid is resampled to the nearest label.

    Args:
        path: NIfTI of whole numbers; 0 is no region. A CSV of the same name beside it, with the columns `label` and
            `region`, names the labels; a label without a name is called by its number.
        brain: (X, Y, Z) bool on the network's grid.
        affine: (4, 4) of that grid, voxel -> RAS mm.
    Returns:
        The regions on the network's grid, (X, Y, Z).
    Raises:
        InputError: not a label image, one that covers too little of the brain to lie in the same space, or names
            that can't be read.
    """
    image, names = read_labels(path)
    labels = np.asarray(resample_from_to(image, (brain.shape, affine), order=0).dataobj).astype(np.int32)
    covered = np.count_nonzero(labels[brain]) / np.count_nonzero(brain)
    if covered < LEAST_COVERED:
        raise InputError(
            f"ATLAS: {path}: expected labels in the scans' space, received an image that covers {covered:.0%} of the "
            "brain. Register the atlas to the scans."
        )
    present = np.unique(labels[labels > 0]).tolist()
    return Regions(labels, {label: names.get(label, str(label)) for label in present})


def read_labels(path: str | Path) -> tuple[nib.Nifti1Image, dict[int, str]]:
    """Read a label image and the names of its labels, wherever it lies.

    Args:
        path: as for `read_atlas`.
    Returns:
        The labels, (X, Y, Z) int32 on a grid of their own; and the names that the CSV beside it has.
    Raises:
        InputError: not a label image, or names that can't be read.
    """
    path = Path(path)
    try:
        scan = open_scan(path)
        values = read_greys(scan)
    except InputError as error:
        raise InputError(f"ATLAS: {path}: {error}") from error
    if not np.array_equal(values, np.rint(values)) or values.min() < 0 or values.max() > LARGEST_LABEL:
        raise InputError(f"ATLAS: {path}: expected a 3-D image of whole numbers from 0, received another.")
    names = _read_names(path.with_name(path.name.split(".nii")[0] + ".csv"))
    return nib.Nifti1Image(values.astype(np.int32), scan.affine), names


def _read_names(path: Path) -> dict[int, str]:
    """Names of labels, from the CSV beside an atlas; none without such a file."""
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


# ---- What a map or the network gives by region ---------------------------------------------------------------


def sum_by_region(values: np.ndarray, regions: Regions) -> pd.DataFrame:
    """Sum a map by region.

    Args:
        values: (X, Y, Z) signed map, log-hazard per voxel.
        regions: on the same grid.
    Returns:
        A row a region and one for `elsewhere`, the largest |attribution| first: `label`, `region`, `num_voxels`,
        `attribution` (signed, log-hazard; the column sums to the map's sum), `absolute`, and `share` of all |map|, 0
        to 1.
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
    predict: Predict, volume: np.ndarray, background: np.ndarray, regions: Regions, *, seed: int, rounds: int = 1
) -> pd.Series:
    """Shapley values with regions as players; a region that does not take part looks as in a background scan.

    phi_i = mean over orders of players of v(those before i, and i) - v(those before i), where v(S) is the log-hazard
    with the volume in the regions S and a background scan elsewhere. Orders are drawn in pairs, each with its reverse,
    equally often for each background. Whatever is drawn, the values sum to f(volume) - mean f(background).

    Args:
        predict: (B, X, Y, Z, 1) -> (B,) log-hazard.
        volume: (X, Y, Z, 1) float32.
        background: (B, X, Y, Z, 1) float32.
        regions: the players; the voxels of no region are one more.
        seed: of the orders.
        rounds: pairs of orders for each background.
    Returns:
        (R,) value of each region, log-hazard; the index is its label, 0 for `elsewhere`.
    Source: Castro et al. (2009); antithetic orders by Mitchell et al. (2022), JMLR 23, 43.
    """
    rng = np.random.default_rng(seed)
    players = np.array([0, *regions.names])
    total = np.zeros(len(players))
    for other in background:
        for _ in range(rounds):
            order = rng.permutation(len(players))
            for ordered in (order, order[::-1]):
                curve = replace_regions(predict, other, volume, regions, players[ordered])
                total[ordered] += np.diff(curve)
    return pd.Series(total / (2 * rounds * len(background)), index=players, name="shapley")


def replace_regions(
    predict: Predict, before: np.ndarray, after: np.ndarray, regions: Regions, order: np.ndarray
) -> np.ndarray:
    """Predict while the regions of one volume are replaced, one by one, by those of another.

    Args:
        predict: (B, X, Y, Z, 1) -> (B,) log-hazard.
        before: (X, Y, Z, 1) float32, the volume at the start.
        after: (X, Y, Z, 1) float32, the volume at the end.
        regions: on the same grid.
        order: (R,) labels, in the order in which they are replaced.
    Returns:
        (R + 1,) log-hazard after 0 ... R replacements.
    """
    rank = np.full(int(max(regions.labels.max(), order.max())) + 1, len(order))
    rank[order] = np.arange(len(order))
    turn = rank[regions.labels][..., None]  # (X, Y, Z, 1): how many regions are replaced before this voxel's
    steps = np.arange(len(order) + 1)
    chunks = [steps[at : at + CHUNK] for at in range(0, len(steps), CHUNK)]
    return np.concatenate(
        [predict(np.stack([np.where(turn < step, after, before) for step in chunk])) for chunk in chunks]
    )


def deletion_insertion(
    predict: Predict,
    volume: np.ndarray,
    absent: np.ndarray,
    regions: Regions,
    attribution: pd.Series,
    *,
    seed: int,
    num_random: int = 3,
) -> dict[str, float | None]:
    """Does the log-hazard change soonest if the regions that a map calls important are taken out or put in first?

    By region, because single voxels that are taken out mislead.

    Args:
        predict: (B, X, Y, Z, 1) -> (B,) log-hazard.
        volume: (X, Y, Z, 1) float32.
        absent: (X, Y, Z, 1) float32, what a region that is taken out looks like: the background's mean.
        regions: what is taken out or put in.
        attribution: (R,) signed sum of the map over each region; the index is the label.
        seed: of the orders to compare with.
        num_random: so many orders to compare with, drawn at random.
    Returns:
        Mean share of the gap f(volume) - f(absent) that is left while the regions are taken out, and that is reached
        while they are put in, most important first: `deletion` should be below `deletion_random`, `insertion` above
        `insertion_random`. None if there is no gap.
    Source: Petsiuk et al. (2018), arXiv 1806.07421, with regions.
    """
    whole, without = predict(np.stack([volume, absent]))
    if not has_gap(float(whole), float(without)):
        return dict.fromkeys(MEASURES)
    gap, base = float(whole - without), float(predict(absent[None])[0])
    rng = np.random.default_rng(seed)
    by_importance = attribution.index.to_numpy()[np.argsort(-np.sign(gap) * attribution.to_numpy(), kind="stable")]

    def areas(order: np.ndarray) -> tuple[float, float]:
        deletion = replace_regions(predict, volume, absent, regions, order)
        insertion = replace_regions(predict, absent, volume, regions, order)
        return float((deletion.mean() - base) / gap), float((insertion.mean() - base) / gap)

    at_random = np.mean([areas(rng.permutation(by_importance)) for _ in range(num_random)], axis=0).tolist()
    return dict(zip(MEASURES, [*areas(by_importance), *at_random], strict=True))


# ---- Many subjects -------------------------------------------------------------------------------------------


def cohort_table(
    tables: Mapping[str, pd.DataFrame], event: Mapping[str, bool], *, seed: int, num_resamples: int = 1000
) -> pd.DataFrame:
    """Mean attribution of each region over subjects, by outcome, with a 95 % bootstrap interval over the N subjects.

    Args:
        tables: of `sum_by_region`, by subject.
        event: whether each subject converted.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.
    Returns:
        A row a region and group (`all`, `converted`, `stable`): `region, group, num_subjects`, then `attribution` and
        `absolute`, both log-hazard, each with `_low` and `_high`; NaN intervals for a group of one subject.
    """
    rng = np.random.default_rng(seed)
    subjects = list(tables)
    converted = np.array([bool(event[subject]) for subject in subjects])
    names = next(iter(tables.values()))["region"].sort_values().to_list()
    by_region = [tables[subject].set_index("region").loc[names] for subject in subjects]
    columns = {name: np.stack([table[name] for table in by_region]) for name in ("attribution", "absolute")}  # (N, R)
    parts = []
    for group, chosen in (("all", converted | True), ("converted", converted), ("stable", ~converted)):
        if not chosen.any():
            continue
        part = pd.DataFrame({"region": names, "group": group, "num_subjects": int(chosen.sum())})
        draws = rng.multinomial(chosen.sum(), np.full(chosen.sum(), 1 / chosen.sum()), size=num_resamples)  # (K, n)
        for column, all_values in columns.items():
            values = all_values[chosen]  # (n, R)
            part[column] = values.mean(axis=0)
            low, high = np.quantile(draws @ values / len(values), [0.025, 0.975], axis=0)
            part[f"{column}_low"], part[f"{column}_high"] = (low, high) if len(values) > 1 else (np.nan, np.nan)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
