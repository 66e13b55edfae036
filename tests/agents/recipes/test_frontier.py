"""The frontier of planted runs: every figure is known beforehand. And of a real one, from a user's chair."""

import json
import math

import numpy as np
import pytest

from agents.evaluation.best_of_n_estimate import best_of_n_kl
from agents.evaluation.curve import write_points
from agents.recipes import frontier
from agents.recipes.best_of_n import BestOfNConfig
from agents.recipes.frontier import FrontierConfig
from agents.recipes.rlhf import train as train_text
from agents.recipes.rlhf.config import TrainTextConfig
from agents.runs.run_dir import RunDirError

START, JUDGED = -0.3, 0.1
KL = (0.0, 0.5, 1.0, 2.0, 4.0, 9.0, 16.0)


def rl(alpha, beta, kl):
    return math.sqrt(kl) * (alpha - beta * 0.5 * math.log(kl)) if kl else 0.0


def plant_run(folder, *, proxy=(0.8, 0.1), judge=(1.0, 0.5), kl=KL, **settings):
    """A run whose points lie on Gao et al.'s curves."""
    folder.mkdir(parents=True)
    config = TrainTextConfig.preset(run_dir="", **settings).identity()
    (folder / "config.json").write_text(json.dumps(config))
    points = [
        {
            "episodes": 256 * i,
            "kl_per_sequence": nats,
            "score": START + rl(*proxy, nats),
            "score_se": 0.05,
            "judge": None if judge is None else JUDGED + rl(*judge, nats),
            "judge_win_rate": None if judge is None else 0.5 + 0.01 * nats,
        }
        for i, nats in enumerate(kl)
    ]
    write_points(folder / "frontier.csv", points)
    return folder


def plant_best_of_n(folder, *, judged=True, **settings):
    """d (1 - 0.1 d) by the reward, d (0.5 - 0.1 d) by the judge."""
    folder.mkdir(parents=True)
    config = vars(BestOfNConfig(run_dir="", **settings))
    (folder / "config.json").write_text(json.dumps(config))
    points = []
    for n in range(1, 65):
        d = math.sqrt(best_of_n_kl(n))
        points.append(
            {"n": float(n), "kl_per_sequence": d * d, "score": START + d * (1 - 0.1 * d)}
            | {"judge": JUDGED + d * (0.5 - 0.1 * d) if judged else None}
            | {"judge_win_rate": 0.6 if judged else None}
        )
    write_points(folder / "best_of_n.csv", points)
    return folder


