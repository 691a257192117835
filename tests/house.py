"""The house as it lies on the disk: its files, its packages, what each module imports, and what it may import."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILES = {path.stem for path in ROOT.glob("*.py")}  # what the user opens
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")}
ROOMS = FILES | PACKAGES
PROGRAMS = {"main", "predict"}  # may import anything; nothing imports them
ALSO_PROGRAMS = {"tlstm"}  # others import them; their function `main` alone may import anything
_MAY_IMPORT = {
    "runs": "",
    "model": "",
    "loss": "",
    "config": "runs",
    "cohort": "runs",
    "survival": "cohort runs",
    "data": "config cohort runs",
    "callbacks": "survival runs",
    "tlstm": "config survival cohort runs",
    "attribution": "model survival cohort runs",
    "explain": "attribution model runs",
    "training": "config data model loss callbacks cohort runs",
}
MAY_IMPORT = {  # by room, the rooms that it may import; docs/architecture.md shows and explains the same table
    **{room: set(rooms.split()) for room, rooms in _MAY_IMPORT.items()},
    "reporting": ROOMS - PROGRAMS - {"reporting"},
    **{program: ROOMS - {program} for program in PROGRAMS},
}
MODULES = {  # by name, such as `survival.cox`; a package's own name stands for its `__init__.py`
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted([*ROOT.glob("*.py"), *(path for room in PACKAGES for path in (ROOT / room).glob("*.py"))])
}


class Import(NamedTuple):
    """A module that another one imports."""

    name: str  # such as `survival.cox`, `keras.layers`
    lazy: bool  # within a function, or for a type checker alone


def room_of(module):
    """The file or package that a module lies in: of `survival.cox`, `survival`."""
    return module.split(".")[0]


@cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports_of(module):
    """Every import of a module of ours; `from survival import cox` imports both `survival` and `survival.cox`.

    The function `main` of those in ALSO_PROGRAMS is left out: `imported_by_main` has its imports.
    """
    return _imports_within(
        [node for node in tree_of(module).body if not _is_main(node) or module not in ALSO_PROGRAMS], module
    )


def imported_by_main(module):
    """The imports within the function `main` of a module of ours."""
    return _imports_within([node for node in tree_of(module).body if _is_main(node)], module)


def _is_main(node):
    return isinstance(node, ast.FunctionDef) and node.name == "main"


def _imports_within(nodes, module):
    found = set()

    def walk(node, lazy):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(Import(alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: a relative import"
                parts = (f"{child.module}.{alias.name}" for alias in child.names)
                found.update(Import(name, lazy) for name in (child.module, *(p for p in parts if p in MODULES)))
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            walk(child, lazy or inside or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)))

    walk(ast.Module(nodes, []), False)
    return found


def arrows_between_rooms():
    """Each room and the rooms that it imports."""
    rooms = {room: set() for room in ROOMS}
    for module in MODULES:
        rooms[room_of(module)] |= {room_of(imported.name) for imported in imports_of(module)} & ROOMS
    return {room: imported - {room} for room, imported in rooms.items()}


def reached_from(module, *, lazily):
    """The modules of ours that importing one imports, at whatever depth, itself included.

    Args:
        module: of ours.
        lazily: whether to follow imports within functions too.
    """
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in seen:
            seen.add(name)
            waiting += [room_of(name), *(imported.name for imported in imports_of(name) if lazily or not imported.lazy)]
    return seen
