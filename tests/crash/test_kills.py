"""kill -9 at 20 random moments, ten of them inside writes: what comes out is what an unbroken run gives."""

import json
import time

import numpy as np
import pytest
from kills import go_on, kill_at
from programs import SMALL, results, run, stages_done

SEED = 7
RUNS, KILLS = 5, 4  # of each run
ARGUMENTS = [*SMALL, "--EPOCHS=3", "--EXPLAIN=highest", "--EXPLAIN_COHORT=0", "--NUM_WORKERS=2"]
STAGES = ("cnn", "features", "tlstm", "explain", "figures")
CHANCE = 0.3  # that a write is the one to be killed in, each time that it is seen


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a run that nobody kills gives, and how long it takes."""
    folder = tmp_path_factory.mktemp("unbroken") / "outputs"
    began = time.monotonic()
    done = run(*ARGUMENTS, f"--OUTPUT_DIR={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    return results(folder), time.monotonic() - began


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", range(RUNS))
def test_a_run_that_is_killed_again_and_again_comes_to_the_same(unbroken, tmp_path, number):
    expected, seconds = unbroken
    rng = np.random.default_rng([SEED, number])
    folder, kills = tmp_path / "outputs", []
    while len(kills) < KILLS:
        left = [stage for stage in STAGES if stage not in stages_done(folder)]
        when = within(rng, folder / rng.choice(left[:2])) if len(kills) % 2 else after(rng.uniform(2, seconds / 2))
        killed = kill_at(folder, ARGUMENTS, when)
        if killed["killed"]:
            kills.append(killed)
        else:  # it came to its end before the moment
            assert results(folder) == expected
            folder = folder.with_name(f"outputs{len(kills)}")
    go_on(folder, ARGUMENTS)
    print(json.dumps({"run": number, "kills": kills}))
    assert results(folder) == expected


def after(seconds):
    return lambda elapsed, _: elapsed >= seconds


def within(rng, stage):
    """While a file of this stage is being written."""
    return lambda _, parts: any(part.startswith(str(stage)) for part in parts) and rng.random() < CHANCE
