"""Explanations on disk: signed NIfTI in the scan's own space, slices, GIFs and an offline viewer.

Drawn in neurological order, the subject's left on the left. Red raises the log-hazard, blue lowers it; colours are
symmetric about zero, which is transparent, and end at the 99.5th percentile of |map| inside the brain.
"""

import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from nibabel.processing import resample_from_to, resample_to_output
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from attribution.evidence import SMOOTHING_MM, smooth
from attribution.regions import cohort_table
from runs.files import write_json, written_whole

PERCENTILE = 99.5  # of |map| inside the brain: where the colours end
COLOURS = LinearSegmentedColormap.from_list(
    "lowers_raises", ["#9ff6ff", "#1f9bff", "#0a3cff", "#5a2a6e", "#ff1f0a", "#ff8a1f", "#fff59f"]
)
PLANES = ("axial", "coronal", "sagittal")
ACROSS = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}  # axes to the right and up
THROUGH = {"axial": 2, "coronal": 1, "sagittal": 0}
ENDS = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("P", "A")}  # at the left and the right edge
MM_A_PIXEL = 1.0
NUM_COLUMNS, NUM_FRAMES = 7, 36  # of frames at most: no two are alike
FRAME_MS = 100
VIEWER_MM = 2.0  # a voxel of the interactive page
GAP = 10  # pixels between the planes of a GIF
CLEAR = 0.1
BY_CHANCE = 3.3  # standard errors of a share of signs: beyond them at one voxel in 1000 by chance
OPAQUE = 0.75  # at most, so that the anatomy shows through
OUTLINE = np.array([235, 235, 235], np.uint8)
LEGEND = (
    "Red raises the log-hazard, blue lowers it; colours end at {limit:.2g}, the 99.5th percentile of |map| in the "
    "brain, and are clear below {clear:.2g}. Left is the subject's left."
)


