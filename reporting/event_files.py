"""TensorBoard's event files, made from the histories that both stages write: `tensorboard --logdir outputs`."""

import shutil
import tempfile
from pathlib import Path

import pandas as pd
from tensorboard.summary import Writer

from runs.files import written_whole


def write_events(folder: str | Path) -> None:
    """Write an event file, `history.tfevents`, beside each `history.csv` in a folder and in those below it.

    Args:
        folder: of a stage, such as `cnn`; TensorBoard shows its curves under the folder's name. A history has a row an
            epoch: `epoch`, and figures, each of which becomes a curve.
    Raises:
        WriteError: the disk is full, or the folder read-only.
    """
    for history in sorted(Path(folder).rglob("history.csv")):
        with tempfile.TemporaryDirectory() as temporary:
            writer = Writer(temporary)
            for row in pd.read_csv(history).to_dict("records"):
                for name in row.keys() - {"epoch"}:
                    writer.add_scalar(name, row[name], row["epoch"])
            writer.close()
            (events,) = Path(temporary).iterdir()
            with written_whole(history.with_suffix(".tfevents")) as part:
                shutil.copyfile(events, part)
