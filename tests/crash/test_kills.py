"""kill -9 at 20 random moments, ten of them inside writes: what comes out is what an unbroken run gives."""

import json
import time

import numpy as np
import pytest
from kills import go_on, kill_at
from runs import SMALL, results, run

SEED = 7
RUNS, KILLS = 5, 4  # of each run
ARGUMENTS = [*SMALL, "--EPOCHS=3", "--EXPLAIN=highest", "--EXPLAIN_COHORT=0", "--NUM_WORKERS=2"]
MOST_WRITES = 150  # temporaries that an unbroken run is seen to write, about


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a run that nobody kills gives, and how long it takes."""
    folder = tmp_path_factory.mktemp("unbroken") / "outputs"
    began = time.monotonic()
    done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    return results(folder), time.monotonic() - began


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("number", range(RUNS))
def test_a_run_that_is_killed_again_and_again_comes_to_the_same(unbroken, tmp_path, number):
    expected, seconds = unbroken
    rng = np.random.default_rng([SEED, number])
    folder, kills = tmp_path / "outputs", []
    while len(kills) < KILLS and all(kill["killed"] for kill in kills):  # it may come to its end before the moment
        after, writes = rng.uniform(2, seconds / 2), rng.integers(1, MOST_WRITES // KILLS)
        moments = (lambda elapsed, _, after=after: elapsed >= after, lambda _, seen, writes=writes: seen >= writes)
        kills.append(kill_at(folder, ARGUMENTS, moments[len(kills) % 2]))
    go_on(folder, ARGUMENTS)
    print(json.dumps({"run": number, "kills": kills}))
    assert results(folder) == expected
