"""Make `pbc2.csv`, an example table for stage 2, from the package's copy of the Mayo PBC data.

    python examples/make_pbc2.py path/to/the/original/pbc2.csv

Columns in our names, years from the first visit; endpoint death or transplant. Categories become 0/1
columns, ordered ones stay one number; what is missing stays missing. Nothing is scaled or imputed:
that is fitted on training subjects. `age` is the age at baseline, and no column knows the outcome.
"""

import sys
from pathlib import Path

import pandas as pd

LABORATORY = {
    "serBilir": "bilirubin",
    "serChol": "cholesterol",
    "albumin": "albumin",
    "alkaline": "alkaline_phosphatase",
    "SGOT": "sgot",
    "platelets": "platelets",
    "prothrombin": "prothrombin",
}


def convert(original: pd.DataFrame) -> pd.DataFrame:
    """The original's rows in our columns."""

    def is_one(column: str, value: str) -> pd.Series:
        return (original[column] == value).astype(float).where(original[column].notna())

    table = pd.DataFrame(
        {
            "subjectid": "pbc" + original["id"].astype(str).str.zfill(3),
            "visit_time": original["year"].round(6),
            "time": original["years"].round(6),
            "convert_status": (original["status"] != "alive").astype(int),
            "age": original["age"].round(3),
            "female": is_one("sex", "female"),
            "penicillamine": is_one("drug", "D-penicil"),
            "ascites": is_one("ascites", "Yes"),
            "hepatomegaly": is_one("hepatomegaly", "Yes"),
            "spiders": is_one("spiders", "Yes"),
            "edema_without_diuretics": is_one("edema", "edema no diuretics"),
            "edema_despite_diuretics": is_one("edema", "edema despite diuretics"),
            **{ours: original[theirs] for theirs, ours in LABORATORY.items()},
            "histologic_stage": original["histologic"],
        }
    )
    return table.sort_values(["subjectid", "visit_time"], ignore_index=True)


if __name__ == "__main__":
    convert(pd.read_csv(sys.argv[1])).to_csv(Path(__file__).with_name("pbc2.csv"), index=False)
