"""The house as DESIGN.md draws it: who may import whom, from the imports themselves."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
ROOMS = {path.stem for path in HERE.glob("*.py")}
MAY_IMPORT = {  # rooms of ours, beside `files`, which all may
    "config": set(),
    "files": set(),
    "processes": set(),
    "lock": set(),
    "manifest": set(),
    "threads": {"manifest"},
    "backend": set(),
    "simulate": set(),
    "readers": set(),
    "tables": {"readers"},
    # stage 1
    "nifti": set(),
    "cluster": set(),
    "data": {"cluster", "nifti", "tables"},
    "augment": set(),
    "model": set(),
    "loss": set(),
    "callbacks": {"metrics"},
    "distribute": {"data"},
    "steps": {"augment", "distribute", "loss", "model"},
    "train": {"callbacks", "distribute", "model", "processes", "steps", "tables"},
    "tracking": set(),
    # stage 2
    "sequences": {"tables"},
    "linear": {"sequences"},
    "predictions": {"linear", "metrics", "sequences", "tables"},
    "crossval": {"linear", "metrics", "predictions", "sequences"},
    "tlstm": {
        *("config", "crossval", "linear", "lock", "metrics", "predictions", "processes", "sequences", "tables"),
        "threads",
    },
    "crossfit": {"linear"},
    # how good it is
    "estimates": set(),
    "metrics": {"estimates"},
    "baselines": {"metrics", "tables"},
    "evaluation": {"baselines", "metrics", "predictions", "tables"},
    "results": {"manifest"},
    "figures": set(),
    "report": {"figures", "metrics", "results"},
    # what it looked at
    "gradients": {"model"},
    "evidence": set(),
    "regions": {"nifti", "readers"},
    "attribution": {"evidence", "gradients", "model"},
    "explain": {"attribution", "evidence", "gradients", "regions"},
    "pictures": {"evidence", "regions"},
    "histories": {"metrics", "predictions", "regions", "sequences"},
    "timelines": {"figures", "histories"},
    # the order of things
    "record": {"config", "data", "manifest", "tables"},
    "inputs": {"config", "data", "record", "simulate", "tables"},
    "explanations": {
        *("config", "data", "evaluation", "explain", "gradients", "histories", "inputs", "nifti", "pictures"),
        *("regions", "tables", "timelines", "tlstm"),
    },
    "folds": {"config", "evaluation", "linear", "predictions", "tables"},
    "predict": {
        *("backend", "config", "data", "manifest", "model", "predictions", "processes", "tables", "threads"),
        *("tlstm", "train"),
    },
    "verify": {
        *("backend", "config", "data", "distribute", "inputs", "manifest", "model", "record", "simulate", "steps"),
        *("tables", "threads"),
    },
    "main": ROOMS,
}
TENSORFLOW = {
    "attribution",
    "augment",
    "backend",
    "callbacks",
    "data",
    "distribute",
    "explain",
    "gradients",
    "loss",
    "model",
    "steps",
    "train",
    "verify",
}
TORCH = {"tlstm"}
READ_THE_CONFIG = {"main", "tlstm", "predict", "record", "folds", "inputs", "explanations", "verify"}


def imports_of(room):
    """Every module that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse((HERE / f"{room}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_every_room_has_its_place():
    assert set(MAY_IMPORT) == ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_it_may(room):
    imported = imports_of(room)
    assert imported & ROOMS <= MAY_IMPORT[room] | {"files"}
    assert not imported & {"tensorflow", "keras"} or room in TENSORFLOW
    assert not imported & {"torch", "torchsurv"} or room in TORCH
    assert "config" not in imported or room in READ_THE_CONFIG


def reaches(room):
    """The rooms that importing one imports, at whatever depth."""
    seen, waiting = set(), [room]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += imports_of(one) & ROOMS
    return seen


@pytest.mark.parametrize("room", ["tables", "metrics", "tlstm", "report"])
def test_tensorflow_is_never_behind_it(room):
    assert not any({"tensorflow", "keras"} & imports_of(one) for one in reaches(room))
