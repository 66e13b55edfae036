"""rl-baselines3-zoo's tuned PPO settings as plain data, for Stable-Baselines3 and for our PPO: the same work, twice.

Source of the figures: rl-baselines3-zoo, hyperparams/ppo.yml. One of SB3's ``vf_coef`` is two of our ``value_coef``,
whose loss carries a half; everything else carries over by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from agents import PPOConfig
from agents.functional.schedules import Linear


@dataclass(frozen=True, kw_only=True)
class ZooPreset:
    """PPO's settings for one task, in SB3's names; unlisted ones are SB3's defaults."""

    n_envs: int = 1  # environments side by side
    n_steps: int = 2048  # steps of each environment per rollout
    batch_size: int = 64  # steps per optimizer step
    n_epochs: int = 10  # passes over each rollout
    gamma: float = 0.99  # discount per step
    gae_lambda: float = 0.95  # GAE's lambda
    learning_rate: float = 3e-4  # Adam's step size
    clip_range: float = 0.2  # half-width of the ratio's interval
    linear: bool = False  # step size and interval fall linearly to 0
    ent_coef: float = 0.0  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the squared error of V
    max_grad_norm: float = 0.5  # of the gradient
    normalize: bool = False  # observations and rewards by running statistics
    sde_sample_freq: int | None = None  # gSDE: steps between two draws, -1 once a rollout; None: independent noise
    log_std: float = 0.0  # initial log standard deviation
    ortho_init: bool = True  # orthogonal weights; ours always are


ZOO: dict[str, ZooPreset] = {
    "CartPole-v1": ZooPreset(
        n_envs=8, n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, learning_rate=1e-3, linear=True
    ),
    "Acrobot-v1": ZooPreset(n_envs=16, n_steps=256, n_epochs=4, gae_lambda=0.94, normalize=True),
    "MountainCar-v0": ZooPreset(n_envs=16, n_steps=16, n_epochs=4, gae_lambda=0.98, normalize=True),
    "MountainCarContinuous-v0": ZooPreset(
        n_steps=8, batch_size=256, gamma=0.9999, gae_lambda=0.9, learning_rate=7.77e-5, clip_range=0.1,
        ent_coef=0.00429, vf_coef=0.19, max_grad_norm=5.0, normalize=True, sde_sample_freq=-1, log_std=-3.29,
        ortho_init=False,
    ),
    "Pendulum-v1": ZooPreset(n_envs=4, n_steps=1024, gamma=0.9, learning_rate=1e-3, sde_sample_freq=4),
    "LunarLander-v3": ZooPreset(n_envs=16, n_steps=1024, n_epochs=4, gamma=0.999, gae_lambda=0.98, ent_coef=0.01),
}  # fmt: skip


def ours(preset: ZooPreset, *, seed: int) -> PPOConfig:
    """The same settings for our PPO."""
    scheduled: Callable[[float], Any] = Linear if preset.linear else float
    return PPOConfig(
        num_envs=preset.n_envs, num_steps=preset.n_steps, minibatch_size=preset.batch_size, epochs=preset.n_epochs,
        gamma=preset.gamma, lam=preset.gae_lambda, learning_rate=scheduled(preset.learning_rate),
        clip=scheduled(preset.clip_range), entropy_coef=preset.ent_coef, value_coef=2.0 * preset.vf_coef,
        max_grad_norm=preset.max_grad_norm, normalize_advantages="minibatch", normalize_observations=preset.normalize,
        normalize_rewards=preset.normalize, sde_sample_freq=preset.sde_sample_freq, log_std=preset.log_std, seed=seed,
    )  # fmt: skip


def theirs(env_id: str, preset: ZooPreset, *, seed: int) -> Any:
    """An ``stable_baselines3.PPO`` with these settings, in a vector environment of its own making."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    envs: VecEnv = make_vec_env(env_id, n_envs=preset.n_envs, seed=seed)
    if preset.normalize:
        envs = VecNormalize(envs, gamma=preset.gamma)

    def scheduled(start: float) -> Any:
        return (lambda left: left * start) if preset.linear else start

    same = ("n_steps", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm")
    return PPO(
        "MlpPolicy", envs, batch_size=min(preset.batch_size, preset.n_steps * preset.n_envs),
        learning_rate=scheduled(preset.learning_rate), clip_range=scheduled(preset.clip_range),
        use_sde=preset.sde_sample_freq is not None,
        sde_sample_freq=-1 if preset.sde_sample_freq is None else preset.sde_sample_freq,
        policy_kwargs={"ortho_init": preset.ortho_init, "log_std_init": preset.log_std}, seed=seed, device="cpu",
        **{name: value for name, value in asdict(preset).items() if name in same},
    )  # fmt: skip
