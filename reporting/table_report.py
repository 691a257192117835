"""How a run of `tlstm.py` on a table ends: its page, its result on the terminal, and where everything is."""

from reporting.page import write_report
from reporting.terminal import closing_table, landmark_tables
from runs.files import read_json
from runs.table_record import TableRecord
from survival.crossval import as_text


def report_table(record: TableRecord) -> None:
    """Write the page of a run on a table, and print the figures of what this command has done.

    Args:
        record: of the run, whose stage is done.
    """
    page = write_report(record.folder)
    record.finish("report", {"done": True})
    metrics = read_json(record.folder / "metrics.json")
    if "cv" in record.plan:
        print(as_text(metrics["cv"]))
    elif "landmarks" in metrics:
        print(landmark_tables(metrics["landmarks"]))
    else:
        print(closing_table(metrics))
    print(f"\nEverything is in {record.folder}; begin with {page}")
