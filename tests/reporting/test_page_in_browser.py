"""The page in a real browser: slow, and needs Debian's `chromium` (apt-get install chromium)."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from sample_run import write_run

from reporting.brains import write_viewer
from reporting.page import Inlined, render, write_report
from reporting.run_folder import RunFolder
from reporting.scene import make_scene
from runs.files import read_json, write_json

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--disable-features=IsolateSandboxedIframes "  # in a process of their own, virtual time would not wait for them
    "--no-first-run --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
).split()
ACT = """
<script>
const heard = [];
addEventListener("message", event => heard.push(event.data));
addEventListener("load", () => setTimeout(() => {
  const told = {};
  const rows = () => Array.from(document.querySelectorAll("#subjects tbody tr")).filter(row => !row.hidden);
  const column = number => rows().map(row => row.cells[number].textContent);
  const heads = document.querySelectorAll("#subjects th button");
  heads[6].click(); told.ascending = column(6).map(Number);
  heads[6].click(); told.descending = column(6).map(Number);
  heads[0].click(); told.names = column(0);
  const search = document.getElementById("search");
  search.value = "test High"; search.dispatchEvent(new Event("input"));
  told.found = rows().map(row => [row.cells[1].textContent, row.cells[5].textContent]);
  told.count = document.getElementById("found").textContent;
  const frames = Array.from(document.querySelectorAll("iframe"));
  for (const frame of frames) { frame.loading = "eager"; frame.scrollIntoView(); }
  let waited = 0;
  const ready = setInterval(() => {
    if (heard.length < frames.length && ++waited < 60) return;
    clearInterval(ready);
    told.frames = heard;
    told.readable = frames.filter(frame => frame.contentDocument).length;
    told.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
    told.images = Array.from(document.images, image => image.naturalWidth);
    told.ran = Boolean(window.ran);
    const pre = document.createElement("pre");
    pre.id = "told"; pre.textContent = JSON.stringify(told); document.body.append(pre);
  }, 200);
}, 500));
</script>
"""


TELL = """
<script>
addEventListener("load", () => setTimeout(() => {
  const canvas = document.querySelector("canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colour = (_, i) => pixels.slice(4 * i, 4 * i + 3).join();
  let reached = true;
  try { parent.document.title; } catch { reached = false; }
  parent.postMessage({
    title: document.title, reached, ran: Boolean(window.ran), text: document.body.innerText.trim(),
    colours: new Set(Array.from({length: pixels.length / 4}, colour)).size,
    loaded: performance.getEntriesByType("resource").map(entry => entry.name),
  }, "*");
}, 2000));
</script>
"""
RUNS = "ran = 1; parent.ran = 1"
HOSTILE = (
    f"</script></title><script>{RUNS}</script>, é",
    f"\"><img src=x onerror='{RUNS}'>",
    f"'+({RUNS.replace('; ', ',')})+'\\\" & {{{{ 7 * 7 }}}} $\\frac$",
)


ON_PAPER = """
<script>
addEventListener("load", () => setTimeout(() => {
  document.body.style.width = "186mm";  // A4 less its margins
  dispatchEvent(new Event("beforeprint"));
  const right = document.body.getBoundingClientRect().right;
  const heads = Array.from(document.querySelectorAll("th, td:last-child, img, p"));
  const told = {
    beyond: heads.filter(part => part.getBoundingClientRect().right > right + 1).map(part => part.textContent),
    shut: document.querySelectorAll("details:not([open])").length,
    shown: Array.from(document.querySelectorAll("iframe, nav, .moves"), part => getComputedStyle(part).display),
    note: document.getElementById("note-a").innerText,
  };
  dispatchEvent(new Event("afterprint"));
  told.shutAgain = document.querySelectorAll("details:not([open])").length;
  const pre = document.createElement("pre");
  pre.id = "told"; pre.textContent = JSON.stringify(told); document.body.append(pre);
}, 500));
</script>
"""


def make_hostile(folder, title, name):
    """Write an explanation of a scan whose names would run as scripts, and let its viewer tell what it is."""
    shutil.copytree(folder / "explain" / "S100_v2", folder / "explain" / name)
    i, j, k = np.indices((20, 24, 20)) - np.array([10, 12, 10]).reshape(3, 1, 1, 1)
    brain = (i**2 + j**2 + k**2 < 64).astype(np.float32)
    scene = make_scene(brain * (30 + i), brain * i, np.diag([4.0, 4, 4, 1]), unit=title)
    viewer = write_viewer(folder / "explain" / name / "shap.html", scene, title)
    viewer.write_text(viewer.read_text(encoding="utf-8").replace("</body>", TELL + "</body>"), encoding="utf-8")
    regions = pd.DataFrame({"region": [title], "attribution": [0.1], title: [title]})
    regions.to_csv(folder / "explain" / name / "regions.csv", index=False)
    write_json(folder / "explain" / name / "metrics.json", {title: {title: title}})


def rename_everywhere(folder, name):
    """Give a subject, a baseline, a setting and a warning of a run this name."""
    for path in (folder / "tlstm" / "predictions.csv", *(folder / "splits").iterdir()):
        pd.read_csv(path).replace({"S100": name, "S100_v2": name}).to_csv(path, index=False)
    metrics, record = read_json(folder / "metrics.json"), read_json(folder / "config.json")
    metrics["baselines"][name] = metrics["baselines"]["cox_last_slope"]
    record["settings"][name] = name
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "config.json", record)
    with open(folder / "run.log", "a", encoding="utf-8") as log:
        log.write(f"2026-01-31 12:00:00,000 WARNING {name}: {name}\n")


def browse(page):
    """Open a page in a browser without a network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert browser, f"expected one of {', '.join(BROWSERS)}: apt-get install chromium"
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}"]
    command = [browser, *QUIET, *alone, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def told_by(done):
    """What the page's own script found."""
    return json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Warning. 'partition' will ignore the 'mask':UserWarning")  # of nilearn's
def test_the_page_works_in_chromium_without_a_network_and_runs_no_script_of_the_data(tmp_path):
    write_run(tmp_path)
    for number, title in enumerate(HOSTILE):
        make_hostile(tmp_path, title, f"hostile{number}")
        rename_everywhere(tmp_path, title)
    shutil.rmtree(tmp_path / "explain" / "S100_v2")
    page = write_report(tmp_path)
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", ACT + "</body>"), encoding="utf-8")

    done = browse(page)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if re.search("error|refused|violat|uncaught", line, re.IGNORECASE)], console
    told = told_by(done)
    assert not [name for name in told["loaded"] if not name.startswith("data:")]
    assert len(told["ascending"]) == 120 and told["ascending"] == sorted(told["ascending"])
    assert told["descending"] == told["ascending"][::-1] and told["names"] == sorted(told["names"])
    assert told["found"] and set(map(tuple, told["found"])) == {("test", "high")}
    assert told["count"] == f"{len(told['found'])} predictions"
    assert min(told["images"]) > 10
    assert not told["ran"] and told["readable"] == 0  # the page can't reach into a viewer
    assert {frame["title"] for frame in told["frames"]} == {f"Nilearn - {title}" for title in HOSTILE}
    for frame in told["frames"]:
        assert not frame["ran"] and not frame["reached"] and frame["text"] == "Opacity"
        assert frame["colours"] > 100 and not [name for name in frame["loaded"] if not name.startswith("data:")]


@pytest.mark.slow
@pytest.mark.parametrize("horizons", [3, 6])
def test_on_paper_nothing_is_cut_off_or_folded(tmp_path, horizons):
    """The rules for print, laid out at the width of a sheet."""
    write_run(tmp_path)
    metrics = read_json(tmp_path / "metrics.json")
    for test in (metrics["cnn"]["test"], metrics["tlstm"]["test"], metrics["baselines"]["cox_last_slope"]["test"]):
        test["auc"] = {f"{year + 1}.0": test["auc"]["2.0"] for year in range(horizons)}
    metrics["tlstm"]["test"]["ibs"] = {"value": None, "low": None, "high": None, "why": "nobody is left"}
    write_json(tmp_path / "metrics.json", metrics)
    inlined = Inlined(10**9)
    text = render(RunFolder.read(tmp_path), [], inlined).replace("@media print", "@media all")
    page = tmp_path / "paper.html"
    page.write_text(text.replace("</body>", ON_PAPER + "</body>"), encoding="utf-8")

    told = told_by(browse(page))
    assert told["beyond"] == [] and told["shut"] == 0 and told["shutAgain"] > 0
    assert set(told["shown"]) == {"none"}
    assert told["note"] == "a nobody is left"
