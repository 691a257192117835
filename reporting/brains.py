"""Explanations on disk: signed NIfTI in the scan's own space, slices, GIFs and an offline viewer.

`scene` draws the single slice; here slices become pictures, with their places and a legend.
"""

import html
import json
import math
import re
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from nibabel.processing import resample_from_to, resample_to_output
from PIL import Image, ImageDraw, ImageFont

from attribution.evidence import SMOOTHING_MM, smooth
from attribution.regions import cohort_table
from cohort.grid import Grid
from reporting.scene import CLEAR, COLOURS, OPAQUE, PLANES, THROUGH, Scene, draw_slice, make_scene
from reporting.words import shorten
from runs.files import write_json, written_whole

if TYPE_CHECKING:  # it imports TensorFlow, which the pictures don't need
    from explain import CohortExplanation, Explanation

IN_3D = ("shap", "gradcam")  # maps with a GIF
ENDS = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("P", "A")}  # at the left and the right edge
NUM_COLUMNS = 7  # slices of each plane in a mosaic
NUM_FRAMES = 36  # of a GIF at most; fewer where the brain has fewer slices, so that no two are alike
PLAIN = matplotlib.rc_context({"text.parse_math": False})  # a `$` in an id is a `$`
FRAME_MS = 100  # milliseconds a frame of a GIF
VIEWER_MM = 2.0  # size of a voxel of the interactive page, where the brain's longest side has these voxels then
VIEWER_VOXELS = (60, 120)
MIN_HEIGHT = 120  # pixels of a GIF's planes: the colour bar stands beside them
MOST_OF_TITLE = 150  # characters that fit over the slices
GAP = 10  # pixels between the planes of a GIF
MOST_UNIT, MOST_METHOD = 16, 79  # bytes of a NIfTI header's fields intent_name and descrip
VIEWER_TITLE = "title of the viewer"  # holds the title's place in nilearn's page, which doesn't escape it
BY_CHANCE = 3.3  # standard errors of a share of signs; chance alone exceeds them at one voxel in 1000
LEGEND = (
    "{sign}; colours end at {limit:.2g}, the 99.5th percentile of |map| in the brain, and are clear below {clear:.2g}. "
    "Left is the subject's left."
)
SIGN = "Red raises the log-hazard, blue lowers it"


def save_explanation(
    folder: str | Path, explanation: "Explanation", *, grid: Grid, native: Grid, title: str, viewer: bool = True
) -> list[Path]:
    """Write everything of one explained scan into `explain/<imageid>/`.

    Args:
        folder: made if need be.
        explanation: of `explain.explain_scan`; maps (X, Y, Z) on the network's grid.
        grid: of the network, with its affine to RAS mm.
        native: the scan's own grid, whatever its orientation.
        title: on every picture, such as the scan's id and why it was chosen.
        viewer: also write the SHAP map's interactive page.
    Returns:
        The files: `<map>.nii.gz` and `<map>.png` of each map, `gradcam_relu.nii.gz`, `shap_3d.gif`,
        `gradcam_3d.gif`, `shap.html`, `regions.csv` if there are regions, `metrics.json`.
    Raises:
        OSError: the folder can't be written.
    """
    folder = Path(folder)
    maps = explanation["maps"]
    written = []
    for name, values in {**maps, "gradcam_relu": np.maximum(maps["gradcam"], 0)}.items():
        about = (f"log-hazard/{_per(name)}", _in_header(explanation["origin"], name))
        written.append(write_nifti(folder / f"{name}.nii.gz", values, grid.affine, native=native, about=about))
    written += _draw_maps(folder, explanation, grid, title, viewer)
    if explanation["regions"] is not None:
        written.append(folder / "regions.csv")
        with written_whole(written[-1]) as part:
            explanation["regions"].to_csv(part, index=False)
    write_json(folder / "metrics.json", explanation["metrics"])
    return [*written, folder / "metrics.json"]


def _per(name: str) -> str:
    """What a map's values are per: SHAP's a voxel of the network, the others' a cell of the stage they look at."""
    return "voxel" if name == "shap" else "cell"


def _in_header(origin: Mapping[str, str], name: str) -> str:
    """The method of a map and its sign, as short as the header's field `descrip` needs."""
    relu = "_relu" in name
    return f"{origin[name.removesuffix('_relu')]}; {'negative parts set to 0' if relu else 'above 0: raises the risk'}"


