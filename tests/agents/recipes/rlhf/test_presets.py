"""What a run starts from where its settings leave it open."""

import json
import shutil

import pytest

from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.presets import run_settings
from agents.text.presets import REWARD_CRITIC
from textenvs import assets


def starts_as_reward(given):
    return "critic_start" in run_settings("ppo", given) and "critic_start" not in given


def test_movie_reviews_start_their_critic_as_the_reward_model():
    config = TrainTextConfig.preset(run_dir="x")
    assert {name: getattr(config, name) for name in REWARD_CRITIC} == REWARD_CRITIC
    again = TrainTextConfig.preset(run_dir="x", reward=(str(assets.reward_model_dir()),))
    assert {name: getattr(again, name) for name in REWARD_CRITIC} == REWARD_CRITIC


@pytest.mark.parametrize(
    "asked",
    [
        {"memory": "shared"}, {"engine": "http://here:8000"}, {"shard": "fsdp"},
        {"correction": "token_truncate"}, {"critic_start": "model"},
        {"rows": "r", "reward": ("number",)},
        {"env": "module:Game"}, {"model": "nowhere"}, {"whiten_rewards": True}, {"reward_weights": (2.0,)},
    ],
    ids=str,
)  # fmt: skip
def test_who_asks_for_another_way_gets_it(asked):
    assert not starts_as_reward(asked)


@pytest.mark.parametrize(
    "asked", [{"memory": "full"}, {"shard": "none"}, {"async_rollouts": 0}, {"branches": 8}, {"beta": 0.3}], ids=str
)
def test_who_asks_for_what_the_preset_has_or_for_more_of_it_keeps_it(asked):
    assert starts_as_reward(asked)
    assert run_settings("ppo", asked).items() >= asked.items()


def test_only_a_reward_model_of_the_models_shape_and_words(tmp_path):
    reward = tmp_path / "reward"
    shutil.copytree(assets.reward_model_dir(), reward)
    assert starts_as_reward({"reward": (str(reward),)})
    assert starts_as_reward({"reward": str(reward), "model": str(assets.language_model_dir())})
    assert not starts_as_reward({"reward": ("number",)})
    assert not starts_as_reward({"reward": (str(reward), "length")})  # a critic of one does not know the other
    about = json.loads((reward / "reward_model.json").read_text())
    (reward / "reward_model.json").write_text(json.dumps(about | {"base": "model"}))  # an adapter has no trunk
    assert not starts_as_reward({"reward": str(reward)})
    (reward / "reward_model.json").write_text(json.dumps(about))
    config = json.loads((reward / "config.json").read_text())
    (reward / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    assert not starts_as_reward({"reward": (str(reward),)})
    (reward / "config.json").write_text(json.dumps(config))
    words = json.loads((reward / "tokenizer.json").read_text())
    words["model"]["vocab"] = dict(list(words["model"]["vocab"].items())[:-1])
    (reward / "tokenizer.json").write_text(json.dumps(words))
    assert not starts_as_reward({"reward": (str(reward),)})


def test_other_algorithms_have_no_critic_to_start():
    assert "critic_start" not in run_settings("grpo", {})
    assert run_settings("ppo", {"beta": 0.4})["beta"] == 0.4
