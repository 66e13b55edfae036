"""Every axis of a plot has a label and a unit."""

from dataclasses import replace
from io import BytesIO

import pytest
from matplotlib.figure import Figure

from agents.runs.plots import CONTROL_CURVES, FIT_CURVES, REWARD_CURVES, TEXT_CURVES, draw_run


@pytest.fixture
def figures(monkeypatch):
    made = []
    monkeypatch.setattr(Figure, "tight_layout", lambda figure: made.append(figure))
    return made


@pytest.mark.parametrize("curves", [CONTROL_CURVES, TEXT_CURVES, FIT_CURVES, REWARD_CURVES])
def test_every_panel_names_its_units(tmp_path, figures, curves):
    columns = ["time/steps", *(curve.column for curve in curves)]
    rows = [columns, ["1"] * len(columns), ["2"] * len(columns)]
    (tmp_path / "progress.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    image = BytesIO()
    draw_run(tmp_path, curves, image, title="run", unit="texts")
    assert image.getvalue().startswith(b"\x89PNG")
    axes = figures[0].axes
    assert [axis.get_ylabel() for axis in axes] == [curve.unit for curve in curves]
    assert {axis.get_xlabel() for axis in axes} == {"texts"}
    assert all(axis.get_ylabel() for axis in axes)


def test_greedy_evaluations_are_drawn_beside_the_sampled_return_and_the_threshold(tmp_path, figures):
    table = "time/steps,rollout/return_mean,eval/return_mean\n10,20,\n10,,400\n20,250,\n20,,500\n"
    (tmp_path / "progress.csv").write_text(table)
    draw_run(tmp_path, [replace(CONTROL_CURVES[0], threshold=475.0)], BytesIO(), unit="transitions")
    lines = {line.get_label(): list(line.get_ydata()) for line in figures[0].axes[0].get_lines()}
    assert lines == {
        "greedy actions, evaluation": [400.0, 500.0],
        "sampled actions, last 100 episodes": [20.0, 250.0],
        "solved: 475": [475.0, 475.0],
    }
