"""A function that writes a table as a file, with the volumes that it names."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "cohort.csv", volumes: bool = True) -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode())
        if volumes:
            for image in ("a1", "a2", "b1", "c1"):
                (tmp_path / f"{image}.nii.gz").touch()
        return path

    return write
