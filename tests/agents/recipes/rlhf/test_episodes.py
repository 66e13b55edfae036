"""Dialogues from the shell: environments, tools and registered tasks, with a run's whole life."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agents.evaluation.curve import read_points
from agents.recipes import evaluate as evaluate_agent
from agents.recipes.rlhf.build import build_parts
from agents.recipes.rlhf.config import TrainTextConfig, command_line

ROOT = Path(__file__).parents[4]
GAMES = '''
import os
import gymnasium as gym
STEPS, FAIL_AT = 0, int(os.environ.get("FAIL_AT", "0"))

class Echo(gym.Env):
    """Pays each of the model's turns that has the word."""

    def __init__(self, price=1.0):
        self.price = price

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = str(self.np_random.choice(["film", "very", "good"]))
        return f"the {self.word}", {}

    def step(self, action):
        global STEPS
        STEPS += 1
        if STEPS == FAIL_AT:
            raise OSError("no answer from the server")
        return f"and {self.word}", self.price * (self.word in action.split()), False, False, {}

def look(word: str) -> str:
    """Look a word up.

    Args:
        word: what to look up.
    """
    return "very " + word

class Trl:
    def reset(self, answer, **row):
        self.answer, self.paid = answer, 0.0
        return "the film"

    def say(self, word: str) -> str:
        """Say a word.

        Args:
            word: which.
        """
        self.paid = float(word == self.answer)
        return "good"

    def get_reward(self):
        return self.paid

def answered(completions, answer):
    return [float(word in text.split()) for text, word in zip(completions, answer)]
