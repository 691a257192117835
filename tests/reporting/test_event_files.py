import pandas as pd
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

from reporting.event_files import write_events


def runs_of(folder):
    """What TensorBoard reads: {run: {tag: {step: value}}}."""
    read = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    return {
        run: {
            tag: {event.step: make_ndarray(event.tensor_proto).item() for event in read.Tensors(run, tag)}
            for tag in content["tensors"]
        }
        for run, content in read.Runs().items()
    }


def history(folder, **figures):
    folder.mkdir(parents=True)
    pd.DataFrame(figures).to_csv(folder / "history.csv", index=False)


def test_tensorboard_reads_every_figure_of_every_epoch(tmp_path):
    history(tmp_path / "cnn", epoch=[1, 2], loss=[2.0, 1.5], val_c_index=[0.5, 0.75])
    history(tmp_path / "cnn" / "crossfit" / "1", epoch=[1], loss=[3.0])
    history(tmp_path / "tlstm", epoch=[0, 1, 2], train_loss=[4.0, 3.0, 2.0])
    write_events(tmp_path / "cnn")
    write_events(tmp_path / "tlstm")
    assert runs_of(tmp_path) == {
        "cnn": {"loss": {1: 2.0, 2: 1.5}, "val_c_index": {1: 0.5, 2: 0.75}},
        "cnn/crossfit/1": {"loss": {1: 3.0}},
        "tlstm": {"train_loss": {0: 4.0, 1: 3.0, 2: 2.0}},
    }


def test_a_new_training_takes_the_place_of_the_old(tmp_path):
    history(tmp_path / "cnn", epoch=[1, 2], loss=[2.0, 1.5])
    write_events(tmp_path)
    pd.DataFrame({"epoch": [1], "loss": [9.0]}).to_csv(tmp_path / "cnn" / "history.csv", index=False)
    write_events(tmp_path)
    assert runs_of(tmp_path) == {"cnn": {"loss": {1: 9.0}}}
    assert sorted(path.name for path in (tmp_path / "cnn").iterdir()) == ["history.csv", "history.tfevents"]


def test_a_folder_without_a_history_stays_as_it_is(tmp_path):
    write_events(tmp_path)
    assert list(tmp_path.iterdir()) == []
