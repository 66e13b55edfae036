import json

import pytest

from scripts.exact_gap import command_line, train_gpt2, train_tabular


def test_a_run_leaves_its_gap_behind_and_is_not_overwritten(tmp_path, capsys):
    flags = ["--envs", "textenvs/ExactRandom-v0", "--updates", "3", "--run-dir", str(tmp_path / "run")]
    assert command_line(flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["gap_worst"] == summary["ExactRandom_gap"] < 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["updates"] == 3
    assert command_line(flags) == 2
    assert "finished run" in capsys.readouterr().err
    assert command_line(["--envs", "textenvs/NoSuchTask-v0"]) == 2


def test_a_language_model_starts_at_its_reference_and_comes_nearer():
    result = train_gpt2("textenvs/ExactRandom-v0", updates=8, num_envs=64)
    assert 0 < result.gap < 0.9
    assert result.start < result.attained < result.optimum
    assert result.kl > 0


@pytest.mark.slow
@pytest.mark.parametrize("train", [train_tabular, train_gpt2])
@pytest.mark.parametrize("name", ["Spelling", "Sentiment", "Random"])
def test_ppo_ends_within_two_per_cent_of_the_optimum(train, name):
    assert train(f"textenvs/Exact{name}-v0").gap <= 0.02
