"""The script as a user meets it: files, messages, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import asdict, replace

import pytest

from agents import GRPO, load_agent
from agents.control.agent import ControlAgent
from agents.control.presets import preset_for
from agents.functional.schedules import Linear
from agents.recipes import control as train_control
from agents.recipes import evaluate as evaluate_agent
from agents.recipes.commands.control import command_line
from agents.recipes.control import BEST, LAST, Config, main
from agents.runs import checkpoint


def config(path, **changes) -> Config:
    return Config(**{"run_dir": path, "total_steps": 2048, "eval_episodes": 4, "quiet": True, **changes})


def run(settings: Config) -> int:
    """From the command line."""
    flags = []
    for name, value in asdict(settings).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None and value != ():
            flags += [f"--{flag}", str(value)]
    return command_line(flags)


def test_a_run_leaves_everything_behind_and_its_agent_can_be_evaluated(tmp_path, capsys, pictures):
    folder = tmp_path / "run"
    assert run(config(folder)) == 0
    summary = json.loads((folder / "summary.json").read_text())
    keys = {"env", "seed", "steps", "wall_s", "eval_return_mean", "eval_return_std", "eval_episodes", "train_s"}
    assert keys <= set(summary)
    assert 0 < summary["train_s"] <= summary["wall_s"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "progress.csv", BEST, LAST, "summary.json", "report.html"} <= names
    assert any(name.startswith("events") for name in names)
    assert run(config(folder)) == 2
    assert "--overwrite" in capsys.readouterr().err
    result = evaluate_agent.main(evaluate_agent.EvaluateAgentConfig(agent=folder, episodes=3))
    assert result["eval_episodes"] == 3


def test_a_run_may_be_resumed_on_another_device(tmp_path):
    assert config(tmp_path).identity() == config(tmp_path, device="cuda").identity()


def interrupt_at_update(monkeypatch, update, signum):
    """Send this process ``signum`` at the end of an update."""
    iterate = ControlAgent.iterate

    def interrupt(self):
        iterate(self)
        if self.updates == update:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(ControlAgent, "iterate", interrupt)


def test_an_interrupted_run_resumes_to_where_an_undisturbed_one_ends(tmp_path, monkeypatch):
    whole = main(config(tmp_path / "whole"))
    broken = config(tmp_path / "broken")
    interrupt_at_update(monkeypatch, 1, signal.SIGINT)
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(KeyboardInterrupt):
        main(config(tmp_path / "broken"))
    monkeypatch.undo()
    assert not (tmp_path / "broken" / "summary.json").exists()
    resumed = main(config(broken.run_dir, resume=True))
    assert resumed["steps"] == whole["steps"]
    one, other = (checkpoint.load(tmp_path / name / LAST)["agent"] for name in ("whole", "broken"))
    for name, value in one["policy"].items():
        assert (value == other["policy"][name]).all(), name


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_update_in_progress_and_gives_its_exit_code(tmp_path, monkeypatch, capsys, signum, code):
    usual = signal.getsignal(signum)
    interrupt_at_update(monkeypatch, 1, signum)
    assert run(config(tmp_path)) == code
    assert f"{tmp_path} holds what was trained so far; --resume continues it" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / LAST)["agent"]["progress"]["updates"] == 1
    assert signal.getsignal(signum) is usual
    monkeypatch.undo()
    assert run(config(tmp_path, resume=True)) == 0


def test_there_is_nothing_to_resume_in_a_finished_run_or_without_a_checkpoint(tmp_path, capsys):
    main(config(tmp_path))
    before = (tmp_path / LAST).read_bytes()
    assert run(config(tmp_path, resume=True)) == 2
    assert "holds a finished run: nothing to resume" in capsys.readouterr().err
    assert (tmp_path / LAST).read_bytes() == before
    (tmp_path / "summary.json").unlink()
    (tmp_path / LAST).unlink()
    assert run(config(tmp_path, resume=True)) == 2
    assert f"has no {LAST} to resume from: start anew, without --resume" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("algorithm", ["ppo", "trpo"])
def test_a_finished_run_is_made_longer_to_what_a_run_of_that_length_is(algorithm, tmp_path, capsys):
    flags = ["--algorithm", algorithm, "--eval-episodes", "4", "--learning-rate", "1e-3", "--evaluate-every", "1500"]

    def train(name, total, *more):
        return command_line(["--run-dir", str(tmp_path / name), "--total-steps", str(total), *flags, *more])

    assert train("whole", 6000) == train("grown", 2048) == 0
    assert train("grown", 2048, "--resume") == 2
    assert "a larger --total-steps makes it longer" in capsys.readouterr().err
    assert train("grown", 1024, "--resume") == 2
    assert train("grown", 6000, "--resume") == 0
    assert "made longer, from 2048 to 6000 transitions: bit for bit a run of 6000" in capsys.readouterr().out
    one, other = (checkpoint.load(tmp_path / name / LAST) for name in ("whole", "grown"))
    assert same(one["agent"], other["agent"])
    assert one["keeper"]["best_steps"] == other["keeper"]["best_steps"]
    one, other = (checkpoint.load(tmp_path / name / BEST)["policy"] for name in ("whole", "grown"))
    assert same(one, other)


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else one == other


def test_best_weights_of_a_longer_run_are_those_it_knows(tmp_path):
    """The shorter run's last evaluation, of the last weights, is one that the longer run does not make."""
    main(config(tmp_path, evaluate_every=1024, total_steps=1500, seed=1))
    main(config(tmp_path, evaluate_every=1024, total_steps=3072, seed=1, resume=True))
    keeper = checkpoint.load(tmp_path / LAST)["keeper"]
    assert same(checkpoint.load(tmp_path / BEST)["policy"], keeper["best_policy"])


