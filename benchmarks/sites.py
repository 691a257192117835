"""Trained on three sites, tested on the fourth: a simulated cohort whose sites differ in their scanners and subjects.

    python benchmarks/sites.py [--SETTING value ...]

A site has 150 subjects of the embedded cohort's kind, with 3 visits each. It has its own gain, contrast, bias field and
noise, and its own mix of levels: its subjects are chosen among three times as many, the more atrophied ones with more
or less probability. Prints a JSON line a site that is left out, and the means: the C-index of each model on it, of the
atrophy in the last scan, and of the true log-hazard. The runs stay in `outputs-benchmark/sites/`. Each of the four
takes about 6 CPU minutes.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cohort import simulate
from survival.estimates import concordance

HERE = Path(__file__).resolve().parent.parent
FOLDER = HERE / "outputs-benchmark" / "sites"
SUBJECTS, VALIDATED = 150, 0.2  # of a site; share of the other sites' subjects in the validation part
COLUMNS = ["subjectid", "imageid", "visit_time", "time", "convert_status", "nifti_path"]


@dataclass(frozen=True)
class Site:
    """A scanner, and who comes to it."""

    gain: float  # factor of the intensity
    contrast: float  # power of the intensity
    bias: tuple[float, float, float]  # share by which the intensity changes per simulate.BIAS_MM along each axis
    noise: float  # standard deviation, share of simulate.BRIGHT
    selection: float  # log of how much more often a subject comes per unit of its level

    def scan(self, volume: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(X, Y, Z) int16 as this scanner gives it; points (P, 3) RAS mm of the voxels within the brain."""
        brain = volume > 0
        values = self.gain * (volume[brain] / simulate.BRIGHT) ** self.contrast
        values *= 1 + points @ np.array(self.bias) / simulate.BIAS_MM
        values += rng.normal(scale=self.noise, size=len(values))
        scan = np.zeros_like(volume)
        scan[brain] = np.clip(np.rint(simulate.BRIGHT * values), 1, np.iinfo(np.int16).max)
        return scan


SITES = {
    "north": Site(1.0, 1.0, (0.0, 0.0, 0.0), 0.0, 0.0),
    "east": Site(1.3, 0.8, (0.1, 0.0, 0.05), 0.02, 0.7),
    "south": Site(0.8, 1.25, (0.0, -0.1, 0.1), 0.04, -0.7),
    "west": Site(1.1, 1.1, (-0.05, 0.1, -0.1), 0.06, 0.3),
}


def main(settings: list[str]) -> None:
    """Leave each site out once, and print what the models reach there."""
    tables = [write_site(name) for name in SITES]
    rows = []
    for name, table in zip(SITES, tables, strict=True):
        rows.append(measure(run(name, tables, settings), table))
        print(json.dumps({"name": f"sites, without {name}", **rows[-1]}), flush=True)
    means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}
    print(json.dumps({"name": "sites, mean", **means}))


def write_site(name: str) -> pd.DataFrame:
    """Write a site's scans, unless they are there; its table with the truth, a row a scan."""
    site, seed, folder = SITES[name], list(SITES).index(name), FOLDER / name
    rng = np.random.default_rng([seed, 2])
    truth = simulate.draw_truth(3 * SUBJECTS, seed=seed)
    level = truth.groupby("subjectid")["level"].first()
    chances = np.exp(site.selection * level)
    chosen = rng.choice(level.index, SUBJECTS, replace=False, p=chances / chances.sum())
    truth = truth[truth["subjectid"].isin(chosen)].reset_index(drop=True)
    truth[["subjectid", "imageid"]] = f"{name}-" + truth[["subjectid", "imageid"]]
    truth["nifti_path"] = [str(folder / f"{image}.nii.gz") for image in truth["imageid"]]
    if not folder.exists():
        folder.mkdir(parents=True)
        write_scans(truth, site, rng)
    return truth


def write_scans(truth: pd.DataFrame, site: Site, rng: np.random.Generator) -> None:
    """Draw every scan of a site's table, with a nuisance of strength 1, as the site's scanner gives it."""
    anatomy = simulate.build_anatomy()
    for _, visits in truth.groupby("subjectid"):
        frontal = rng.normal()
        for path, time, atrophy in zip(visits["nifti_path"], visits["visit_time"], visits["atrophy"], strict=True):
            aged = frontal + simulate.FRONTAL_A_YEAR * time
            volume = simulate.draw_scan(anatomy, atrophy=atrophy, frontal=aged, nuisance=1.0, rng=rng)
            scan = site.scan(volume, anatomy.points, rng)
            nib.save(nib.Nifti1Image(scan, simulate.AFFINE), path)


def run(name: str, tables: list[pd.DataFrame], settings: list[str]) -> Path:
    """One run of `main.py`, tested on this site; what is done already is not done again."""
    folder = FOLDER / f"without-{name}"
    folder.mkdir(exist_ok=True)
    others = pd.concat([table for other, table in zip(SITES, tables, strict=True) if other != name])
    event = others.groupby("subjectid")["convert_status"].first()
    train, val = train_test_split(event.index, test_size=VALIDATED, stratify=event, random_state=0)
    parts = {"TRAIN": others[others["subjectid"].isin(train)], "VAL": others[others["subjectid"].isin(val)]}
    parts["TEST"] = tables[list(SITES).index(name)]
    paths = {part: FOLDER / f"without-{name}-{part.lower()}.csv" for part in parts}
    for part, table in parts.items():
        table[COLUMNS].to_csv(paths[part], index=False)
    given = [f"--{part}_CSV={path}" for part, path in paths.items()]
    given += [f"--OUTPUT_DIR={folder}", f"--CACHE_DIR={FOLDER / 'cache'}", "--STAGES=cnn,features,tlstm,report"]
    subprocess.run([sys.executable, str(HERE / "main.py"), *given, *settings], check=True, stdout=sys.stderr)
    return folder


def measure(folder: Path, truth: pd.DataFrame) -> dict[str, float]:
    """C-index on the site that was left out, by model; `oracle_` of what is true there."""
    metrics = json.loads((folder / "metrics.json").read_text())
    models = {"cnn": metrics["cnn"], "tlstm": metrics["tlstm"], **metrics["baselines"]}
    row = {name: model["test"]["c_index"]["value"] for name, model in models.items()}
    last = truth.groupby("subjectid").tail(1)
    left, event = (last["time"] - last["visit_time"]).to_numpy(), last["convert_status"].to_numpy(bool)
    for name, column in (("oracle_last_scan", "atrophy"), ("oracle_longitudinal", "log_hazard")):
        row[name] = concordance(last[column].to_numpy(), left, event)
    return {name: round(value, 4) for name, value in row.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
