"""The two files of a trained stage 2, `model.json` and `model.pt`: written whole, and read only as they were saved."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runs.errors import InputError
from runs.files import read_json, write_json, written_whole

FORMAT = 3  # of model.json; 2 had no stack
READABLE = (2, FORMAT)


def write_model(folder: Path, model: Mapping[str, Any], weights: bytes) -> None:
    """Write a model.

    Args:
        folder: to write to.
        model: everything but the network's weights; arrays become lists.
        weights: of the network, as PyTorch saves them.
    Raises:
        WriteError: the disk is full, or the folder read-only.
    """
    with written_whole(folder / "model.pt") as part:
        part.write_bytes(weights)
    plain = json.loads(json.dumps(model, default=np.ndarray.tolist))
    write_json(folder / "model.json", {"format": FORMAT, "digests": _digests(plain, weights), **plain})


def read_model(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Read what `write_model` wrote.

    Args:
        folder: with `model.json` and `model.pt`.
    Returns:
        The model and the weights.
    Raises:
        InputError: names the file that is absent, damaged or of another version.
    """
    for name in ("model.json", "model.pt"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: expected a trained model, found none. Run python tlstm.py first.")
    model = read_json(folder / "model.json")
    if model.pop("format", None) not in READABLE:
        raise InputError(f"{folder / 'model.json'}: expected format {FORMAT}. Run python tlstm.py again.")
    saved_digests, weights = model.pop("digests", None), (folder / "model.pt").read_bytes()
    for name, digest in _digests(model, weights).items():
        if not isinstance(saved_digests, dict) or saved_digests.get(name) != digest:
            raise InputError(f"{folder / name}: damaged: it is not what was saved. Run python tlstm.py again.")
    return model, weights


def _digests(model: dict[str, Any], weights: bytes) -> dict[str, str]:
    """A hash of each file's content: with a flipped bit, a number would often still be a number."""
    contents = {"model.json": json.dumps(model, sort_keys=True).encode(), "model.pt": weights}
    return {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in contents.items()}
