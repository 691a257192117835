"""The table of stages: in order, without a circle, each done by a method of the pipeline."""

from main import Pipeline
from runs.stages import STAGE_NAMES, STAGES


def test_the_table_has_every_stage_in_the_order_of_their_needs():
    assert tuple(STAGES) == STAGE_NAMES
    for place, stage in enumerate(STAGES.values()):
        assert set(stage.needs) <= set(STAGE_NAMES[:place])
        assert stage.makes
        assert all(any(folder.startswith(made) for made in stage.makes) for folder in stage.removes)
    settings = [setting for stage in STAGES.values() for setting in stage.settings]
    assert len(set(settings)) == len(settings)


def test_every_stage_is_done_by_a_method_of_the_pipeline():
    assert all(callable(getattr(Pipeline, stage.function)) for stage in STAGES.values())
