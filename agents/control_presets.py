"""Settings that were tried, by task; a task without any gets ``DEFAULT``."""

from __future__ import annotations

from dataclasses import dataclass

from agents.config import PPOConfig
from agents.schedules import Linear


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How to train on one task."""

    config: PPOConfig
    """the settings of PPO"""
    total_steps: int
    """transitions to train for"""
    evaluate_every: int
    """transitions between two greedy evaluations, of which the best weights are kept"""


DEFAULT = Preset(config=PPOConfig(), total_steps=500_000, evaluate_every=25_000)

PRESETS: dict[str, Preset] = {
    "CartPole-v1": Preset(
        config=PPOConfig(
            num_envs=16,
            num_steps=64,
            minibatch_size=256,
            epochs=10,
            gamma=0.99,
            lam=0.95,
            learning_rate=Linear(2.5e-3, 0.0),
        ),
        total_steps=32_768,
        evaluate_every=2_048,
    ),
}

def preset_for(env_id: str) -> Preset:
    """The preset of ``env_id`` (a ``module:`` prefix is ignored), or ``DEFAULT``."""
    return PRESETS.get(env_id.rpartition(":")[2], DEFAULT)
