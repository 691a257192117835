"""What README.md and the other pages say still holds: commands, settings, files, exit codes, modules, the version."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from house import FILES, MAY_IMPORT, MODULES, PACKAGES, PROGRAMS, ROOMS, ROOT, arrows_between_rooms

from config import Config, read_config
from runs.errors import InputError
from runs.manifest import RECORD
from runs.processes import STOPPED, exit_code
from runs.stages import STAGES
from runs.version import VERSION

PAGES = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "examples/README.md"),
    ".github/pull_request_template.md",
)
WORKFLOWS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml"))
NOT_SETTINGS = {"OMP_NUM_THREADS", "TF_CONFIG", "PACKAGE"}  # of the environment, of make
BESIDE_THE_STAGES = {"splits", "run.log", RECORD}  # in a run's folder, made by no single stage


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code_of(page):
    """The pieces of code on a page: what stands in backticks, and the lines of its code blocks."""
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    words = re.sub(r"\s*\\\n\s*", " ", read(page))  # a long command goes on in the next line
    lines = [line for block in fence.findall(words) for line in block.splitlines()[1:-1]]
    words = fence.sub("", words)
    lines += re.findall(r"^ {4}(\S.*)", words, re.MULTILINE)
    return [*lines, *re.findall(r"`([^`\n]+)`", words)]


def section(page, title):
    """The text under a heading, up to the next one of its level."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", read(page), re.MULTILINE | re.DOTALL)[1]


def rows(words):
    """The rows of a table, as lists of cells."""
    lines = [line for line in words.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def make_calls(text):
    """The targets and the packages of every `make` in a text."""
    calls = [call.split() for call in re.findall(r"\bmake((?: [.\w=]+)+)", text)]
    targets = {word for words in calls for word in words if "=" not in word}
    return targets, {word.removeprefix("PACKAGE=") for words in calls for word in words if "=" in word}


def targets():
    return set(re.findall(r"^([.\w]+):(?!=)", read("Makefile"), re.MULTILINE)) - {".PHONY"}


# ---- Commands ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page):
    for code in code_of(page):
        called, packages = make_calls(code)
        assert called <= targets(), code
        for package in packages:
            assert (ROOT / "tests" / package).is_dir() or (ROOT / "tests" / f"test_{package}.py").is_file(), code


def test_the_makefile_describes_every_target():
    described = read("Makefile").split("PYTHON ?=")[0]
    assert make_calls(described)[0] >= targets() - {".venv/installed", ".venv/developing"}


@pytest.mark.parametrize("page", WORKFLOWS)
def test_every_form_and_workflow_can_be_read(page):
    content = yaml.safe_load(read(page))
    assert content["name"]


@pytest.mark.parametrize("page", ["ci.yml", "weekly.yml"])
def test_the_workflows_call_make(page):
    text = read(f".github/workflows/{page}")
    commands = "\n".join(line.partition("#")[0] for line in text.splitlines())
    called, _ = make_calls(re.sub(r"[\[\],]", "\n", commands))
    assert called and called <= targets()
    assert called == {"ci.yml": {"lint", "test"}, "weekly.yml": {"slow", "coverage", "bench"}}[page]


def test_what_must_pass_before_a_change_lands_is_what_the_pages_say():
    called, _ = make_calls(read(".ci/run"))
    assert called == {"lint", "test"}
    assert "make test" in "\n".join(code_of("README.md"))


def test_the_hooks_call_the_tools_of_the_project():
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0] for hook in hooks}
    assert tools == {".venv/bin/ruff", ".venv/bin/mypy"}
    for tool in tools:
        assert re.search(rf"^{Path(tool).name}==", read("requirements-dev.txt"), re.MULTILINE)


