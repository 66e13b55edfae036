"""The judge of resumed runs sees a single flipped bit; the runs themselves are slow tests."""

from __future__ import annotations

import pytest
import torch

from agents.recipes.control import BEST, LAST
from agents.recipes.control import Config as TrainConfig
from agents.recipes.control import main as train
from agents.runs import checkpoint
from agents.verification.proof.kills import Config, differences, main


def test_two_equal_runs_differ_in_nothing_and_one_bit_more_is_named(tmp_path):
    for name in ("one", "other"):
        train(TrainConfig(run_dir=tmp_path / name, total_steps=1024, eval_episodes=2, quiet=True))
    assert differences(tmp_path / "one", tmp_path / "other") == []
    for name, place in ((LAST, ("agent",)), (BEST, ())):
        state = checkpoint.load(tmp_path / "other" / name)
        agent = state["agent"] if place else state
        weight = agent["policy"]["actor.0.bias"]
        weight.view(torch.int32)[3] ^= 1
        checkpoint.save(tmp_path / "other" / name, state)
        assert f"{name}/{'/'.join((*place, 'policy', 'actor.0.bias'))}" in differences(
            tmp_path / "one", tmp_path / "other"
        )


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "LunarLander-v3"])
def test_killed_runs_end_where_an_undisturbed_run_ends(env, tmp_path):
    summary = main(Config(run_dir=tmp_path / "kills", env=env, kills=3, seed=1))
    assert summary["equal"] == 3