def _draw_maps(folder: Path, explanation: "Explanation", grid: Grid, title: str, viewer: bool) -> list[Path]:
    """Draw every map over the volume; the SHAP map is smoothed first, since single voxels are noise."""
    maps, origin = dict(explanation["maps"]), dict(explanation["origin"])
    maps["shap"] = smooth(maps["shap"], np.linalg.norm(grid.affine[:3, :3], axis=0))
    origin["shap"] += f", smoothed {SMOOTHING_MM:g} mm"
    written = []
    for name, values in maps.items():
        unit = f"log-hazard per {_per(name)}"
        scene = make_scene(explanation["volume"], values, grid.affine, unit=unit)
        heading = f"{title} · {origin[name]}"
        written.append(write_mosaic(folder / f"{name}.png", scene, heading))
        if name in IN_3D:
            written.append(write_gif(folder / f"{name}_3d.gif", scene, heading))
        if name == "shap" and viewer:
            scan = title.rpartition(", ")[0] or title  # the viewer's heading has no room for a sentence
            written.append(write_viewer(folder / f"{name}.html", scene, scan))
    return written


def save_cohort(
    folder: str | Path, cohort: "CohortExplanation", *, grid: Grid, event: Mapping[str, bool], seed: int = 0
) -> list[Path]:
    """Write the cohort's maps on the network's grid, their slices, and the table of regions with its intervals.

    Args:
        folder: made if need be.
        cohort: of `explain.explain_cohort`; maps (X, Y, Z) on the network's grid.
        grid: of the network, with its affine to RAS mm.
        event: whether each subject converted.
        seed: of the bootstrap.
    Returns:
        The files `mean.nii.gz` and `consistency.nii.gz`, a PNG of each, `regions.csv`.
    """
    folder, written = Path(folder), []
    num_subjects = cohort["num_subjects"]
    chance = min(BY_CHANCE / np.sqrt(num_subjects), 0.99)  # signs that agree no more than this may well be noise
    drawn = (
        ("mean", cohort["mean"], "log-hazard per voxel", CLEAR),
        ("consistency", cohort["consistency"], "share above 0 less share below", chance),
    )
    intent = {"mean": "log-hazard/voxel", "consistency": "share of signs"}
    for name, values, unit, clear in drawn:
        words = f"{name} of {num_subjects} subjects' SHAP, smoothed {SMOOTHING_MM:g} mm; above 0: raises the risk"
        about = (intent[name], words)
        written.append(write_nifti(folder / f"{name}.nii.gz", values, grid.affine, native=grid, about=about))
        scene = make_scene(cohort["volume"], values, grid.affine, unit=unit, clear=clear)
        heading = f"{name.capitalize()} of {num_subjects} subjects, SHAP smoothed {SMOOTHING_MM:g} mm"
        written.append(write_mosaic(folder / f"{name}.png", scene, heading))
    written.append(folder / "regions.csv")
    with written_whole(written[-1]) as part:
        cohort_table(cohort["tables"], event, seed=seed).to_csv(part, index=False)
    return written


def write_nifti(
    path: str | Path, values: np.ndarray, affine: np.ndarray, *, native: Grid, about: tuple[str, str] = ("", "")
) -> Path:
    """Write a map in the scan's own space, resampled linearly, and 0 beyond the box of the network's grid.

    A map is a density: its values stay as they are, so on finer voxels its sum grows by the ratio of the voxels'
    volumes. To get back the sum on the network's grid, multiply by |det of the native affine| / |det of `affine`|; what
    still differs is due to the resampling.

    Args:
        path: of the file, `.nii.gz`.
        values: (X, Y, Z) on the network's grid.
        affine: (4, 4) of that grid, voxel -> RAS mm.
        native: the scan's own grid; voxels with their centre outside the network's box get 0: it saw nothing there.
        about: the unit, for the header's field `intent_name` (16 bytes), and the method and sign, for `descrip` (79);
            a longer text is cut.
    Returns:
        `path`.
    """
    image = nib.Nifti1Image(np.asarray(values, np.float32), affine)
    x, y, z = values.shape
    box = Grid((x, y, z), affine)
    image = resample_from_to(image, (native.shape, native.affine), order=1, mode="nearest")
    seen = np.asarray(image.dataobj) * box.covers(native)
    image = nib.Nifti1Image(seen, native.affine)
    unit, method = about
    image.header.set_intent("estimate", name=_cut(unit, MOST_UNIT))
    image.header["descrip"] = _cut(method, MOST_METHOD)
    image.header.set_xyzt_units("mm")
    with written_whole(path) as part:
        nib.save(image, part)
    return Path(path)


def _cut(text: str, most: int) -> str:
    """The text in ASCII, as a header's field has it, of so many bytes at most."""
    return text.encode("ascii", "replace")[:most].decode()


