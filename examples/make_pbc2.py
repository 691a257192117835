"""Make `pbc2.csv`, an example table for stage 2, from the package's copy of the Mayo PBC data.

    python examples/make_pbc2.py path/to/the/original/pbc2.csv

The columns get our names; times are years from the first visit; the event is death or transplant. Categories become
0/1 columns, ordered ones stay one number, and missing values stay missing. Nothing is scaled or imputed: stage 2 fits
that on training subjects. `age` is the age at baseline, and no feature is computed from the outcome.
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
    """Convert the original table.

    Args:
        original: the Mayo PBC data, a row a visit.
    Returns:
        The same rows in our columns, sorted by subject and visit; times in years.
    """

    def is_one(column: str, value: str) -> pd.Series:
        """1.0 where the column has this value, 0.0 where it has another, missing where it is missing."""
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
            **{name: original[original_name] for original_name, name in LABORATORY.items()},
            "histologic_stage": original["histologic"],
        }
    )
    return table.sort_values(["subjectid", "visit_time"], ignore_index=True)


if __name__ == "__main__":
    convert(pd.read_csv(sys.argv[1])).to_csv(Path(__file__).with_name("pbc2.csv"), index=False)
