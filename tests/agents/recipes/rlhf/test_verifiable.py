"""Verifiable rewards from a user's chair: rows with answers, accuracy and pass@k, a reward that fails on the way."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import textenvs  # noqa: F401 (registers the ids)
from agents import GRPO
from agents.evaluation.best_of_n_estimate import pass_at_k
from agents.evaluation.curve import read_points
from agents.evaluation.eval_rows import EvalRows
from agents.evaluation.metrics import Passed, PassingRule
from agents.recipes import evaluate as evaluate_agent
from agents.recipes.rlhf.build import build_parts
from agents.recipes.rlhf.config import TrainTextConfig, command_line
from agents.reports.run_files import read_columns
from textenvs.wrappers.scorers import RewardError

ROOT = Path(__file__).parents[4]
REWARDS = """
import os
calls, bad = 0, None
FAIL_AT = int(os.environ.get("FAIL_AT", "0"))

def has(completions, *, answer, **columns):
    return [float(word in text.split()) for text, word in zip(completions, answer)]

def picky(completions, answer):
    return [None if word == "very" else float(word in text.split()) for text, word in zip(completions, answer)]

async def fails(completions, answer):
    global calls, bad
    calls += 1
    if calls == FAIL_AT:
        bad = answer[-1]
    if bad in answer:  # also while the row is searched for
        raise OSError("no answer from the server")
    return has(completions, answer=answer)

def text(completions):
    return ["right"] * len(completions)
