import pytest
from rich.console import Console

from agents.recipes import control as train_control
from agents.recipes import demo


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
