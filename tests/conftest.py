"""What several tests share: a seeded generator and a tiny simulated cohort."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

from cohort import simulate


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the marks
def pytest_collection_modifyitems(items):
    """Give the tests that share what a module's fixture has made to one worker of xdist, which makes it once."""
    for item in items:
        fixtures = [fixture for same_name in item._fixtureinfo.name2fixturedefs.values() for fixture in same_name]
        if any(fixture.scope == "module" for fixture in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


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
