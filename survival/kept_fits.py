"""The finished fits of a cross-validation, on the disk: what a stopped one goes on from, to the same bits."""

import dataclasses
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from runs.files import fingerprint, written_whole

EXTRAS = b"extras"  # of the table's metadata: the figures and the history, as JSON
DIGITS = 32  # of the fingerprint that a file begins with; Parquet follows
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Fit:
    """What one model gave in one fold."""

    figures: list[dict[str, Any]]  # a row a landmark
    predictions: pd.DataFrame  # of the held-out subjects, a row a subject and landmark
    history: pd.DataFrame | None  # of its training, a row an epoch; None: it has none


class KeptFits:
    """A folder with a file for each finished fit.

    Args:
        folder: of one table, one set of settings and one version of the code; made if need be.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def count(self) -> int:
        """The number of finished fits."""
        return len(list(self.folder.glob("[!.]*.fit")))

    def read_or_make(self, name: str, make: Callable[[], Fit]) -> Fit:
        """Read a finished fit; if there is none, make it and keep it.

        Args:
            name: of the fit, a plain file name.
            make: fits and evaluates.
        Returns:
            The fit; one that was kept has the same bits as when it was made.
        """
        path = self.folder / f"{name}.fit"
        fit = _read(path) if path.is_file() else None
        if fit is None:
            fit = make()
            _write(fit, path)
        return fit


def _write(fit: Fit, path: Path) -> None:
    history = None if fit.history is None else fit.history.to_dict("list")
    table = pa.Table.from_pandas(fit.predictions, preserve_index=False)
    extras = {EXTRAS: json.dumps({"figures": fit.figures, "history": history}).encode()}
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | extras), content)
    with written_whole(path) as part:
        part.write_bytes(fingerprint(content.getvalue()).encode() + content.getvalue())


def _read(path: Path) -> Fit | None:
    """A kept fit; None, with a warning, if its file is damaged."""
    whole = path.read_bytes()
    digest, content = whole[:DIGITS], whole[DIGITS:]
    if digest != fingerprint(content).encode():
        logger.warning("%s: damaged, so it is made anew", path)
        return None
    table = pq.read_table(io.BytesIO(content))
    extras = json.loads(table.schema.metadata[EXTRAS])
    history = None if extras["history"] is None else pd.DataFrame(extras["history"])
    return Fit(extras["figures"], table.to_pandas(), history)
