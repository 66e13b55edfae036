"""Tuned settings by task; any other task gets ``DEFAULT``."""

from __future__ import annotations

from dataclasses import dataclass

from agents.config import AgentConfig, PPOConfig, TRPOConfig
from agents.functional.schedules import Linear


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How to train on one task."""

    config: AgentConfig
    """the algorithm's settings; their type selects the algorithm"""
    total_steps: int
    """transitions to train for"""
    evaluate_every: int
    """transitions between two greedy evaluations, the best weights are kept"""


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
    "Acrobot-v1": Preset(
        config=PPOConfig(
            num_envs=16,
            num_steps=256,
            minibatch_size=256,
            learning_rate=Linear(2.5e-3, 0.0),
            normalize_observations=True,
            normalize_rewards=True,
        ),
        total_steps=200_000,
        evaluate_every=10_000,
    ),
    "MountainCar-v0": Preset(
        config=PPOConfig(
            num_envs=16,
            num_steps=128,
            minibatch_size=256,
            lam=0.98,
            learning_rate=Linear(2.5e-3, 0.0),
            normalize_observations=True,
            normalize_rewards=True,
        ),
        total_steps=300_000,
        evaluate_every=15_000,
    ),
    # Independent noise cancels itself before the car leaves the valley; one draw of gSDE a rollout pushes through. With
    # log_std -2 returns are 1 to 2 higher, but 2 of 22 seeds never meet the goal; with -1.5 all do.
    "MountainCarContinuous-v0": Preset(
        config=PPOConfig(
            num_envs=8,
            num_steps=128,
            minibatch_size=256,
            gamma=0.9999,
            learning_rate=Linear(1e-3, 0.0),
            max_grad_norm=5.0,
            normalize_observations=True,
            sde_sample_freq=-1,
            log_std=-1.5,
        ),
        total_steps=100_000,
        evaluate_every=2_500,
    ),
    "Pendulum-v1": Preset(
        config=PPOConfig(
            num_envs=8,
            num_steps=256,
            minibatch_size=64,
            gamma=0.97,
            learning_rate=Linear(1e-3, 0.0),
            normalize_observations=True,
            normalize_rewards=True,
        ),
        total_steps=150_000,
        evaluate_every=7_500,
    ),
    "LunarLander-v3": Preset(
        config=PPOConfig(
            num_envs=16,
            num_steps=512,
            minibatch_size=256,
            gamma=0.999,
            lam=0.98,
            learning_rate=Linear(1e-3, 0.0),
            entropy_coef=0.01,
            normalize_observations=True,
            normalize_rewards=True,
        ),
        total_steps=1_000_000,
        evaluate_every=50_000,
    ),
}

TRPO_DEFAULT = Preset(config=TRPOConfig(), total_steps=500_000, evaluate_every=25_000)

TRPO_PRESETS: dict[str, Preset] = {
    "CartPole-v1": Preset(config=TRPOConfig(num_envs=8, num_steps=128), total_steps=100_000, evaluate_every=5_120),
    "Acrobot-v1": Preset(
        config=TRPOConfig(num_envs=8, num_steps=128, target_kl=0.02, normalize_observations=True),
        total_steps=100_000,
        evaluate_every=2_560,
    ),
    "MountainCarContinuous-v0": Preset(
        config=TRPOConfig(
            num_envs=4, num_steps=512, normalize_observations=True, normalize_rewards=True, sde_sample_freq=4
        ),
        total_steps=50_000,
        evaluate_every=5_120,
    ),
    "Pendulum-v1": Preset(
        config=TRPOConfig(
            num_envs=4,
            num_steps=256,
            gamma=0.95,
            lam=0.9,
            target_kl=0.02,
            critic_epochs=20,
            normalize_observations=True,
            normalize_rewards=True,
        ),
        total_steps=100_000,
        evaluate_every=5_120,
    ),
}


def preset_for(env_id: str, algorithm: str = "ppo") -> Preset:
    """The preset of ``env_id`` (a ``module:`` prefix is ignored) for "ppo" or "trpo", or the algorithm's default."""
    presets, default = (TRPO_PRESETS, TRPO_DEFAULT) if algorithm == "trpo" else (PRESETS, DEFAULT)
    return presets.get(env_id.rpartition(":")[2], default)