"""


@pytest.fixture
def inputs(tmp_path, model_dir, monkeypatch):
    """Command-line arguments of a small run, without its folder."""
    words = ["the", "film", "good", "very", "is", "and"]
    for name, start in (("train", "a"), ("test", "plot")):
        rows = [{"prompt": f"{start} {word}", "answer": word, "level": i} for i, word in enumerate(words)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_checks.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_checks", None)
    importlib.invalidate_caches()
    yield {
        "--algorithm": "grpo", "--model": str(model_dir), "--reward": "own_checks:has",
        "--rows": str(tmp_path / "train.jsonl"), "--eval-rows": str(tmp_path / "test.jsonl"),
        "--episodes": "48", "--batch-size": "12", "--group-size": "4", "--minibatch-size": "12", "--epochs": "1",
        "--learning-rate": "0.01", "--max-new-tokens": "6", "--checkpoint-every": "10", "--evaluate-every": "2",
    }  # fmt: skip
    sys.modules.pop("own_checks", None)


def run(inputs, folder, *flags, **changed):
    arguments = inputs | {f"--{name.replace('_', '-')}": str(value) for name, value in changed.items()}
    return command_line([part for pair in arguments.items() for part in pair] + ["--run-dir", str(folder), *flags])


@pytest.mark.parametrize("n, c, k", [(4, 1, 2), (5, 2, 3), (10, 3, 1), (6, 0, 4), (6, 6, 2), (7, 5, 3)])
def test_pass_at_k_is_chens_equation_1(n, c, k):
    """The share of all choices of k samples in which one is right at least."""
    right = np.zeros((1, n), dtype=bool)
    right[0, np.random.default_rng(n).permutation(n)[:c]] = True
    assert pass_at_k(right, k) == pytest.approx([1 - math.comb(n - c, k) / math.comb(n, k)])


def test_a_text_passes_from_the_least_score_on_and_rows_without_a_score_are_left_out():
    nan = np.nan
    greedy = np.array([1.0, 0.9, nan, nan])
    sampled = np.array([[1.0, 0.0], [2.0, 0.5], [nan, nan], [1.0, nan]])
    passed = Passed.of(greedy, sampled, PassingRule(samples=2))
    assert passed.metrics() == pytest.approx({"accuracy": 1 / 3, "pass_at_1": (1 + 1 + 1) / 6, "pass_at_2": 1.0})
    assert Passed.of(greedy, sampled, PassingRule(least=0.5)).metrics()["pass_at_1"] == pytest.approx((1 + 2 + 1) / 6)
    assert Passed.of(np.array([nan]), np.array([[nan]]), PassingRule()).metrics() == {
        "accuracy": None,
        "pass_at_1": None,
    }


def test_accuracy_and_pass_at_k_are_those_of_the_models_own_texts(inputs):
    settings = {name[2:].replace("-", "_"): value for name, value in inputs.items() if "rows" in name}
    config = TrainTextConfig.preset(
        "grpo", run_dir="none", model=inputs["--model"], reward=("own_checks:picky",), **settings,
        max_new_tokens=12, batch_size=12, group_size=4, minibatch_size=12, eval_samples=3,
    )  # fmt: skip
    parts = build_parts(config)
    assessor, policy = parts.task.assessor, parts.task.models.start
    assert assessor.judge is None
    answers = [row["answer"] for row in assessor.write(policy).columns]
    kept = [index for index, word in enumerate(answers) if word != "very"]
    assert len(kept) == 5

    def right(samples):
        return [answers[index] in samples.endings[index].split() for index in kept]

    drawn = np.array([right(assessor.write(policy, seed=12345 + number)) for number in range(3)]).T
    assert 0 < drawn.mean() < drawn.any(1).mean()  # the samples differ
    metrics = assessor.assess(policy).metrics()
    assert metrics["accuracy"] == np.mean(right(assessor.write(policy, deterministic=True)))
    assert metrics["pass_at_1"] == pytest.approx(drawn.mean())
    assert metrics["pass_at_3"] == pytest.approx(drawn.any(1).mean())
    pairs = [(row[0] | row[1]) + (row[0] | row[2]) + (row[1] | row[2]) for row in drawn.astype(int)]
    assert metrics["pass_at_2"] == pytest.approx(np.mean(pairs) / 3)


def test_a_run_has_them_along_the_way_in_the_log_the_frontier_and_the_summary(inputs, tmp_path):
    assert run(inputs, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    points, columns = read_points(tmp_path / "run" / "frontier.csv"), read_columns(tmp_path / "run" / "progress.csv")
    assert [point["episodes"] for point in points] == [0, 24, 48]
    assert summary["eval_rows"] == 6
    assert summary["judge_before"] is None
    for name in ("accuracy", "pass_at_1", "pass_at_2", "pass_at_4"):
        assert [points[0][name], points[-1][name]] == [summary[f"{name}_before"], summary[f"{name}_after"]]
        logged = [value for value in columns[f"eval/{name}"] if value == value]
        assert logged == pytest.approx([point[name] for point in points])
    assert 0 < summary["pass_at_1_before"] < summary["pass_at_4_before"] <= 1
    assert columns["rollout/share_unscored"][1] == 0
    again = evaluate_agent.main(evaluate_agent.EvaluateAgentConfig(agent=tmp_path / "run", episodes=6))
    assert {name: again[name] for name in again if "pass" in name} == {
        name: summary[name] for name in summary if "pass" in name
    }


def same_weights(*folders):
    first, second = (AutoModelForCausalLM.from_pretrained(folder / "model").state_dict() for folder in folders)
    return all(torch.equal(first[name], second[name]) for name in first)


# Calls of the reward: five at each evaluation, before training and after the second update, and one at each rollout.
@pytest.mark.parametrize(("call", "what"), [(5 + 2 + 5 + 1, "rollout"), (5 + 2 + 3, "evaluation")])
def test_a_reward_that_raises_names_itself_and_the_row_and_the_run_goes_on_where_it_was(
    inputs, tmp_path, capfd, monkeypatch, call, what
):
    assert run(inputs, tmp_path / "whole", reward="own_checks:has") == 0
    inputs["--reward"] = "own_checks:fails"
    monkeypatch.setenv("FAIL_AT", str(call))
    sys.modules.pop("own_checks")
    assert run(inputs, tmp_path / "broken") == 2
    error = capfd.readouterr().err
    line = [row["answer"] for row in map(json.loads, (tmp_path / "train.jsonl").open())].index(
        sys.modules["own_checks"].bad
    )
    place = tmp_path / f"{'train' if what == 'rollout' else 'test'}.jsonl:{line + 1}"
    assert f"the reward's own code failed: scorer[0] (fails), on {place}, completion" in error
    assert 'raise OSError("no answer from the server")' in error
    assert "own_checks.py" in error
    assert "--resume continues it" in error
    if what == "rollout":
        assert "after 24 steps of training" in error
    assert not (tmp_path / "broken" / "summary.json").exists()
    monkeypatch.setenv("FAIL_AT", "0")
    sys.modules.pop("own_checks")
    assert run(inputs, tmp_path / "broken", "--resume") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "broken")
    for name in ("frontier.csv", "samples.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "broken" / name).read_text()
    steps = [read_columns(tmp_path / folder / "progress.csv")["time/steps"] for folder in ("whole", "broken")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("raised", "seen", "said"),
    [
        (KeyError("gone"), RewardError, r"scorer\[0\] \(has\) failed on rows\[\d\], .* KeyError: 'gone'"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["error", "Ctrl-C"],
)
def test_an_agent_whose_reward_failed_is_as_before_and_learns_on_bit_for_bit(model_dir, raised, seen, said):
    def build(calls_until_it_fails=100):
        left = [calls_until_it_fails]

        def has(completions, answer):
            left[0] -= 1
            if left[0] < 0:
                raise raised
            return [float(word in text.split()) for text, word in zip(completions, answer, strict=True)]

        def tokens(completion_ids):
            return list(map(len, completion_ids))

        rows = [{"prompt": "the film", "answer": word} for word in ("good", "very", "is")]
        options = dict(rows=rows, scorer=[has, tokens], weights=[1.0, -0.1], reference=model_dir, max_new_tokens=4)
        return GRPO(gym.make_vec("textenvs/TextGeneration-v0", num_envs=8, **options), group_size=4, seed=0), left

    undisturbed, (agent, left) = build()[0].learn(32), build(2)
    with pytest.raises(seen, match=said):
        agent.learn(32)
    assert agent.steps == 16
    left[0] = 100
    agent.learn()
    first, second = undisturbed.policy.state_dict(), agent.policy.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reward": "own_checks:text"}, "scorer[0] (text): expected a number or None, received the text 'right' at"),
        ({"reward": "exact('solution')"}, "scorer[0] (exact): no row has 'solution', which it asks for;"),
        (
            {"reward": "exactly"},
            "--reward exactly: no such folder, and no ready reward is called 'exactly': did you mean",
        ),
        ({"reward": "regex"}, "--reward regex: regex: expected settings of regex(pattern"),
        ({"reward": "own_checks:none"}, "--reward own_checks:none: module 'own_checks' has no attribute 'none'"),
    ],
)
def test_a_reward_that_cannot_be_used_is_one_clear_error(inputs, tmp_path, capsys, changed, said):
    assert run(inputs, tmp_path / "run", **changed) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_settings_of_accuracy_are_refused_where_nothing_is_right_or_wrong(inputs, tmp_path, capsys):
    del inputs["--reward"]
    assert run(inputs, tmp_path / "run", eval_samples=2) == 2
    assert "eval_samples: expected --rows, and a function or ready reward" in capsys.readouterr().err


def test_the_installed_command_finds_a_module_where_it_is_run(inputs, tmp_path):
    """A script of an installed package does not look into the working directory by itself."""
    script = "import sys; sys.path = [each for each in sys.path if each]; from agents.cli import main; sys.exit(main())"
    inputs |= {"--episodes": "12", "--rows": "train.jsonl", "--eval-rows": "test.jsonl", "--reward": "own_checks:has"}
    flags = [part for pair in inputs.items() for part in pair]
    command = [sys.executable, "-P", "-c", script, "train-text", *flags, "--run-dir", "run", "--quiet"]
    if sys.version_info < (3, 11):
        command.remove("-P")
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["eval_rows"] == 6


def test_along_learn_the_same_figures_are_measured_and_training_is_as_without(inputs):
    """Those of the command, of the same model on the same rows."""
    scorer = importlib.import_module("own_checks").has
    model, rows = inputs["--model"], inputs["--eval-rows"]

    def agent():
        envs = gym.make_vec(
            "textenvs/TextGeneration-v0", num_envs=12, rows=inputs["--rows"], scorer=scorer, reference=model,
            max_new_tokens=6,
        )  # fmt: skip
        return GRPO(envs, seed=0, group_size=4, minibatch_size=12, epochs=1, learning_rate=0.01)

    config = TrainTextConfig.preset(
        "grpo", run_dir="none", model=model, reward=("own_checks:has",), rows=inputs["--rows"], eval_rows=rows,
        max_new_tokens=6, batch_size=12, group_size=4, minibatch_size=12,
    )  # fmt: skip
    parts = build_parts(config)
    expected = parts.task.assessor.assess(parts.task.models.start).metrics()
    watched, plain, watch = agent(), agent(), EvalRows(rows, every=2)
    watch(watched)
    watched.learn(36, callback=watch)
    plain.learn(36)
    assert [point["steps"] for point in watch.points] == [0, 24]
    for name in ("score", "accuracy", "pass_at_1", "pass_at_2", "pass_at_4"):
        assert watch.points[0][name] == pytest.approx(expected[name])
    assert all(
        torch.equal(one, other)
        for one, other in zip(watched.policy.parameters(), plain.policy.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="every: expected a whole number of 1 or more, received 0"):
        EvalRows(rows, every=0)
