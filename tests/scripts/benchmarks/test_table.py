import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from scripts.benchmarks.table import bootstrap_interval, interquartile_mean, plot_curves


def test_the_middle_half_counts_and_nothing_else():
    assert interquartile_mean(np.array([-1e9, 1.0, 2.0, 1e9])) == 1.5
    assert interquartile_mean(np.array([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 99.0, 99.0])) == 2.5


def test_the_interval_of_equal_scores_is_a_point_and_grows_with_their_spread():
    assert bootstrap_interval(np.full(10, 3.0)) == (3.0, 3.0)
    narrow = bootstrap_interval(np.linspace(-1, 1, 10))
    wide = bootstrap_interval(np.linspace(-5, 5, 10))
    assert narrow[0] < 0 < narrow[1]
    np.testing.assert_allclose(wide, 5 * np.array(narrow))


def test_the_interval_covers_the_true_center_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = [
        low <= 0.0 <= high
        for low, high in (bootstrap_interval(generator.normal(size=30), resamples=500) for _ in range(200))
    ]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="received none"):
        bootstrap_interval([])


def test_curves_name_their_units_and_no_tick_runs_into_the_next(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Figure, "tight_layout", lambda figure: made.append(figure))
    tasks = {"Pendulum-v1": 151_552, "LunarLander-v3": 1_015_808, "CartPole-v1": 32_768}
    for task, last in tasks.items():
        for side in ("ours", "sb3"):
            folder = tmp_path / f"{task}-{side}-0"
            folder.mkdir()
            rows = [f"{step},{-step / 1e3}" for step in np.linspace(last / 20, last, 20, dtype=int)]
            (folder / "progress.csv").write_text("\n".join(["time/steps,eval/return_mean", *rows, ""]))
    plot_curves(tmp_path, {"ours": [0], "sb3": [0]}, list(tasks), tmp_path / "curves.png")
    for axis in made[0].axes:
        assert axis.get_xlabel() == "transitions"
        assert axis.get_ylabel() == "reward units per episode, greedy"
        boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert len(boxes) >= 3
        assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