@dataclass(frozen=True)
class Scene:
    """A scan, a map over it, and what is the same in every slice of the two."""

    grey: np.ndarray  # (X, Y, Z) 0 ... 1
    brain: np.ndarray  # (X, Y, Z) bool
    values: np.ndarray  # (X, Y, Z) float32 signed
    limit: float  # |value| at which the colours end
    affine: np.ndarray  # (4, 4) voxel -> RAS mm
    unit: str  # of the values
    clear: float  # share of the limit below which a colour is transparent

    @property
    def voxel_mm(self) -> np.ndarray:
        """(3,) size of a voxel along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def peak(self) -> tuple[int, ...]:
        """The voxel of the brain where |map| is largest."""
        return tuple(map(int, np.unravel_index(np.argmax(np.abs(self.values) * self.brain), self.values.shape)))

    def slices(self, plane: str) -> tuple[int, int]:
        """First and last slice that holds brain."""
        axis = THROUGH[plane]
        seen = np.flatnonzero(self.brain.any(axis=tuple(a for a in range(3) if a != axis)))
        return int(seen[0]), int(seen[-1])

    def millimetre(self, plane: str, index: int) -> float:
        """Where a slice lies along its axis, mm, through the middle of the grid."""
        voxel = (np.array(self.grey.shape) - 1) / 2
        voxel[THROUGH[plane]] = index
        return float(nib.affines.apply_affine(self.affine, voxel)[THROUGH[plane]])


def save_explanation(
    folder: str | Path,
    explanation: Mapping[str, Any],
    *,
    affine: np.ndarray,
    shape_native: Sequence[int],
    affine_native: np.ndarray,
    title: str,
    viewer: bool = True,
) -> list[Path]:
    """Write everything of one explained scan into `explain/<imageid>/`.

    Args:
        folder: made if need be.
        explanation: of `explain.explain_scan`.
        affine: (4, 4) of the network's grid, RAS mm.
        shape_native: (X, Y, Z) of the scan's own grid.
        affine_native: (4, 4) of the scan's own grid, whatever its orientation.
        title: on every picture, such as the scan's id and why it was chosen.
        viewer: also write the SHAP map's interactive page.
    Returns:
        The files: `<map>.nii.gz` and `<map>.png` of each map, `gradcam_relu.nii.gz`, `shap_3d.gif`,
        `gradcam_3d.gif`, `shap.html`, `regions.csv` if there are regions, `metrics.json`.
    Raises:
        OSError: the folder can't be written.
    """
    folder = Path(folder)
    maps, origin = dict(explanation["maps"]), dict(explanation["origin"])
    written = []
    for name, values in {**maps, "gradcam_relu": np.maximum(maps["gradcam"], 0)}.items():
        path = folder / f"{name}.nii.gz"
        written.append(write_nifti(path, values, affine, shape=shape_native, affine_native=affine_native))
    maps["shap"] = smooth(maps["shap"], np.linalg.norm(affine[:3, :3], axis=0))
    origin["shap"] += f", smoothed {SMOOTHING_MM:g} mm"
    for name, values in maps.items():
        unit = f"log-hazard per {'voxel' if name == 'shap' else 'cell'}"
        scene = make_scene(explanation["volume"], values, affine, unit=unit)
        heading = f"{title} · {origin[name]}"
        written.append(write_mosaic(folder / f"{name}.png", scene, heading))
        if name in ("shap", "gradcam"):
            written.append(write_gif(folder / f"{name}_3d.gif", scene, heading))
        if name == "shap" and viewer:
            scan = title.partition(",")[0]  # the viewer's heading has no room for a sentence
            written.append(write_viewer(folder / f"{name}.html", scene, scan))
    if explanation["regions"] is not None:
        written.append(folder / "regions.csv")
        with written_whole(written[-1]) as part:
            explanation["regions"].to_csv(part, index=False)
    write_json(folder / "metrics.json", explanation["metrics"])
    return [*written, folder / "metrics.json"]


def save_cohort(
    folder: str | Path, cohort: Mapping[str, Any], *, affine: np.ndarray, event: Mapping[str, bool], seed: int = 0
) -> list[Path]:
    """Write the cohort's maps on the network's grid, their slices, and the table of regions with its intervals.

    Args:
        folder: made if need be.
        cohort: of `explain.explain_cohort`.
        affine: (4, 4) of the network's grid, RAS mm.
        event: whether each subject converted.
        seed: of the bootstrap.
    Returns:
        `mean.nii.gz`, `consistency.nii.gz`, a PNG of each, `regions.csv`.
    """
    folder, written = Path(folder), []
    num_subjects = cohort["num_subjects"]
    chance = min(BY_CHANCE / np.sqrt(num_subjects), 0.99)  # signs that agree no more than this may well be noise
    units = {"mean": ("log-hazard per voxel", CLEAR), "consistency": ("share above 0 less share below", chance)}
    for name, (unit, clear) in units.items():
        path, values = folder / f"{name}.nii.gz", cohort[name]
        written.append(write_nifti(path, values, affine, shape=values.shape, affine_native=affine))
        scene = make_scene(cohort["volume"], values, affine, unit=unit, clear=clear)
        heading = f"{name.capitalize()} of {num_subjects} subjects, SHAP smoothed {SMOOTHING_MM:g} mm"
        written.append(write_mosaic(folder / f"{name}.png", scene, heading))
    written.append(folder / "regions.csv")
    with written_whole(written[-1]) as part:
        cohort_table(cohort["tables"], event, seed=seed).to_csv(part, index=False)
    return written


def write_nifti(
    path: str | Path, values: np.ndarray, affine: np.ndarray, *, shape: Sequence[int], affine_native: np.ndarray
) -> Path:
    """Write a map in the scan's own space, resampled linearly.

    A map is a density: its values stay as they are, so on finer voxels its sum grows by the ratio of the voxels'
    volumes. Multiply the sum by |det affine_native| / |det affine| to get back the network's, to within the resampling.

    Args:
        path: `.nii.gz`.
        values: (X, Y, Z) on the network's grid.
        affine: (4, 4) of that grid.
        shape: of the scan's own grid.
        affine_native: (4, 4) of the scan's own grid.
    Returns:
        `path`.
    """
    image = nib.Nifti1Image(np.asarray(values, np.float32), affine)
    image = resample_from_to(image, (tuple(shape), affine_native), order=1, mode="nearest")
    with written_whole(path) as part:
        nib.save(image, part)
    return Path(path)


def make_scene(volume: np.ndarray, values: np.ndarray, affine: np.ndarray, *, unit: str, clear: float = CLEAR) -> Scene:
    """Lay a map (X, Y, Z) over the volume (X, Y, Z) that it explains, 0 outside the brain."""
    brain = volume != 0
    low, high = np.percentile(volume[brain], [1, 99.9])
    grey = np.where(brain, np.clip((volume - low) / max(high - low, np.finfo(float).tiny), 0, 1), 0)
    limit = float(np.percentile(np.abs(values[brain]), PERCENTILE))
    values, affine = np.asarray(values, np.float32), np.asarray(affine, float)
    return Scene(grey.astype(np.float32), brain, values, limit, affine, unit, clear)


def draw_slice(scene: Scene, plane: str, index: int) -> np.ndarray:
    """One slice in colour, cropped to the brain: (height, width, 3) uint8, MM_A_PIXEL a pixel."""
    box = [slice(max(low - 1, 0), high + 2) for low, high in (scene.slices(p) for p in reversed(PLANES))]
    box[THROUGH[plane]] = slice(index, index + 1)
    size = [round((box[a].stop - box[a].start) * scene.voxel_mm[a] / MM_A_PIXEL) for a in ACROSS[plane]]

    def enlarged(volume: np.ndarray) -> np.ndarray:
        part = np.squeeze(volume[tuple(box)], axis=THROUGH[plane]).T[::-1]  # up the page is up in the axis
        image = Image.fromarray(np.ascontiguousarray(part, np.float32))
        return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC))

    strength = np.clip(enlarged(scene.values) / scene.limit, -1, 1) if scene.limit > 0 else np.zeros(size[::-1])
    opacity = np.clip((np.abs(strength) - scene.clear) * 2.5, 0, OPAQUE)[..., None]
    colour = COLOURS((strength + 1) / 2)[..., :3]
    grey = np.clip(enlarged(scene.grey), 0, 1)[..., None]
    picture = np.rint(255 * (grey * (1 - opacity) + colour * opacity)).astype(np.uint8)
    inside = enlarged(ndimage.gaussian_filter(scene.brain.astype(np.float32), 0.6)) > 0.5  # no steps of a voxel
    picture[inside & ~ndimage.binary_erosion(inside)] = OUTLINE
    return picture


def write_mosaic(path: str | Path, scene: Scene, title: str) -> Path:
    """Write slices of the three planes as PNG, one of each through the map's strongest voxel."""
    figure = Figure(figsize=(13, 6.4), facecolor="black")
    grid = figure.add_gridspec(3, NUM_COLUMNS, left=0.01, right=0.92, top=0.9, bottom=0.07, wspace=0.04, hspace=0.12)
    for row, plane in enumerate(PLANES):
        for column, index in enumerate(_chosen_slices(scene, plane)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(draw_slice(scene, plane, index))
            axes.set_axis_off()
            for x, label in zip((0.02, 0.98), ENDS[plane], strict=True):
                axes.text(x, 0.98, label, transform=axes.transAxes, color="white", ha="center", va="top", fontsize=9)
            axes.set_title(_place(scene, plane, index), color="white", fontsize=8, y=-0.12)
    figure.text(0.01, 0.95, title, color="white", fontsize=12)
    legend = LEGEND.format(limit=scene.limit, clear=scene.clear * scene.limit)
    figure.text(0.01, 0.01, legend, color="0.75", fontsize=9)
    _add_colour_bar(figure, scene)
    with written_whole(path) as part:
        figure.savefig(part, dpi=110, facecolor="black")
    return Path(path)


def _add_colour_bar(figure: Figure, scene: Scene) -> None:
    axes = figure.add_axes((0.935, 0.2, 0.012, 0.55))
    axes.imshow(np.linspace(-1, 1, 256)[:, None], aspect="auto", origin="lower", cmap=COLOURS, extent=(0, 1, -1, 1))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_title(textwrap.fill(scene.unit, 12), color="white", fontsize=9, pad=10)
    axes.set_yticks([-1, 0, 1], [f"{sign * scene.limit:.2g}" for sign in (-1, 0, 1)], color="white", fontsize=9)


def _chosen_slices(scene: Scene, plane: str) -> list[int]:
    """Even slices through the brain, the nearest one moved to the map's strongest voxel."""
    first, last = scene.slices(plane)
    chosen = np.rint(np.linspace(first, last, NUM_COLUMNS + 2)[1:-1]).astype(int)
    peak = scene.peak()[THROUGH[plane]]
    chosen[np.abs(chosen - peak).argmin()] = peak
    return chosen.tolist()


def _place(scene: Scene, plane: str, index: int) -> str:
    """Such as `x = -26 mm, left`."""
    at = scene.millimetre(plane, index)
    side = ("" if round(at) == 0 else ", left" if at < 0 else ", right") if plane == "sagittal" else ""
    return f"{'xyz'[THROUGH[plane]]} = {at:.0f} mm{side}"


def write_gif(path: str | Path, scene: Scene, title: str) -> Path:
    """Write a GIF that moves through the brain in the three planes at once."""
    longest = max(last - first + 1 for first, last in map(scene.slices, PLANES))
    frames = [_draw_frame(scene, share, title) for share in np.linspace(0, 1, min(NUM_FRAMES, longest))]
    palette = _palette()
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with written_whole(path) as part:
        frames[0].save(part, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=False)
    return Path(path)


def _draw_frame(scene: Scene, share: float, title: str) -> Image.Image:
    panels = []
    for plane in PLANES:
        first, last = scene.slices(plane)
        index = round(first + share * (last - first))
        panels.append((plane, index, draw_slice(scene, plane, index)))
    width = sum(panel.shape[1] + GAP for _, _, panel in panels) + 85
    height = max(panel.shape[0] for _, _, panel in panels)
    frame = Image.new("RGB", (width, height + 60))
    pen, left = ImageDraw.Draw(frame), 0
    pen.text((4, 4), title, fill="white", font=_font(11))
    pen.text((4, height + 44), f"{scene.unit}: red raises it, blue lowers it", fill=(190, 190, 190), font=_font(10))
    for plane, index, panel in panels:
        frame.paste(Image.fromarray(panel), (left, 24))
        right = left + panel.shape[1]
        for x, label, anchor in zip((left + 4, right - 4), ENDS[plane], ("la", "ra"), strict=True):
            pen.text((x, 26), label, fill="white", font=_font(13), anchor=anchor)
        pen.text(((left + right) // 2, 24 + height), _place(scene, plane, index), "white", _font(11), anchor="ma")
        left = right + GAP
    bar = COLOURS(np.linspace(1, 0, height - 60))[:, None, :3].repeat(12, axis=1)
    frame.paste(Image.fromarray(np.rint(255 * bar).astype(np.uint8)), (left + 16, 54))
    for y, sign in ((54, 1), (24 + height // 2, 0), (height - 6, -1)):
        pen.text((left + 32, y), f"{sign * scene.limit:.2g}", fill="white", font=_font(11), anchor="lm")
    return frame


def _palette() -> Image.Image:
    """256 colours for every frame: 64 greys, and 32 of the map's in two strengths over three greys."""
    greys = np.linspace(0, 1, 64)[:, None].repeat(3, axis=1)
    colours = COLOURS(np.linspace(0, 1, 32))[:, None, :3]  # (32, 1, 3)
    under, opacity = (part.reshape(1, -1, 1) for part in np.meshgrid([0.2, 0.5, 0.8], [0.4, OPAQUE]))
    mixed = (colours * opacity + under * (1 - opacity)).reshape(-1, 3)  # (192, 3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.concatenate([greys, mixed])).astype(np.uint8).tobytes())
    return palette


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def write_viewer(path: str | Path, scene: Scene, title: str) -> Path:
    """Write an interactive page that needs no network: nilearn's viewer without its link to a remote icon."""
    from nilearn.plotting import view_img  # slow to import

    images = [nib.Nifti1Image(part, scene.affine) for part in (scene.values, scene.grey)]
    values, grey = (resample_to_output(image, (VIEWER_MM,) * 3, order=1) for image in images)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: 'partition' will ignore the 'mask'", UserWarning)  # nilearn's own
        view = view_img(
            values,
            bg_img=grey,
            cut_coords=nib.affines.apply_affine(scene.affine, scene.peak()),
            vmax=scene.limit or 1.0,
            threshold=scene.clear * scene.limit,
            cmap=COLOURS,
            title=title,
        )
    page = re.sub(r"<link[^>]*icon[^>]*>", "", view.get_standalone())
    with written_whole(path) as part:
        part.write_text(page, encoding="utf-8")
    return Path(path)
