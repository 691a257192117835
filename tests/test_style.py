"""The house style's figures, from the code itself: docstrings, annotations, sizes. `pytest -s` prints them."""

import ast
import re
import statistics
from dataclasses import dataclass, field

import pytest
from house import MODULES, tree_of

MOST_BODY = 45  # lines of a function, without its docstring
MOST_ARGUMENTS = 7  # after self
MOST_FILE = 420  # lines of a file
LONGER_FILES = {"tlstm": 600}  # all of stage 2's network in one file, by request
LEAST_WITH_SHAPE = 0.8  # share of the public docstrings beside arrays that say a shape or a unit
SHAPE = re.compile(r"\((?:[A-Za-z0-9_+*. ]+,)+(?: ?[A-Za-z0-9_+*. ]+)?\)")  # (N,) or (B, V, F)
UNIT = re.compile(
    r"\b(years?|mm|voxels?|seconds?|bytes?|hours?|degrees|log-hazards?|probabilit|share|pixels?|inches|days|months|"
    r"0 (?:to|\.\.\.) 1|rows?|subjects?|CPU s|threads|MiB|nats)\b"
)
ARRAY = re.compile(r"ndarray|Tensor|DataFrame|Series|Landmarks|RiskSets|Histories")
PLACEHOLDER = re.compile(r"\b(TODO|FIXME|XXX)\b")


@dataclass
class Function:
    """A function as it is written: where, how long, what it takes and what it says."""

    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef
    public: bool
    arguments: list[ast.arg] = field(default_factory=list)  # without self and cls

    @property
    def place(self):
        return f"{self.module}:{self.node.lineno} {self.node.name}"

    @property
    def words(self):
        return ast.get_docstring(self.node) or ""

    @property
    def body_lines(self):
        body = self.node.body[1:] if self.words else self.node.body
        return body[-1].end_lineno - body[0].lineno + 1 if body else 0

    @property
    def has_array(self):
        signature = ast.unparse(self.node.args) + (ast.unparse(self.node.returns) if self.node.returns else "")
        return bool(ARRAY.search(signature))

    @property
    def says_shape(self):
        return bool(SHAPE.search(self.words) or UNIT.search(self.words))

    @property
    def unannotated(self):
        starred = [argument for argument in (self.node.args.vararg, self.node.args.kwarg) if argument]
        return [each.arg for each in (*self.arguments, *starred) if each.annotation is None and each.arg != "_"]


def functions_of(module):
    """Every function of a module: methods, private ones and those within others too."""
    found = []

    def walk(node, public, in_class):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
                if in_class and arguments and arguments[0].arg in ("self", "cls"):
                    arguments = arguments[1:]
                found.append(Function(module, child, public and not child.name.startswith("_"), arguments))
                walk(child, False, False)
            elif isinstance(child, ast.ClassDef):
                walk(child, public and not child.name.startswith("_"), True)
            else:
                walk(child, public, in_class)

    walk(tree_of(module), True, False)
    return found


FUNCTIONS = [function for module in sorted(MODULES) for function in functions_of(module)]
PUBLIC = [function for function in FUNCTIONS if function.public]


def none_of(places):
    """Fail with every place, a line each."""
    if places:
        pytest.fail("\n".join([f"{len(places)} places:", *places]), pytrace=False)


def share(part, whole):
    return f"{len(part)} of {len(whole)}, {len(part) / len(whole):.0%}"


def test_whatever_is_public_says_what_it_does():
    silent = [function.place for function in PUBLIC if not function.words]
    for module in sorted(MODULES):
        tree = tree_of(module)
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
        silent += [f"{module}: {getattr(node, 'name', '')}" for node in (tree, *classes) if not ast.get_docstring(node)]
    print(f"\npublic functions with a docstring: {share([each for each in PUBLIC if each.words], PUBLIC)}")
    none_of(silent)


def test_nothing_is_left_to_be_written():
    lines = {name: path.read_text(encoding="utf-8").splitlines() for name, path in MODULES.items()}
    none_of([f"{name}: {line.strip()}" for name in lines for line in lines[name] if PLACEHOLDER.search(line)])


def test_docstrings_beside_arrays_say_shapes_or_units():
    arrays = [function for function in PUBLIC if function.has_array]
    saying = [function for function in arrays if function.says_shape]
    print(f"\nwith a shape or unit, of those beside arrays: {share(saying, arrays)}")
    print(f"of all that are public: {share([each for each in PUBLIC if each.says_shape], PUBLIC)}")
    if len(saying) < LEAST_WITH_SHAPE * len(arrays):
        none_of([each.place for each in arrays if not each.says_shape])


def test_every_argument_is_annotated():
    arguments = sum(len(function.arguments) for function in FUNCTIONS)
    bare = [f"{function.place}: {', '.join(function.unannotated)}" for function in FUNCTIONS if function.unannotated]
    print(f"\narguments: {arguments}; functions with one that is not annotated: {len(bare)}")
    none_of(bare)


def test_no_function_is_long():
    lengths = sorted((function.body_lines, function.place) for function in FUNCTIONS)
    lines = [length for length, _ in lengths]
    median, p90 = statistics.median(lines), lines[int(0.9 * len(lines))]
    print(f"\n{len(lines)} functions; lines of a body: median {median:g}, 90 % {p90}, most {lines[-1]}")
    none_of([f"{place}: {length} lines" for length, place in lengths if length > MOST_BODY])


def test_no_function_takes_many_arguments():
    taking = [(len(function.arguments), function.place) for function in FUNCTIONS]
    print(f"\narguments of a function: most {max(taking)}")
    none_of([f"{place}: {number} arguments" for number, place in sorted(taking) if number > MOST_ARGUMENTS])


def test_no_file_is_long():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    longest = sorted(lines, key=lambda name: lines[name])[-4:]
    print(f"\n{len(lines)} files; longest: {', '.join(f'{name} {lines[name]}' for name in reversed(longest))}")
    none_of([f"{name}: {n} lines" for name, n in lines.items() if n > LONGER_FILES.get(name, MOST_FILE)])