def test_planted_curves_are_found_and_the_efficiency_is_their_quotient(tmp_path, capsys, pictures):
    run = plant_run(tmp_path / "run")
    plant_best_of_n(run / "best_of_n")
    summary = frontier.main(FrontierConfig(run_dir=(run,), budget=4.0))
    d = math.sqrt(best_of_n_kl(64))
    best = d * (1 - 0.1 * d)
    assert summary["best_of_n_score_gain"] == pytest.approx(best)
    assert summary["run/kl_efficiency"] == pytest.approx(2 * (0.8 - 0.1 * math.log(2)) / best)
    assert summary["run/kl_efficiency_se"] == pytest.approx(0.05 / best)
    assert [summary[f"run/{name}"] for name in ("score_alpha", "score_beta")] == pytest.approx([0.8, 0.1])
    assert [summary[f"run/{name}"] for name in ("judge_alpha", "judge_beta")] == pytest.approx([1.0, 0.5])
    assert summary["run/judge_peak_kl"] == summary["run/kl_budget"] == pytest.approx(math.e**2)  # d = e^(1/0.5 - 1)
    assert summary["run/judge_peaks_within_run"] is True
    assert summary["run/judge_win_rate_at_budget"] == pytest.approx(0.54)
    assert "take at most 7.4 nats per sequence, where the judge peaks" in capsys.readouterr().out
    kept = json.loads((run / "frontier" / "frontier.json").read_text())
    fit = kept["best_of_n"]["fits"]["judge"]
    assert (fit["alpha"], fit["beta"], fit["peak_kl"]) == pytest.approx((0.5, 0.1, 6.25))
    assert kept["runs"]["run"]["points"]["kl_per_sequence"] == list(KL)
    assert json.loads((run / "frontier" / "summary.json").read_text()) == summary
    assert (run / "frontier" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert not list((run / "frontier").glob("*.part"))


def test_a_judge_that_has_not_peaked_yet_is_not_said_to_have(tmp_path, capsys):
    run = plant_run(tmp_path / "run", kl=KL[:5])  # ends at 4 nats; the peak would come at 7.4
    plant_best_of_n(run / "best_of_n")
    summary = frontier.main(FrontierConfig(run_dir=(run,)))
    assert summary["run/judge_peaks_within_run"] is False
    assert summary["run/judge_peak_kl"] == pytest.approx(math.e**2)
    assert summary["run/kl_budget"] == 4.0
    assert "has not peaked within the 4.0 nats" in capsys.readouterr().out


def test_a_judge_that_likes_none_of_it_says_so(tmp_path, capsys):
    run = plant_run(tmp_path / "run", judge=(-0.5, 0.0))
    plant_best_of_n(run / "best_of_n")
    frontier.main(FrontierConfig(run_dir=(run,)))
    assert "take none of it" in capsys.readouterr().out


def test_without_a_judge_the_reward_stands_alone(tmp_path, capsys):
    run = plant_run(tmp_path / "run", judge=None)
    plant_best_of_n(run / "best_of_n", judged=False)
    summary = frontier.main(FrontierConfig(run_dir=(run,)))
    assert summary["run/kl_efficiency"] > 0
    assert not [name for name in summary if "judge" in name]
    assert "nothing tells how much of the reward is real" in capsys.readouterr().out


def test_several_runs_stand_in_one_picture_if_their_task_is_one(tmp_path):
    runs = (plant_run(tmp_path / "a", seed=0), plant_run(tmp_path / "b", seed=1, memory="full", proxy=(0.4, 0.0)))
    plant_best_of_n(tmp_path / "best")
    options = {"out": tmp_path / "out", "best_of_n": tmp_path / "best"}
    summary = frontier.main(FrontierConfig(run_dir=runs, **options))
    assert summary["a/kl_efficiency"] > summary["b/kl_efficiency"] > 0
    other = plant_run(tmp_path / "other", max_new_tokens=12)
    with pytest.raises(ValueError, match="other is of another task: max_new_tokens 12, the first run has 24"):
        frontier.main(FrontierConfig(run_dir=(*runs, other), overwrite=True, **options))
    plant_best_of_n(tmp_path / "hotter", temperature=1.2)
    with pytest.raises(ValueError, match=r"hotter is of another task: temperature 1\.2, the first run has 1\.0"):
        frontier.main(FrontierConfig(run_dir=runs, overwrite=True, out=tmp_path / "out", best_of_n=tmp_path / "hotter"))
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary  # what was there is still there
    with pytest.raises(ValueError, match="another task"):
        frontier.main(FrontierConfig(run_dir=(*runs, other), out=tmp_path / "nowhere", best_of_n=tmp_path / "best"))
    assert not (tmp_path / "nowhere").exists()


def test_best_of_another_n_or_from_other_samples_is_refused(tmp_path):
    run = plant_run(tmp_path / "run")
    small, many = (plant_best_of_n(tmp_path / f"{n}", samples=n, max_n=min(n, 64)) for n in (4, 256))
    for samples in (None, 256):
        with pytest.raises(ValueError, match=r"4 has the best of 4, .* best of 64: .* new folder with --best-of-n"):
            frontier.main(FrontierConfig(run_dir=(run,), best_of_n=small, samples=samples))
    with pytest.raises(ValueError, match=r"measured with 256 samples, asked for are 128: .* or leave --samples out"):
        frontier.main(FrontierConfig(run_dir=(run,), best_of_n=many, samples=128))
    assert not (run / "frontier").exists()
    asked = frontier.main(FrontierConfig(run_dir=(run,), best_of_n=many, samples=256))
    assert frontier.main(FrontierConfig(run_dir=(run,), best_of_n=many, overwrite=True)) == asked


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        FrontierConfig(run_dir=())
    with pytest.raises(ValueError, match="budget: expected a number > 0, received 0"):
        FrontierConfig(run_dir=(tmp_path,), budget=0)
    with pytest.raises(ValueError, match="samples must be at least 64, of which the best is compared with, received 8"):
        FrontierConfig(run_dir=(tmp_path,), samples=8)
    with pytest.raises(ValueError, match=r"expected a file frontier\.csv"):
        frontier.main(FrontierConfig(run_dir=(tmp_path,)))
    run = plant_run(tmp_path / "short", kl=(0.0, 1.0))
    with pytest.raises(ValueError, match="2 points, too few"):
        frontier.main(FrontierConfig(run_dir=(run,)))


def test_no_run_that_is_drawn_is_drawn_over(tmp_path):
    run = plant_run(tmp_path / "run")
    plant_best_of_n(run / "best_of_n")
    for script, message in (("train_text", "a run of train_text, not of frontier"), ("frontier", "which is read")):
        (run / "made_by.txt").write_text(script)
        with pytest.raises(RunDirError, match=message):
            frontier.main(FrontierConfig(run_dir=(run,), out=run, overwrite=True))
    assert (run / "frontier.csv").exists()
    assert (run / "best_of_n" / "best_of_n.csv").exists()


def test_a_real_run_from_training_to_picture(model_dir, tmp_path, monkeypatch):
    (tmp_path / "says_good.py").write_text(
        "def good(prompts, completions):\n    return [float(text.split().count('good')) for text in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(["the film", "a very", "the plot is", "film"] * 10))
    run = tmp_path / "run"
    train_text.main(
        TrainTextConfig.preset(
            run_dir=str(run), model=str(model_dir), reward=("says_good:good",),
            rows=str(tmp_path / "prompts.txt"), judge=False, episodes=96, batch_size=16, minibatch_size=8,
            learning_rate=0.01, beta=0.01, max_new_tokens=6, evaluate_every=1,
        )
    )  # fmt: skip
    summary = frontier.main(FrontierConfig(run_dir=(run,), samples=64))
    assert np.isfinite([value for value in summary.values() if value is not None]).all()
    assert summary["best_of_n_score_gain"] > 0.5
    assert (run / "frontier" / "frontier.png").exists()
    again = frontier.main(FrontierConfig(run_dir=(run,), overwrite=True))  # best-of-n is not measured again
    assert again == summary
