"""What the default run reaches on the embedded cohort: three seeds, each tested on 460 subjects kept back.

    python benchmarks/embedded_cohort.py [SEED ...] [--SETTING value ...]

Training and validation are as large as the default's (192 and 48 subjects); only the test part is larger, so that the
figures' own noise is small. Prints a JSON line a seed and one of the means; the runs stay in `outputs-benchmark/`.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)  # other ones are given where no choice was made on them
SUBJECTS, TESTED = 700, 460


def main(arguments: list[str]) -> None:
    """Run every seed and print its figures."""
    seeds = [int(argument) for argument in arguments if argument.isdecimal()]
    settings = [argument for argument in arguments if not argument.isdecimal()]
    rows = []
    for seed in seeds or SEEDS:
        rows.append(measure(run(seed, settings)) | {"seed": seed})
        print(json.dumps({"name": "cohort", **rows[-1]}), flush=True)
    numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
    means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in numbers}
    print(json.dumps({"name": "cohort, mean of the seeds", **means}))


def run(seed: int, settings: list[str]) -> Path:
    """One run of `main.py`; what is done already is not done again."""
    folder = HERE / "outputs-benchmark" / f"seed-{seed}"
    sizes = [f"--SIM_SUBJECTS={SUBJECTS}", f"--TEST_RATIO={TESTED / SUBJECTS}", f"--SEED={seed}"]
    stages = '--STAGES=["cnn","features","tlstm","report"]'
    command = [sys.executable, str(HERE / "main.py"), f"--OUTPUT_DIR={folder}", *sizes, stages, *settings]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def measure(folder: Path) -> dict:
    """C of the test part by model, and how well stage 1's risk follows the atrophy and its slope."""
    metrics = json.loads((folder / "metrics.json").read_text())
    figures = {"cnn": metrics["cnn"]["test"], "tlstm": metrics["tlstm"]["test"]}
    figures |= {name: model["test"] for name, model in metrics["baselines"].items()}
    figures |= {f"arm_{name}": model["test"] for name, model in metrics.get("arms", {}).items()}
    estimates = {name: model["c_index"] for name, model in figures.items()}
    estimates |= {f"oracle_{name}": estimate for name, estimate in metrics["oracle"].items()}
    row = {name: round(estimate["value"], 4) for name, estimate in estimates.items()}
    row |= {f"ci_{name}": [round(e["low"], 3), round(e["high"], 3)] for name, e in estimates.items()}
    row["of_oracle"] = round(row["cnn"] / row["oracle_last_scan"], 4)
    row["history_of_oracle"] = round(row["tlstm"] / row["oracle_longitudinal"], 4)
    row["weights"] = {name: round(arm["weight"], 2) for name, arm in metrics.get("arms", {}).items()}
    return row | follow_truth(folder)


def follow_truth(folder: Path) -> dict[str, float]:
    """Correlation of stage 1's risk with the atrophy in each test scan, and of slopes with those of the atrophy."""
    (truth,) = folder.glob("simulated/*/truth.csv")
    table = pd.read_parquet(folder / "features" / "test.parquet")
    measures = [name for name in ("log_hazard", "progress") if name in table]
    true_values = pd.read_csv(truth)[["imageid", "atrophy"]]
    table = table[["subjectid", "imageid", "visit_time", *measures]].merge(true_values, on="imageid", validate="1:1")
    visits = table.sort_values("visit_time").groupby("subjectid")
    change = visits.last(numeric_only=True) - visits.first(numeric_only=True)
    slopes = change.div(change["visit_time"].replace(0.0, np.nan), axis=0)  # of one visit there is none
    return {"risk_and_atrophy": round(float(table["log_hazard"].corr(table["atrophy"])), 4)} | {
        f"slopes_of_{name}": round(float(slopes[name].corr(slopes["atrophy"])), 4) for name in measures
    }


if __name__ == "__main__":
    main(sys.argv[1:])
