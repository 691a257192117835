"""The page in a real browser: slow, and needs Debian's `chromium` (apt-get install chromium)."""

import json
import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from nilearn.plotting import view_img
from sample_run import write_run

from reporting.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
).split()
ACT = """
<script>
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
  const frame = document.querySelector("iframe");
  frame.scrollIntoView();
  setTimeout(() => {
    const canvas = frame.contentDocument.querySelector("canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const colour = (_, i) => pixels.slice(4 * i, 4 * i + 3).join();
    told.colours = new Set(Array.from({length: pixels.length / 4}, colour)).size;
    const pages = [window, frame.contentWindow];
    told.loaded = pages.flatMap(page => page.performance.getEntriesByType("resource").map(entry => entry.name));
    told.images = Array.from(document.images, image => image.naturalWidth);
    const pre = document.createElement("pre");
    pre.id = "told"; pre.textContent = JSON.stringify(told); document.body.append(pre);
  }, 3000);
}, 500));
</script>
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Warning. 'partition' will ignore the 'mask':UserWarning")  # of nilearn's
def test_the_page_works_in_chromium_without_a_network(tmp_path):
    write_run(tmp_path)
    i, j, k = np.indices((20, 24, 20)) - np.array([10, 12, 10]).reshape(3, 1, 1, 1)
    brain = (i**2 + j**2 + k**2 < 64).astype(np.float32)
    scan, values = (nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1])) for data in (brain * (30 + i), brain * i))
    viewer = re.sub("<link[^>]*icon[^>]*>", "", view_img(values, bg_img=scan).get_standalone())
    (tmp_path / "explain" / "S100_v2" / "shap.html").write_text(viewer)
    page = write_report(tmp_path)
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", ACT + "</body>"), encoding="utf-8")

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert browser, f"expected one of {', '.join(BROWSERS)}: apt-get install chromium"
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *QUIET, *alone, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if re.search("error|refused|violat|uncaught", line, re.IGNORECASE)], console
    told = json.loads(re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1])
    assert not [name for name in told["loaded"] if not name.startswith("data:")]
    assert len(told["ascending"]) == 120 and told["ascending"] == sorted(told["ascending"])
    assert told["descending"] == told["ascending"][::-1] and told["names"] == sorted(told["names"])
    assert told["found"] and set(map(tuple, told["found"])) == {("test", "high")}
    assert told["count"] == f"{len(told['found'])} predictions"
    assert told["colours"] > 100 and min(told["images"]) > 10
