import pytest
from rich.console import Console

from agents.recipes import control as train_control
from agents.recipes import demo
from agents.runs.plots import Curve, plot_run


def test_no_language_model_is_touched_while_cartpole_is_unsolved(tmp_path, monkeypatch):
    unsolved = {"eval_return_mean": 474.9, "eval_return_std": 1.0, "eval_episodes": 100, "steps": 1, "wall_s": 1.0}
    monkeypatch.setattr(train_control, "main", lambda config: unsolved)
    monkeypatch.setattr(demo, "show_language_model", lambda *_: pytest.fail("went on to the language model"))
    with pytest.raises(demo.NotValidated, match=r"474\.9 on CartPole-v1, below 475"):
        demo.main(demo.DemoConfig(run_dir=str(tmp_path / "demo")))


def test_the_shipped_language_model_writes(capsys):
    demo.show_language_model(demo.DemoConfig(), Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    assert "2.2 million parameters, vocabulary 2048" in "".join(lines)
    assert len(lines) >= 2 + demo.SHOWN


def test_curves_become_a_picture_and_unknown_columns_are_named(tmp_path, pictures):
    (tmp_path / "progress.csv").write_text("time/steps,rollout/score\n1,0.5\n2,\n3,1.5\n")
    out = plot_run(
        tmp_path,
        [Curve(column="rollout/score", title="Score", unit="reward units")],
        tmp_path / "score.png",
        title="a run",
        unit="texts",
    )
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(ValueError, match="rollout/kl"):
        plot_run(tmp_path, [Curve(column="rollout/kl", title="KL", unit="nats")], out, title="a run", unit="texts")


def test_a_curve_goes_on_over_rows_that_have_other_columns(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, *points, **style: drawn.append([list(part) for part in points]))
    (tmp_path / "progress.csv").write_text("time/steps,rollout/score,eval/score\n1,0.5,\n1,,0.7\n2,0.6,\n")
    plot_run(
        tmp_path,
        [Curve(column="rollout/score", title="Score", unit="reward units")],
        tmp_path / "score.png",
        title="a run",
        unit="texts",
    )
    assert drawn == [[[1, 2], [0.5, 0.6]]]
