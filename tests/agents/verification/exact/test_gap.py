import json
from typing import get_args

import pytest

from agents.text.config import Algorithm
from agents.verification.exact.gap import ExactGapConfig, command_line, train
from agents.verification.exact.settings import ALGORITHMS


def test_a_run_leaves_its_gap_behind_and_is_not_overwritten(tmp_path, capsys):
    flags = ["--envs", "textenvs/ExactRandom-v0", "--updates", "3", "--run-dir", str(tmp_path / "run")]
    assert command_line(flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["gap_worst"] == summary["ppo_gap_worst"] == summary["ppo_ExactRandom_gap"] < 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["updates"] == 3
    assert command_line(flags) == 2
    assert "finished run" in capsys.readouterr().err
    assert command_line(["--envs", "textenvs/NoSuchTask-v0"]) == 2
    with pytest.raises(ValueError, match="updates: expected a number >= 1, received 0"):
        ExactGapConfig(updates=0)


def test_all_algorithms_are_measured_in_one_run(tmp_path):
    flags = ["--algorithm", "all", "--envs", "textenvs/ExactRandom-v0", "--updates", "2"]
    assert command_line([*flags, "--run-dir", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    gaps = [summary[f"{algorithm}_ExactRandom_gap"] for algorithm in ALGORITHMS]
    assert len(set(gaps)) == len(ALGORITHMS)
    assert summary["gap_worst"] == max(gaps) < 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_language_model_starts_at_its_reference_and_comes_nearer(algorithm):
    result = train("gpt2", "textenvs/ExactRandom-v0", algorithm, updates=8, num_envs=256)
    assert 0 < result.gap < 1
    assert result.start < result.attained < result.optimum
    assert result.kl > 0


def test_a_table_comes_near_the_optimum_by_texts_of_groups():
    assert train("tabular", "textenvs/ExactRandom-v0", "rloo", updates=60, num_envs=128).gap < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "algorithm"),
    [("tabular", name) for name in ALGORITHMS] + [("gpt2", name) for name in get_args(Algorithm)],
)
@pytest.mark.parametrize("name", ["Spelling", "Sentiment", "Random"])
def test_each_ends_within_two_per_cent_of_the_optimum(name, algorithm, policy):
    gap = train(policy, f"textenvs/Exact{name}-v0", algorithm).gap
    assert gap <= 0.02
