"""The table, its bounds, what is selected and what is kept; every measurement is put in here, a real one takes long."""

import json

import pytest

from scripts.benchmarks.table import Row
from scripts.benchmarks.text import compare as bench


def row(name="row", **changed):
    return Row(**{"name": name, "ours": 6.0, "peer": 2.0, "unit": "tokens/s", "must": 2.0, "aim": 4.0} | changed)


@pytest.fixture
def measured(monkeypatch):
    """Each measurement notes its name and gives one invented row."""
    names = []

    def invent(name):
        def measure(config, runs):
            names.append(name)
            return [row(f"the {name} row")]

        return measure

    monkeypatch.setattr(bench, "MEASUREMENTS", {name: invent(name) for name in bench.MEASUREMENTS})
    return names


def config(tmp_path, **flags):
    return bench.Config(run_dir=tmp_path / "run", **flags)


def test_every_row_stands_under_its_name_with_both_sides_their_ratio_and_its_bounds(measured, tmp_path):
    bench.main(config(tmp_path, rows="memory,speed"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary) == ["the speed row", "the memory row"]  # the table's order, not that of the flag
    found = summary["the speed row"]
    assert (found["ours"], found["peer"], found["ratio"]) == (6.0, 2.0, 3.0)
    assert (found["must"], found["aim"], found["verdict"]) == (2.0, 4.0, "must")
    table = (tmp_path / "run" / "table.md").read_text().splitlines()
    assert len(table) == 4
    assert table[2] == "| the speed row | tokens/s | 6 | 2 | 3.000 | ≥ 2 | ≥ 4 | must |"


def test_only_the_selected_rows_are_measured(measured, tmp_path):
    bench.main(config(tmp_path, rows="memory, gap"))
    assert measured == ["memory", "gap"]


def test_an_unknown_row_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"speed, .*learning.*; received tempo"):
        bench.Config(run_dir="x", rows="speed,tempo")


def test_resume_keeps_what_is_finished_and_adds_to_the_table(measured, tmp_path):
    bench.main(config(tmp_path, rows="speed"))
    summary = bench.main(config(tmp_path, rows="speed,gap", resume=True))
    assert measured == ["speed", "gap"]
    assert list(summary) == ["the speed row", "the gap row"]


def test_rows_of_other_settings_are_not_mixed(measured, tmp_path):
    bench.main(config(tmp_path, rows="speed", rounds=5))
    with pytest.raises(RuntimeError, match=r"rounds=5 \(now 6\)"):
        bench.main(config(tmp_path, rows="gap", rounds=6, resume=True))


def test_a_measurement_that_fails_is_told_at_the_end_and_loses_no_other(measured, tmp_path, monkeypatch):
    def fails(config, runs):
        raise RuntimeError("no TRL")

    monkeypatch.setitem(bench.MEASUREMENTS, "speed", fails)
    with pytest.raises(RuntimeError, match=r"speed failed.*no TRL"):
        bench.main(config(tmp_path, rows="speed,gap"))
    assert list(json.loads((tmp_path / "run" / "summary.json").read_text())) == ["the gap row"]


@pytest.mark.parametrize(
    ("ours", "at_most", "verdict"),
    [(8.0, False, "aim"), (7.9, False, "must"), (3.9, False, "missed"), (float("nan"), False, "missed"),
     (4.0, True, "must"), (4.1, True, "missed"), (float("nan"), True, "missed")],
)  # fmt: skip
def test_a_verdict_names_the_best_bound_that_is_kept(ours, at_most, verdict):
    bounds = {"must": 2.0, "aim": 4.0} if not at_most else {"must": 2.0, "aim": 1.0}
    assert row(ours=ours, at_most=at_most, **bounds).verdict == verdict


def test_a_row_without_bounds_has_no_verdict():
    plain = row(must=None, aim=None)
    assert plain.verdict == ""
    assert "must" not in plain.figures()
