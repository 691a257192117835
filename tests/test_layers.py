"""The house as DESIGN.md section 2 draws it: who may import whom, and where the slow libraries are imported.

Read from the imports themselves, those within functions too. `pytest -s` prints the figures of the house.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from house import (
    ALSO_PROGRAMS,
    FILES,
    MAY_IMPORT,
    MODULES,
    PACKAGES,
    PROGRAMS,
    ROOMS,
    ROOT,
    arrows_between_rooms,
    imported_by_main,
    imports_of,
    reached_from,
    room_of,
    tree_of,
)

READ_THE_SETTINGS = {
    "main",
    "predict",
    "tlstm",
    "data",
    "training",
    "reporting.explained",
    "reporting.preflight",
    "reporting.verify",
}
TENSORFLOW = {"model", "loss", "callbacks", "explain", "training", "attribution.gradients"}
TENSORFLOW_WITHIN_FUNCTIONS = {"data", "reporting.explained", "reporting.verify"}
TORCH = {"tlstm"}
WITHOUT_TENSORFLOW = sorted(  # at whatever depth, within functions too
    module
    for module in MODULES
    if room_of(module) in {"runs", "config", "cohort", "survival", "tlstm"} or module == "reporting.page"
)
MOST_ROOMS, MOST_FLOORS, MOST_ARROWS = 16, 7, 60
SLOW = {"tensorflow", "keras", "nilearn", "shap"}  # libraries that stage 2 must not wait for


def libraries_of(module, *, lazily):
    """The top-level names that a module imports, ours and others'."""
    return {room_of(imported.name) for imported in imports_of(module) if lazily or not imported.lazy}


def is_listed(module, names):
    """Whether a module, or the package that it lies in, is among these."""
    return module in names or room_of(module) in names


# ---- The first table: the rooms --------------------------------------------------------------------------
def test_every_room_has_its_place():
    assert set(MAY_IMPORT) == ROOMS


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_says_what_lives_there_and_holds_nothing_else_itself(package):
    body = tree_of(package).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{package}/__init__.py: expected one docstring alone"
    words = ast.get_docstring(tree_of(package))
    assert words and "TODO" not in words and len(words) > 60, f"{package}/__init__.py: {words!r}"


def test_every_module_lies_in_a_package():
    """A folder of modules without `__init__.py` would be seen by none of these tests."""
    beside = {"tests", "benchmarks", "examples"}
    folders = {path.parent.name for path in ROOT.glob("[!.]*/*.py")}
    assert folders - beside == PACKAGES


# ---- The second table: what may import what --------------------------------------------------------------
@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_it_may(module):
    room = room_of(module)
    assert libraries_of(module, lazily=True) & ROOMS - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_is_imported_of_ours_exists(module):
    ours = {imported.name for imported in imports_of(module) if room_of(imported.name) in ROOMS}
    assert ours <= set(MODULES)


def test_the_settings_are_read_where_a_run_is_put_together():
    """Everything else is given the values that it needs, so that it can be called without a `Config`."""
    readers = {module for module in MODULES if "config" in libraries_of(module, lazily=True)}
    assert [module for module in readers if not is_listed(module, READ_THE_SETTINGS)] == []


def test_nothing_imports_a_program():
    importers = {module for module in MODULES if libraries_of(module, lazily=True) & PROGRAMS}
    assert importers <= PROGRAMS


@pytest.mark.parametrize("module", sorted(ALSO_PROGRAMS))
def test_a_program_that_others_import_imports_the_page_only_as_it_ends(module):
    """Within its function `main`, so that importing the module, or `--help`, does not load what draws the page."""
    imported = imported_by_main(module)
    assert {room_of(name) for name, _ in imported} & ROOMS == {"reporting"}
    reached = set().union(*(reached_from(name, lazily=True) for name, _ in imported))
    assert not [name for name in reached if {"tensorflow", "keras"} & libraries_of(name, lazily=True)]
    loaded = reached_from(module, lazily=False)
    assert not [name for name in loaded if room_of(name) == "reporting"]


def test_no_circle_of_rooms():
    """The house's figures too: `pytest -s` prints them."""
    rooms = arrows_between_rooms()
    floor = {}
    for room in TopologicalSorter(rooms).static_order():  # raises CycleError, which names the circle
        floor[room] = 1 + max((floor[other] for other in rooms[room]), default=0)
    num_arrows = sum(map(len, rooms.values()))
    print(f"\n{len(rooms)} rooms, {max(floor.values())} floors, {num_arrows} arrows, no circle")
    assert len(rooms) <= MOST_ROOMS
    assert max(floor.values()) <= MOST_FLOORS
    assert num_arrows <= MOST_ARROWS


def test_no_circle_of_modules():
    modules = {module: {imported.name for imported in imports_of(module)} & set(MODULES) for module in MODULES}
    modules = {module: names - {module, room_of(module)} for module, names in modules.items()}
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


# ---- Where the slow libraries are imported -----------------------------------------------------------------
@pytest.mark.parametrize("module", sorted(MODULES))
def test_tensorflow_is_imported_where_it_may_be(module):
    slow = {"tensorflow", "keras"}
    assert not slow & libraries_of(module, lazily=False) or is_listed(module, TENSORFLOW)
    lazily = TENSORFLOW | TENSORFLOW_WITHIN_FUNCTIONS
    assert not slow & libraries_of(module, lazily=True) or is_listed(module, lazily)


@pytest.mark.parametrize("module", sorted(set(MODULES) - PROGRAMS))
def test_tensorflow_is_loaded_by_those_modules_alone(module):
    """Importing a module that imports TensorFlow loads it too."""
    loaded = [name for name in reached_from(module, lazily=False) if is_listed(name, TENSORFLOW)]
    assert not loaded or is_listed(module, TENSORFLOW)


@pytest.mark.parametrize("module", WITHOUT_TENSORFLOW)
def test_tensorflow_is_never_behind_it(module):
    behind = reached_from(module, lazily=True)
    assert not [name for name in behind if {"tensorflow", "keras"} & libraries_of(name, lazily=True)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_torch_is_imported_by_stage_2_alone(module):
    assert "torchsurv" not in libraries_of(module, lazily=True)  # for tests and benchmarks: requirements-dev.txt
    assert "torch" not in libraries_of(module, lazily=True) or module in TORCH
    loaded = reached_from(module, lazily=False) & TORCH
    assert not loaded or module in TORCH | PROGRAMS


def test_stage_2_and_the_page_do_not_load_the_slow_libraries():
    """As Python imports them, other people's packages included."""
    code = f"import sys, {', '.join(WITHOUT_TENSORFLOW)}; print(*sorted({SLOW!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_files_are_those_that_the_design_names():
    assert FILES == {"config", "data", "model", "loss", "callbacks", "tlstm", "explain", "predict", "main"}
