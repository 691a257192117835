"""The page's tables of models: the test part's figures of every model, and the notes that they share."""

from collections.abc import Callable, Iterable, Iterator
from string import ascii_lowercase
from typing import Any

from reporting.run_folder import RunFolder
from reporting.words import in_words
from survival.evaluation import tested_models


def model_tables(run: RunFolder) -> list[dict[str, Any]]:
    """Make a table of the run's models, or one for each of stage 2's landmarks.

    Args:
        run: what the page shows.
    Returns:
        Of each table its `title`; its `rows`, the best C-index first; its `years` of the AUC; the `rival` that others
        are compared with, or None; the `best` of each column; the `oracle`'s C-index by name. A table without rows is
        left out.
    """
    tables = [{"title": title} | models_of(view) for title, view in run.views.items()]
    return [table for table in tables if table["rows"]]


def models_of(run: RunFolder) -> dict[str, Any]:
    """Make the table of one view of a run, as `model_tables` does, without its title.

    Args:
        run: or its view at a landmark.
    """
    rows = [{"name": name.strip(), **metrics} for name, metrics in tested_models(run.metrics).items()]
    rows.sort(key=lambda row: -(row["c_index"]["value"] or 0))
    years = list(rows[0]["auc"]) if rows else []

    def best(name: str, choose: Callable = max, year: str | None = None) -> float | None:
        estimates = (row[name] if year is None else row[name][year] for row in rows)
        values = (estimate["value"] for estimate in estimates)
        return choose((value for value in values if value is not None), default=None)

    return {
        "rows": rows,
        "years": years,
        "rival": next((row["difference"]["from"] for row in rows if "difference" in row), None),
        "best": {
            "c_index": best("c_index"),
            "uno_c": best("uno_c"),
            "auc": {year: best("auc", year=year) for year in years},
            "ibs": best("ibs", min),
        },
        "oracle": {in_words(name): estimate for name, estimate in run.metrics.get("oracle", {}).items()},
    }


def notes_of(tables: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Give a letter to each reason or note that an estimate of the tables has, in their order.

    Args:
        tables: of `model_tables`.
    Returns:
        The letter of each text.
    """
    shown = (row for table in tables for row in (*table["rows"], *table["oracle"].values()))
    estimates = (estimate for row in shown for estimate in _estimates(row))
    texts = dict.fromkeys(text for estimate in estimates if (text := estimate.get("why") or estimate.get("note")))
    return {text: _letter(number) for number, text in enumerate(texts)}


def _estimates(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The estimates that a row shows: those of a model, or the oracle's C-index alone."""
    yield row.get("c_index", row)
    if "difference" in row:
        yield row["difference"]["c_index"]
    yield from row.get("auc", {}).values()
    yield from filter(None, (row.get(name) for name in ("uno_c", "ibs", "hazard_ratio")))


def _letter(number: int) -> str:
    """`a` to `z`, then `aa`: a digit would read as one more digit of the value before it."""
    return ascii_lowercase[number % 26] * (number // 26 + 1)