def commands_of(page):
    """The calls of our programs on a page: each program and its options, such as `--EPOCHS 3`."""
    call = re.compile(r"python (?:\S*/)?(\w+\.py)((?: --[\w-]+(?:[ =](?!-)\S+)?)*)")
    return [(program, options.split()) for code in code_of(page) for program, options in call.findall(code)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_taken(page):
    """Its program is there, and its settings are read without a complaint."""
    for program, options in commands_of(page):
        assert (ROOT / program).is_file(), program
        if not {"--help", "--version"} & set(options):
            read_config(options)


@pytest.mark.parametrize("program", ["main.py", "tlstm.py", "predict.py"])
def test_every_program_says_its_version(program):
    command = [sys.executable, str(ROOT / program), "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert VERSION in done.stdout.split()


# ---- Settings ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES)
def test_every_setting_exists(page):
    named = set()
    for code in code_of(page):
        named |= set(re.findall(r"--([A-Z][A-Z_]+)\b", code))
        named |= set(re.findall(r"^([A-Z][A-Z_]{2,})(?:=\S+)?$", code))
    assert named - NOT_SETTINGS <= set(Config.model_fields)


def test_the_settings_of_your_own_data_are_five():
    named = [re.match(r"`(\w+)`", cells[0]) for cells in rows(section("README.md", "Your own data in five settings"))]
    assert len([match for match in named if match]) == 5


# ---- Files ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_project_that_is_named_exists(page):
    """What ends like a file of ours, but what holds a place for a name."""
    ours = re.compile(r"(?<![\w<./-])((?:[\w.-]+/)*[\w.-]+\.(?:py|md|txt|toml|yml|cff|sh))\b")
    named = {name for code in code_of(page) for name in ours.findall(code)}
    named |= {link for link in re.findall(r"\]\(([^)#]+)\)", read(page)) if not link.startswith("http")}
    beside = (ROOT / page).parent
    assert [name for name in sorted(named) if not (ROOT / name).exists() and not (beside / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_name_is_where_the_page_says(page):
    """Such as "`run_main` of `runs/processes.py`"."""
    for name, path in re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.py)`", read(page)):
        assert re.search(rf"\b(?:def|class) {name}\b|^ *{name}\b.*[:=]", read(path), re.MULTILINE), (name, path)


def test_what_a_run_leaves_is_made_by_its_stages():
    made = {Path(name).parts[0] for stage in STAGES.values() for name in stage.makes} | BESIDE_THE_STAGES
    named = [name for cells in rows(section("README.md", "What a run leaves")) for name in cells[0].split("`")[1::2]]
    named.remove("outputs/")
    assert {Path(name).parts[0] for name in named} == made - {"explained_cohort"}


@pytest.mark.parametrize(
    "page, title", [("README.md", "What a run leaves"), ("docs/architecture.md", "A run's folder")]
)
def test_every_file_of_a_run_is_written_somewhere(page, title):
    """Its name stands in the code, in quotes or at the end of a path; `shap.nii.gz` as `{method}.nii.gz`."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    named = set(re.findall(r"(?<![\w>*}.])\w[\w.]*\.(?:csv|json|html|h5|log|pt|gz)\b", section(page, title)))
    assert named >= {"config.json", "run.log", "metrics.json", "report.html", "predictions.csv"}
    maps = {f"{method}.nii.gz" for method in ("shap", "gradcam") if f'"{method}"' in sources}
    assert [name for name in named - maps if not re.search(rf"[\"'/]{re.escape(name)}[\"'`]", sources)] == []


# ---- Exit codes ----------------------------------------------------------------------------------------
def ends_with(error):
    def run():
        if error:
            raise error

    return exit_code(run)


def test_the_exit_codes_are_those_of_the_table():
    table = rows(section("README.md", "Stopping, going on, checking"))
    codes = {int(cells[0]): cells[1] for cells in table if cells[0].isdigit()}
    assert sorted(codes) == [0, 1, 2, STOPPED]
    for error, word in ((None, "done"), (OSError(), "disk"), (InputError(), "mend"), (KeyboardInterrupt(), "stopped")):
        assert word in codes[ends_with(error)]


# ---- The architecture ----------------------------------------------------------------------------------
def words_in_backticks(text):
    return set(re.findall(r"`([\w/.]+)`", text))


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_the_architecture_names_every_module_and_no_other(package):
    _, *packages = rows(section("docs/architecture.md", "What each package holds"))
    table = {name.strip("`/"): words for name, words in packages}
    assert set(table) == PACKAGES
    modules = {name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")}
    assert words_in_backticks(table[package]) - {"page.html.j2"} == modules


def test_the_architecture_names_every_file_at_the_top():
    named = words_in_backticks(read("docs/architecture.md"))
    assert {f"{name}.py" for name in FILES} <= named


def test_the_architecture_shows_the_table_of_imports_that_is_enforced():
    named = {"nothing": set(), "all but the programs": MAY_IMPORT["reporting"], "anything": ROOMS}
    shown = {}
    for importers, imported, _ in rows(section("docs/architecture.md", "The house"))[1:]:
        listed = re.fullmatch(r"`([\w ]+)`", imported)
        shown |= dict.fromkeys(words_in_backticks(importers), set(listed[1].split()) if listed else named[imported])
    assert shown == {room: ROOMS if room in PROGRAMS else may for room, may in MAY_IMPORT.items()}


def test_the_diagram_shows_the_house():
    """Each room; no arrow that may not be; and every import along its arrows."""
    diagram = re.search(r"```mermaid\n(.*?)```", read("docs/architecture.md"), re.DOTALL)[1]
    lines = [line.partition("-->") for line in diagram.splitlines() if line and not re.match(r"\s*class", line)]
    named = {re.match(r"\s*(\w+)", left)[1] for left, _, _ in lines} - {"flowchart"}
    arrows = {room: set() for room in named}
    for left, _, right in lines:
        if right:
            arrows[re.match(r"\s*(\w+)", left)[1]] |= set(right.replace("&", " ").split())
    assert named == ROOMS
    assert [room for room in arrows if not arrows[room] <= MAY_IMPORT[room]] == []
    for room, imported in arrows_between_rooms().items():
        assert imported <= along(arrows, room), room


def along(arrows, room):
    reached = set(arrows[room])
    for other in arrows[room]:
        reached |= along(arrows, other)
    return reached


# ---- The version ---------------------------------------------------------------------------------------
def test_the_version_is_one():
    citation = yaml.safe_load(read("CITATION.cff"))
    headings = re.findall(r"^## (.*)", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == f"{VERSION} - {citation['date-released']}"
    assert citation["version"] == VERSION
    written = [name for name, path in MODULES.items() if f'"{VERSION}"' in path.read_text(encoding="utf-8")]
    assert written == ["runs.version"]