'''


@pytest.fixture
def inputs(tmp_path, model_dir, monkeypatch):
    (tmp_path / "own_games.py").write_text(GAMES)
    words = ["the", "film", "good", "very", "is", "and"]
    rows = [{"prompt": f"a {word}", "answer": word} for word in words]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_games", None)
    yield {
        "--algorithm": "ppo", "--model": str(model_dir), "--env": "own_games:Echo", "--turns": "2",
        "--turn-tokens": "3", "--max-tokens": "20", "--episodes": "24", "--batch-size": "8", "--minibatch-size": "4",
        "--epochs": "1", "--learning-rate": "0.01", "--num-eval-rows": "6", "--eval-samples": "2", "--credit": "turn",
        "--evaluate-every": "2", "--checkpoint-every": "1",
    }  # fmt: skip
    sys.modules.pop("own_games", None)


def words_of(inputs, folder, *flags, **changed):
    arguments = inputs | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    given = [part for name, value in arguments.items() if value is not None for part in (name, str(value))]
    return [*given, "--run-dir", str(folder), "--quiet", *flags]


def run(inputs, folder, *flags, **changed):
    return command_line(words_of(inputs, folder, *flags, **changed))


def config_of(inputs, **changed):
    names = {name[2:].replace("-", "_"): value for name, value in inputs.items() if name != "--credit"}
    algorithm = names.pop("algorithm")
    number = {"learning_rate": float}
    texts = ("model", "env", "tools", "rows")
    typed = {name: value if name in texts else number.get(name, int)(value) for name, value in names.items()}
    return TrainTextConfig.preset(algorithm, run_dir="none", **typed | changed)


def test_a_process_that_an_environment_stops_is_resumed_bit_for_bit(inputs, tmp_path):
    def process(folder, *flags, fail_at=0):
        command = [sys.executable, "-m", "scripts.train_text", *words_of(inputs, folder, *flags)]
        paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "FAIL_AT": str(fail_at)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    whole = process(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "episodes of own_games:Echo; 6 others to evaluate on" in whole.stdout
    failed = process(tmp_path / "halves", fail_at=6 * 2 * 3 + 8 * 2 + 4)  # in the second update's second dialogue
    assert failed.returncode == 2
    assert "sub-environment" in failed.stderr
    assert "in turn 1" in failed.stderr
    assert "no answer from the server" in failed.stderr
    resumed = process(tmp_path / "halves", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    models = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "halves")]
    assert all(torch.equal(weights, models[1][name]) for name, weights in models[0].items())
    tables = [(tmp_path / name / "frontier.csv").read_text() for name in ("whole", "halves")]
    assert tables[0] == tables[1]
    assert (tmp_path / "whole" / "report.html").exists()


def test_a_run_has_its_figures_and_its_samples_as_dialogues(inputs, tmp_path):
    assert run(inputs, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    points = read_points(tmp_path / "run" / "frontier.csv")
    assert [point["episodes"] for point in points] == [0, 16, 24]
    assert [points[0]["score"], points[-1]["score"]] == [summary["score_before"], summary["score_after"]]
    assert {"accuracy_before", "pass_at_2_after"} <= set(summary)
    assert 2 <= summary["mean_length_before"] <= 6  # two turns of one to three tokens, and none of the environment's
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())["samples"]
    for sample in samples:
        assert sample["prompt"] in ("the film", "the very", "the good")
        turns = sample["after"].split("\n")
        assert [turn.split(":")[0] for turn in turns] == ["assistant", "user", "assistant", "user"]
        word = sample["prompt"].split()[1]
        said = [turn.split()[1:] for turn in turns if turn.startswith("assistant")]
        assert sample["score_after"] == sum(word in turn for turn in said)
    again = evaluate_agent.main(evaluate_agent.EvaluateAgentConfig(agent=tmp_path / "run", episodes=6))
    assert again["score_after"] == summary["score_after"]


def test_evaluation_changes_nothing_and_training_draws_other_episodes(inputs):
    parts, other = (build_parts(config_of(inputs)) for _ in range(2))
    first = parts.task.assessor.assess(parts.policy)
    rollouts = [each.collector.collect(each.policy)[0] for each in (parts, other)]
    assert torch.equal(rollouts[0].actions, rollouts[1].actions)
    again = parts.task.assessor.assess(parts.policy)
    np.testing.assert_array_equal(first.samples.completions, again.samples.completions)
    np.testing.assert_allclose(first.kl, 0, atol=1e-5)
    assert first.samples.mask.sum() < (first.samples.completions >= 0).sum()  # what the environment wrote is no step


def test_tools_are_paid_for_the_answer_and_evaluated_on_rows_held_out(inputs, tmp_path):
    tools = {"env": None, "tools": "own_games:look", "rows": tmp_path / "rows.jsonl", "reward": "own_games:answered"}
    options = {"credit": "token", "env_options": '{"system": ""}', "eval_samples": None}
    assert run(inputs, tmp_path / "run", **tools, **options) == 0
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())["samples"]
    assert len({sample["prompt"] for sample in samples}) == 1  # a tenth of six rows
    parts = build_parts(
        config_of(inputs, env=None, tools=tools["tools"], rows=str(tools["rows"]), reward=(tools["reward"],),
                  env_options='{"system": ""}')
    )  # fmt: skip
    parts.collector.collect(parts.policy)
    held_out = samples[0]["prompt"]
    asked = [each["messages"][0]["content"] for each in parts.task.envs.unwrapped.drawn_columns]
    assert held_out not in asked


def test_options_reach_the_environment_and_a_class_in_trls_shape_is_taken(inputs, tmp_path):
    parts = build_parts(
        config_of(inputs, env_options='{"price": 2.0, "threads": 2}', eval_env_options='{"price": 3.0}')
    )
    stepped = parts.task.envs.unwrapped._stepped.envs
    assert (stepped._envs[0].price, stepped._pool._max_workers) == (2.0, 2)
    assert parts.task.assessor.envs.unwrapped._stepped.envs._envs[0].price == 3.0
    shaped = build_parts(
        config_of(inputs, env="own_games:Trl", rows=str(tmp_path / "rows.jsonl"), env_options='{"system": ""}')
    )
    assert shaped.task.assessor.assess(shaped.policy).scores.shape == (6,)


def test_a_dialogue_is_no_longer_than_the_model_has_positions(inputs):
    del inputs["--max-tokens"]
    parts = build_parts(config_of(inputs))
    assert parts.policy.max_positions == 24
    assert parts.task.envs.unwrapped.max_tokens == parts.task.assessor.envs.unwrapped.max_tokens == 24
    asked = build_parts(config_of(inputs, env_options='{"max_tokens": 12}', eval_env_options='{"max_turns": 1}'))
    assert asked.task.envs.unwrapped.max_tokens == 12
    assert asked.task.assessor.envs.unwrapped.limits.max_turns == 1
    parts.collector.collect(parts.policy)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"env": None}, "turns, turn_tokens, max_tokens: expected env or tools"),
        ({"env": "own_games:Nothing"}, "env own_games:Nothing: module 'own_games' has no attribute"),
        ({"env": "Nothing-v7"}, "Nothing"),
        ({"env_options": "[1]"}, "env_options: expected a JSON object"),
        ({"env_options": '{"prise": 1}'}, "env_options: own_games:Echo: got an unexpected keyword argument 'prise'"),
        ({"env_options": '{"num_envs": 3, "beta": 1}'}, "env_options: beta, num_envs: expected only as a flag"),
        ({"env_options": '{"max_turns": 3}'}, "env_options: max_turns: expected only as a flag"),
        ({"eval_env_options": '{"weights": [1]}'}, "eval_env_options: weights: expected only as a flag"),
        ({"max_new_tokens": "5"}, "max_new_tokens: expected turn_tokens"),
        ({"max_prompt_tokens": "5"}, "max_prompt_tokens: of texts after prompts"),
        ({"rows": "rows.jsonl", "reward": "own_games:answered"}, "rows: expected tools"),
        ({"tools": "own_games"}, "--tools own_games"),
        ({"env": None, "tools": "own_games:look", "rows": "rows.jsonl"}, "reward: expected one that pays the answer"),
    ],
)
def test_flags_that_do_not_apply_are_refused(inputs, tmp_path, capsys, changed, message):
    try:
        code = run(inputs, tmp_path / "run", **changed)
    except SystemExit as stop:  # of the settings alone
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_registered_task_is_played_as_it_is(inputs, tmp_path):
    pytest.importorskip("reasoning_gym")
    task = {"env": "textenvs/ReasoningGym-v0", "turns": None, "turn_tokens": None, "max_tokens": None}
    options = {"max_new_tokens": 4, "credit": "token", "env_options": '{"task": "chain_sum", "size": 20}'}
    held = {"eval_env_options": '{"held_out": 6}'}
    assert run(inputs, tmp_path / "run", **task, **options, **held) == 0
