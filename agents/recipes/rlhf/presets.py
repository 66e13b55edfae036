"""What a run starts from where its settings leave it open: the algorithm's preset, and a critic that knows the reward.

Read before torch is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.text.config import Paper
from agents.text.presets import preset_settings

REWARD_CRITIC: dict[str, Any] = {
    "memory": "full", "critic_start": "reward-model", "value_coef": 0.5, "beta": 0.21, "lam": 0.5, "critic_lam": 1.0,
    "branches": 4,
}  # fmt: skip
"""PPO's where the critic can begin as the reward model: docs/results/ablation.md has each setting's part."""
ANOTHER_WAY = (
    "env", "tools", "memory", "critic_start", "branches", "shard", "engine", "async_rollouts", "policy_loss",
    "whiten_rewards", "normalize_advantages",
)  # fmt: skip
"""Settings that are about the same things, or that ``branches`` does not go with: who gives one gives the others."""
SHAPE = ("model_type", "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "intermediate_size")


def run_settings(algorithm: Paper, changed: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``TrainTextConfig``: the preset of ``algorithm``, updated by ``changed``; learning rate None if open.

    Raises:
        ValueError: if there is no such algorithm.
    """
    more = REWARD_CRITIC if algorithm == "ppo" and critic_can_start_as_reward(changed) else {}
    return preset_settings(algorithm, {"learning_rate": None, **more, **changed})


def critic_can_start_as_reward(given: dict[str, Any]) -> bool:
    """True if the first reward is a reward model of the language model's shape and vocabulary, and no setting in
    ``given`` asks for another way."""
    if any(given.get(name) not in (None, False) for name in ANOTHER_WAY):
        return False
    rewards = given.get("reward") or ()
    reward = rewards if isinstance(rewards, str) else next(iter(rewards), None)
    if reward is None and given.get("model") is None:
        return True
    from textenvs import assets  # which imports gymnasium, and --help does not

    folders = Path(given.get("model") or assets.language_model_dir()), Path(reward or assets.reward_model_dir())
    if not (folders[1] / "reward_model.json").exists():
        return False
    try:
        model, scorer = (json.loads((folder / "config.json").read_bytes()) for folder in folders)
        words, read = (json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"] for folder in folders)
    except (OSError, ValueError, KeyError):
        return False
    return words == read and all(model.get(name) == scorer.get(name) for name in SHAPE)
