"""The saved state of a training: all that its next step depends on."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runs.errors import InputError
from runs.files import written_whole


@dataclass
class Position:
    """How far a training is: what its state holds beside the variables."""

    rows: list[dict[str, float]] = field(default_factory=list)  # of history.csv: the epochs that are done
    losses: list[float] = field(default_factory=list)  # of the steps that are done of the next epoch
    seconds: float = 0.0  # spent on them
    applied: int = 0  # steps that the optimiser had taken before that epoch


class Checkpoint:
    """Writes and reads the state of one training, `backup/state.npz`.

    Args:
        path: of the file.
        variables: of TensorFlow; the network's, the optimiser's, the averages.
        belongs_to: what a saved state is good for: the options and devices of the training, as JSON has them.
    """

    def __init__(self, path: Path, variables: Sequence[Any], belongs_to: dict[str, Any]):
        self.path, self.variables, self.belongs_to = path, variables, json.loads(json.dumps(belongs_to))

    def read_bytes(self) -> bytes:
        """The file as it lies; empty if there is none."""
        return self.path.read_bytes() if self.path.exists() else b""

    def save(self, position: Position) -> None:
        """Write the variables as they are now, and the position.

        Args:
            position: of the training.
        Raises:
            WriteError: the disk is full.
        """
        values = {f"v{i}": variable.numpy() for i, variable in enumerate(self.variables)}
        record = json.dumps(self.belongs_to | {"done": asdict(position)})
        with written_whole(self.path) as part:
            np.savez(part, record=record, **values)

    def load(self, content: bytes) -> Position:
        """Give the variables the values that `save` wrote.

        Args:
            content: of the file.
        Returns:
            The position.
        Raises:
            InputError: the file is damaged, or of other options.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as state:
                record = json.loads(str(state["record"]))
                values = [state[f"v{i}"] for i in range(len(state.files) - 1)]
                position = Position(**record["done"])
        except Exception as error:  # NumPy's readers of damaged files raise errors of a dozen kinds
            raise InputError(f"{self.path}: can't be read: {error}. Delete it to begin stage 1 anew.") from error
        shapes = [tuple(variable.shape) for variable in self.variables]
        same = all(record.get(name) == value for name, value in self.belongs_to.items())
        if not same or shapes != [value.shape for value in values]:
            raise InputError(f"{self.path}: is of other settings or devices. Delete it to begin stage 1 anew.")
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        return position
