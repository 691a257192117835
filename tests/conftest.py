"""What several tests share: a seeded generator and a tiny simulated cohort."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

from cohort import simulate
from runs.files import ROOT


class BySharedWork(LoadScopeScheduling):
    """Gives a file whose tests share what a fixture has made to one worker, which makes it once."""

    def _split_scope(self, nodeid):
        path = nodeid.split("::")[0]
        return path if 'scope="module"' in (ROOT / path).read_text(encoding="utf-8") else nodeid


def pytest_xdist_make_scheduler(config, log):
    return BySharedWork(config, log)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def anatomy():
    return simulate.build_anatomy()


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """The folder of a cohort of 12 subjects."""
    folder = tmp_path_factory.mktemp("cohort") / "simulated"
    simulate.write_cohort(folder, num_subjects=12, seed=0, jobs=1)
    return folder
