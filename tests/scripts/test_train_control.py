"""The script as a user meets it: files, messages, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from agents import checkpoint
from scripts import evaluate_agent, train_control
from scripts.train_control import BEST, LAST, Config, main, run


def config(path, **changes) -> Config:
    return Config(**{"run_dir": path, "total_steps": 2048, "eval_episodes": 4, "quiet": True, **changes})


def test_a_run_leaves_everything_behind_and_its_agent_can_be_evaluated(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(config(folder)) == 0
    summary = json.loads((folder / "summary.json").read_text())
    keys = {"env", "seed", "steps", "wall_s", "eval_return_mean", "eval_return_std", "eval_episodes", "train_s"}
    assert keys <= set(summary)
    assert 0 < summary["train_s"] <= summary["wall_s"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "progress.csv", BEST, LAST, "summary.json"} <= names
    assert any(name.startswith("events") for name in names)
    assert run(config(folder)) == 2
    assert "--overwrite" in capsys.readouterr().err
    result = evaluate_agent.main(evaluate_agent.EvaluateAgentConfig(agent=folder, episodes=3))
    assert result["eval_episodes"] == 3


def test_an_interrupted_run_resumes_to_where_an_undisturbed_one_ends(tmp_path, monkeypatch):
    whole = main(config(tmp_path / "whole"))
    broken = config(tmp_path / "broken")
    write = train_control._Watch.save

    def interrupt(self, agent):
        write(self, agent)
        if agent.updates == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train_control._Watch, "save", interrupt)
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        main(config(tmp_path / "broken", save_every=1))
    monkeypatch.undo()
    assert not (tmp_path / "broken" / "summary.json").exists()
    resumed = main(config(broken.run_dir, resume=True))
    assert resumed["steps"] == whole["steps"]
    one, other = (checkpoint.load(tmp_path / name / LAST)["agent"] for name in ("whole", "broken"))
    for name, value in one["policy"].items():
        assert (value == other["policy"][name]).all(), name


def test_ctrl_c_exits_130_and_says_what_was_kept(tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_control, "main", interrupted)
    assert run(config(tmp_path)) == 130
    assert LAST in capsys.readouterr().err


@pytest.mark.parametrize("env", ["CartPol-v1", "no_such_module:Env-v0"])
def test_an_unknown_environment_is_a_message_and_exit_code_2(env, tmp_path, capsys):
    assert run(config(tmp_path / "run", env=env)) == 2
    assert env.split(":")[0].split("-")[0] in capsys.readouterr().err


def test_stop_at_return_ends_early(tmp_path):
    summary = main(config(tmp_path / "run", stop_at_return=1.0, evaluate_every=512))
    assert summary["reached"]
    assert summary["steps"] < 2048


def test_the_last_weights_are_evaluated_also_where_no_evaluation_was_due(tmp_path):
    summary = main(config(tmp_path / "run", evaluate_every=1500))
    assert (tmp_path / "run" / "progress.csv").read_text().count("\n") >= 3
    assert summary["steps"] == 2048


def test_a_damaged_checkpoint_is_a_message(tmp_path, capsys):
    main(config(tmp_path / "run"))
    (tmp_path / "run" / LAST).write_bytes(b"half of it")
    assert run(config(tmp_path / "run", resume=True)) == 2
    assert "damaged" in capsys.readouterr().err


def test_progress_csv_holds_the_whole_run_and_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    from scripts.plots import read_columns

    folder = tmp_path / "run"
    write = train_control._Watch.save

    def save(self, agent):
        if agent.updates == 2:
            raise RuntimeError("killed after update 2, of which progress.csv has a line and no checkpoint speaks")
        write(self, agent)

    monkeypatch.setattr(train_control._Watch, "save", save)
    with pytest.raises(RuntimeError):
        main(config(folder, save_every=1, evaluate_every=512, total_steps=4096))
    monkeypatch.undo()
    assert max(read_columns(folder / "progress.csv")["time/steps"]) == 2048
    assert run(config(folder, resume=True, evaluate_every=1024, total_steps=4096)) == 2
    assert "evaluate_every=512 (now 1024)" in capsys.readouterr().err
    main(config(folder, resume=True, evaluate_every=512, total_steps=4096))
    whole = tmp_path / "whole"
    main(config(whole, evaluate_every=512, total_steps=4096))
    ours, expected = (read_columns(path / "progress.csv") for path in (folder, whole))
    for name in ("time/steps", "train/updates", "eval/return_mean"):
        assert str(ours[name]) == str(expected[name]), name


def test_a_run_killed_after_it_reached_its_return_does_not_train_on(tmp_path):
    settings = {"stop_at_return": 1.0, "evaluate_every": 512}
    first = main(config(tmp_path / "run", **settings))
    (tmp_path / "run" / "summary.json").unlink()  # killed just before it was written
    again = main(config(tmp_path / "run", resume=True, **settings))
    assert again["steps"] == first["steps"] < 2048
    assert again["reached"]
