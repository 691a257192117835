"""What `make coverage` has measured, by program file and by package; coverage's own report lists single modules.

.venv/bin/coverage report -m     each module, with the lines that no test reaches
"""

import json
import subprocess
import sys
from pathlib import Path

from house import FILES, PACKAGES, ROOT

COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def rows(files):
    """Statements and branches of each room, and how many of them were reached, with a last row for all.

    Args:
        files: of coverage's JSON report, by path relative to the project's root.
    """
    totals = {room: dict.fromkeys(COUNTS, 0) for room in (*sorted(FILES), *sorted(PACKAGES), "all")}
    for path, file in files.items():
        for name in (Path(path).parts[0].removesuffix(".py"), "all"):
            for count in COUNTS:
                totals[name][count] += file["summary"][count]
    return totals


def share(reached, of):
    return f"{reached / of:.1%}" if of else "-"


def main():
    """Print the table; coverage's data must be combined."""
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{'':<12} statements  reached  branches  reached")
    for room, total in rows(json.loads(done.stdout)["files"]).items():
        statements, lines, branches, taken = (total[count] for count in COUNTS)
        print(f"{room:<12} {statements:10}  {share(lines, statements):>7}  {branches:8}  {share(taken, branches):>7}")


if __name__ == "__main__":
    main()
