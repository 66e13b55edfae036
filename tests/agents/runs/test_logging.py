"""One progress.csv holds a whole run, however often it was stopped."""

from __future__ import annotations

import csv

from agents.runs.logging import FileSink


def lines(folder) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_line_has_its_step_and_new_names_become_columns(tmp_path):
    sink = FileSink(tmp_path, formats=["csv"])
    sink.write({"a": 1.0}, 10)
    sink.write({"b": 2.5}, 20)
    sink.write({"a": 3.0, "b": 4.0}, 30)
    sink.close()
    assert lines(tmp_path) == [
        {"time/steps": "10.0", "a": "1.0", "b": ""},
        {"time/steps": "20.0", "a": "", "b": "2.5"},
        {"time/steps": "30.0", "a": "3.0", "b": "4.0"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]


def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint_and_no_line_twice(tmp_path):
    sink = FileSink(tmp_path, formats=["csv", "tensorboard"])
    for step in (10, 20, 30):
        sink.write({"a": step / 10}, step)
    sink.close()
    with open(tmp_path / "progress.csv", "a") as file:
        file.write("4")  # a kill cut this line
    sink = FileSink(tmp_path, formats=["csv", "tensorboard"], resume_at=20)
    sink.write({"a": 30.0}, 30)
    sink.close()
    assert [(row["time/steps"], row["a"]) for row in lines(tmp_path)] == [
        ("10.0", "1.0"),
        ("20.0", "2.0"),
        ("30.0", "30.0"),
    ]


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_at, steps in ((None, (10, 20, 30)), (20, (30,))):
        sink = FileSink(tmp_path, formats=["tensorboard"], resume_at=resume_at)
        for step in steps:
            sink.write({"a": 0.0 if resume_at is None else 1.0}, step)
        sink.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("a")
    assert [(event.step, event.value) for event in events] == [(10, 0.0), (20, 0.0), (30, 1.0)]


def test_a_fresh_run_begins_its_file_anew(tmp_path):
    for _ in range(2):
        sink = FileSink(tmp_path, formats=["csv"])
        sink.write({"a": 1.0}, 1)
        sink.close()
    assert len(lines(tmp_path)) == 1
