"""Groups of runs on one page."""

import pytest

from agents.cli import main
from agents.reports.compare import compared, differing, grouped, mean_curve, panels, write_comparison
from tests.agents.reports.pages import check


@pytest.fixture
def runs(make_run):
    """Three seeds each of two learning rates; the second ones are better in 7 of 9 pairs of runs."""

    def run(name, rate, seed, value):
        rows = [{"time/steps": 64 * i, "eval/return_mean": value * i, "train/entropy": 1 / i} for i in (1, 2, 3)]
        summary = {"eval_return_mean": value, "eval_return_std": 1.0, "eval_episodes": 9, "wall_s": 10.0 - seed}
        settings = {"seed": seed, "env": "CartPole-v1", "settings": {"seed": seed, "rate": rate}}
        return make_run(name, "train_control", settings, rows, summary=summary)

    values = {0.1: (1.0, 2.0, 5.0), 0.2: (4.0, 3.0, 6.0)}
    return [run(f"r{rate}s{seed}", rate, seed, each) for rate in values for seed, each in enumerate(values[rate])]


def test_runs_are_grouped_by_their_settings_without_the_seed(runs):
    groups = grouped(runs, [])
    assert [group.name for group in groups] == ["rate 0.1", "rate 0.2"]
    assert [[run.settings["seed"] for run in group.runs] for group in groups] == [[0, 1, 2], [0, 1, 2]]
    assert differing(groups) == [("rate", ["0.1", "0.2"])]


def test_groups_by_name_may_mix_settings(runs):
    groups = grouped([], [f"mixed={runs[0]},{runs[3]}", f"other={runs[1]}"])
    assert [group.name for group in groups] == ["mixed", "other"]
    assert differing(groups) == [("rate", ["0.1 or 0.2", "0.1"])]


def test_groups_of_one_name_are_told_apart_by_their_folders(make_run):
    """Three settings differ, so each is called as its folder is, and both folders are called alike."""
    folders = [
        make_run(f"{place}/ppo", "train_control", {"seed": 0, "a": value, "b": value, "c": value})
        for place, value in (("x", 1), ("y", 2))
    ]
    assert [group.name for group in grouped(folders, [])] == list(map(str, folders))


def test_figures_are_means_and_the_probability_of_improvement_by_hand(runs):
    returns, *others = compared(grouped(runs, []))
    assert [mean for mean, _ in returns.means] == pytest.approx([8 / 3, 13 / 3])
    # 4 and 3 beat 1 and 2, 6 beats all three: 7 of 9 pairs.
    assert returns.improvement[0] is None
    assert returns.improvement[1][0] == pytest.approx(7 / 9)
    (seconds,) = [each for each in others if each.figure.key == "wall_s"]
    assert seconds.improvement[1][0] == 0.5  # the same times; less is better
    (faster,) = [each for each in compared(grouped([runs[0], runs[4]], [])) if each.figure.key == "wall_s"]
    assert faster.improvement[1][0] == 1  # 9 s against 10 s


def test_the_mean_curve_is_linear_between_points_where_all_curves_are():
    curve = mean_curve([([0, 10], [0, 10]), ([5, 15], [1, 3]), ([], []), ([0, 1], [float("nan")] * 2)])
    assert (curve.x, curve.y) == ([5, 10], pytest.approx([3, 6]))  # (5 + 1) / 2, (10 + 2) / 2
    assert [low <= y <= high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True)] == [True, True]
    assert mean_curve([([0, 1], [0, 1]), ([2, 3], [0, 1])]) is None
    assert mean_curve([([], [])]) is None
    single = mean_curve([([1], [2.0])])
    assert (single.x, single.y, single.low) == ([1], [2.0], ())


def test_the_page_keeps_what_every_page_promises(runs, tmp_path):
    write_comparison(tmp_path / "compare.html", runs)
    page = check((tmp_path / "compare.html").read_text())
    assert not page.all("script")
    for part in ("Settings that differ", "Probability of improvement", "0.7778", "rate 0.2", "seed 2"):
        assert part in page.text
    titles = [panel.title for panel in panels(grouped(runs, []))]
    assert titles == ["Return: greedy actions, evaluation", "Entropy of the policy"]
    assert len(page.all("svg")) == 2


def test_the_command_says_where_the_page_is_and_refuses_what_it_cannot_compare(runs, tmp_path, make_run, capsys):
    out = tmp_path / "out.html"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    assert f"page {out}" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(runs[0]), "--out", str(out)]) == 0  # its own page may be replaced
    notes = tmp_path / "notes.html"
    notes.write_text("mine")
    for arguments, hint in (
        ([], "expected the folders of training runs"),
        ([str(tmp_path)], "expected the folder of a training run, received no run"),
        ([str(runs[0]), str(make_run("text"))], "runs of train_control, train_text"),
        ([str(make_run("demo", "demo"))], "runs of demo"),
        (
            [str(runs[0]), str(make_run("pendulum", "train_control", {"env": "Pendulum-v1"}))],
            "expected runs of one environment, received runs of CartPole-v1, Pendulum-v1",
        ),
        ([str(runs[0]), str(runs[0])], "expected every run once"),
        (["--group", "a"], "expected name=folder,folder, received 'a'"),
        ([str(runs[0]), "--out", str(notes)], "received another file: choose another --out"),
    ):
        assert main(["compare", *arguments]) == 2
        assert hint in capsys.readouterr().err
    assert notes.read_text() == "mine"