@PLAIN
def write_mosaic(path: str | Path, scene: Scene, title: str, sign: str = SIGN) -> Path:
    """Write slices of the three planes as PNG, one of each through the map's strongest voxel.

    Args:
        path: of the file, `.png`.
        scene: what is drawn; the slices are named by their place in mm.
        title: above the slices.
        sign: what red and blue mean, in words.
    Returns:
        `path`.
    """
    figure = Figure(figsize=(13, 6.4), facecolor="black")
    grid = figure.add_gridspec(3, NUM_COLUMNS, left=0.01, right=0.92, top=0.9, bottom=0.07, wspace=0.04, hspace=0.12)
    for row, plane in enumerate(PLANES):
        for column, index in enumerate(_chosen_slices(scene, plane)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(draw_slice(scene, plane, index))
            axes.set_axis_off()
            for x, label in zip((0.02, 0.98), ENDS[plane], strict=True):
                axes.text(x, 0.98, label, transform=axes.transAxes, color="white", ha="center", va="top", fontsize=9)
            axes.set_title(scene.place(plane, index), color="white", fontsize=8, y=0, pad=-10)
    figure.text(0.01, 0.95, shorten(title, MOST_OF_TITLE), color="white", fontsize=12)
    legend = LEGEND.format(sign=sign, limit=scene.limit, clear=scene.clear * scene.limit)
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
    """Indices of evenly spaced slices through the brain; the nearest one is moved to the map's strongest voxel."""
    first, last = scene.slices(plane)
    chosen = np.rint(np.linspace(first, last, NUM_COLUMNS + 2)[1:-1]).astype(int)
    peak = scene.peak()[THROUGH[plane]]
    chosen[np.abs(chosen - peak).argmin()] = peak
    return chosen.tolist()


def write_gif(path: str | Path, scene: Scene, title: str) -> Path:
    """Write a GIF that moves through the brain in the three planes at once.

    Args:
        path: of the file, `.gif`.
        scene: what is drawn, in NUM_FRAMES frames at most.
        title: above the planes.
    Returns:
        `path`.
    """
    longest = max(last - first + 1 for first, last in map(scene.slices, PLANES))
    frames = [_draw_frame(scene, share, title) for share in np.linspace(0, 1, min(NUM_FRAMES, longest))]
    palette = _palette()
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with written_whole(path) as part:
        frames[0].save(part, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=False)
    return Path(path)


def _draw_frame(scene: Scene, share: float, title: str) -> Image.Image:
    """A frame of the GIF, a given share (0 to 1) of the way through the brain in each plane."""
    panels = []
    for plane in PLANES:
        first, last = scene.slices(plane)
        index = round(first + share * (last - first))
        panels.append((plane, index, draw_slice(scene, plane, index)))
    title, legend = shorten(title, MOST_OF_TITLE), f"{scene.unit}: red raises it, blue lowers it"
    texts = max(_font(11).getlength(title), _font(10).getlength(legend))
    width = max(sum(panel.shape[1] + GAP for _, _, panel in panels) + 85, math.ceil(texts) + 8)
    height = max(MIN_HEIGHT, *(panel.shape[0] for _, _, panel in panels))
    frame = Image.new("RGB", (width, height + 60))
    pen, left = ImageDraw.Draw(frame), 0
    pen.text((4, 4), title, fill="white", font=_font(11))
    pen.text((4, height + 44), legend, fill=(190, 190, 190), font=_font(10))
    for plane, index, panel in panels:
        frame.paste(Image.fromarray(panel), (left, 24))
        right = left + panel.shape[1]
        for x, label, anchor in zip((left + 4, right - 4), ENDS[plane], ("la", "ra"), strict=True):
            pen.text((x, 26), label, fill="white", font=_font(13), anchor=anchor)
        pen.text(((left + right) // 2, 24 + height), scene.place(plane, index), "white", _font(11), anchor="ma")
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
    """Write an interactive page that needs no network: nilearn's viewer without its link to a remote icon.

    Args:
        path: of the file, `.html`.
        scene: what is shown, resampled to VIEWER_MM (mm), finer or coarser where the brain has another size.
        title: of the page; any text, since it is escaped.
    Returns:
        `path`.
    """
    from nilearn.plotting import view_img  # slow to import

    images = [nib.Nifti1Image(part, scene.affine) for part in (scene.values, scene.grey)]
    fewest, most = VIEWER_VOXELS
    size = float(np.clip(VIEWER_MM, scene.longest_mm / most, scene.longest_mm / fewest))
    values, grey = (resample_to_output(image, (size,) * 3, order=1) for image in images)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: 'partition' will ignore the 'mask'", UserWarning)  # nilearn's own
        view = view_img(
            values,
            bg_img=grey,
            cut_coords=nib.affines.apply_affine(scene.affine, scene.peak()),
            vmax=scene.limit or 1.0,
            threshold=scene.clear * scene.limit,
            cmap=COLOURS,
            title=VIEWER_TITLE,
        )
    page = re.sub(r"<link[^>]*icon[^>]*>", "", view.get_standalone())
    page = page.replace(json.dumps(VIEWER_TITLE), _as_script(title)).replace(VIEWER_TITLE, html.escape(title))
    with written_whole(path) as part:
        part.write_text(page, encoding="utf-8")
    return Path(path)


def _as_script(text: str) -> str:
    """A text as a string of JavaScript within HTML: no `<` that could end the script."""
    return json.dumps(text).replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