def test_a_longer_run_says_which_schedules_followed_the_shorter(tmp_path, capsys):
    main(config(tmp_path))
    main(config(tmp_path, resume=True, total_steps=4096))
    assert "not bit for bit a run of 4096 from the start: learning_rate followed the shorter run" in (
        capsys.readouterr().out
    )


def test_settings_are_flags_over_the_presets_and_what_is_trained_is_said(tmp_path, capsys):
    flags = ["--total-steps", "64", "--eval-episodes", "1", "--num-steps", "8", "--learning-rate", "1e-3:0"]
    assert command_line(["--run-dir", str(tmp_path), *flags, "--hidden", "8", "4", "--clip", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "PPO on CartPole-v1, which has a preset: 64 transitions, evaluated every 2048; " in said
    assert "hidden (8, 4)" in said
    preset = preset_for("CartPole-v1").config
    changed = {"num_steps": 8, "learning_rate": Linear(1e-3), "hidden": (8, 4), "clip": 0.1}
    assert load_agent(tmp_path / BEST).config == replace(preset, **changed)
    with pytest.raises(SystemExit):
        command_line(["--run-dir", str(tmp_path), "--cg-steps", "3"])
    other = ["--overwrite", "--algorithm", "trpo", "--cg-steps", "3"]
    assert command_line(["--run-dir", str(tmp_path), *other, *flags]) == 0
    assert "TRPO on CartPole-v1" in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["ppo", "trpo"])
def test_each_algorithm_trains_says_its_name_and_refuses_to_go_on_with_the_other(algorithm, tmp_path, capsys):
    other = {"ppo": "trpo", "trpo": "ppo"}[algorithm]
    folder = tmp_path / "run"
    assert run(config(folder, algorithm=algorithm)) == 0
    assert json.loads((folder / "summary.json").read_text())["algorithm"] == algorithm
    assert load_agent(folder / BEST).algorithm == algorithm
    result = evaluate_agent.main(evaluate_agent.EvaluateAgentConfig(agent=folder, episodes=3))
    assert result["env"] == "CartPole-v1"
    (folder / "summary.json").unlink()
    assert run(config(folder, algorithm=other, resume=True)) == 2
    assert f"algorithm='{algorithm}' (now '{other}')" in capsys.readouterr().err


def test_an_agent_that_writes_texts_is_not_measured_as_one_for_control(tmp_path):
    path = GRPO("textenvs/MovieReview-v0", batch_size=8).save(tmp_path / "agent.safetensors")
    with pytest.raises(ValueError, match="expected an agent of a control task, received one of text"):
        evaluate_agent.main(evaluate_agent.EvaluateAgentConfig(agent=path, episodes=3))


def test_several_processes_of_a_launcher_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(config(tmp_path / "run")) == 2
    assert "train-control: expected one process, received 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_environment_of_ones_own_is_taken_by_module_and_id(tmp_path, monkeypatch, capsys):
    (tmp_path / "corridors.py").write_text(CORRIDOR)
    monkeypatch.syspath_prepend(tmp_path)
    for algorithm in ("ppo", "trpo"):
        folder = tmp_path / algorithm
        assert run(config(folder, env="corridors:Corridor-v0", algorithm=algorithm)) == 0
        assert "corridors:Corridor-v0 seed 0: " in capsys.readouterr().out
        assert json.loads((folder / "summary.json").read_text())["eval_episodes"] == 4
    flags = ["--overwrite", "--env", "corridors:Corridor-v0", "--total-steps", "64", "--num-steps", "8"]
    assert command_line(["--run-dir", str(tmp_path / "ppo"), *flags, "--eval-episodes", "4"]) == 0
    said = capsys.readouterr().out
    assert "PPO on corridors:Corridor-v0, which has no preset: 64 transitions, evaluated every 25000; num" in said


CORRIDOR = """
import gymnasium as gym
import numpy as np


class Corridor(gym.Env):
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.clock += 1
        return np.zeros(1, np.float32), float(action), self.clock == 3, False, {}


gym.register("Corridor-v0", Corridor)
"""


@pytest.mark.parametrize(
    "bad", [{"total_steps": 0}, {"eval_episodes": 0}, {"evaluate_every": 0}, {"algorithm": "sarsa"}]
)
def test_flags_out_of_range_are_refused_by_name(bad, tmp_path, capsys):
    (name, value), *_ = bad.items()
    with pytest.raises(SystemExit) as leaving:
        command_line(["--run-dir", str(tmp_path / "run"), f"--{name.replace('_', '-')}", str(value)])
    assert leaving.value.code == 2
    assert name.replace("_", "-") in capsys.readouterr().err.replace("_", "-")
    assert not (tmp_path / "run").exists()


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
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / LAST).write_bytes(b"half of it")
    assert run(config(tmp_path / "run", resume=True)) == 2
    assert "damaged" in capsys.readouterr().err


def test_progress_csv_holds_the_whole_run_and_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    from agents.reports.run_files import read_columns

    folder = tmp_path / "run"
    write = train_control._Trainer.save

    def save(self):
        if self.agent.updates == 2:
            raise RuntimeError("killed after update 2, of which progress.csv has a line and no checkpoint speaks")
        write(self)

    monkeypatch.setattr(train_control._Trainer, "save", save)
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
