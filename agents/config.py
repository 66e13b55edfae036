"""Settings of agents: frozen dataclasses of plain values, saved beside the weights; large ones join small ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from agents.functional.schedules import Linear
from agents.ranges import check_values


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """Update: passes over a batch (``agents.update``)."""

    epochs: int = 10
    """passes over each batch"""
    minibatch_size: int | None = 64
    """rows per optimizer step: single steps, or whole rows for a policy that keeps them. None: the whole batch"""
    microbatch_size: int | None = None
    """rows per backward pass; gradients add up to the minibatch's. None: the whole minibatch"""
    clip: float | Linear = 0.2
    """half-width of the interval that the probability ratio is kept in, a constant or ``Linear(start, end)``"""
    value_coef: float = 0.5
    """weight of the value loss, which carries a half (SB3's ``vf_coef`` 0.5 is 1.0 here)"""
    entropy_coef: float = 0.0
    """weight of the entropy bonus, reward units per nat"""
    value_clip: float | None = None
    """how far V may move from the V at acting time before its error is clipped, reward units. None: no clipping"""
    max_grad_norm: float = 0.5
    """the gradient is scaled down to this Euclidean norm"""
    target_kl: float | None = None
    """stop learning from a batch once the approximate KL exceeds 1.5 times this, nats. None: never"""
    normalize_advantages: Literal["batch", "minibatch", "none"] = "batch"
    """"batch": once over all steps that count; "minibatch": in each minibatch; "none" """

    def __post_init__(self) -> None:
        ranges = {
            ">= 1": "epochs minibatch_size microbatch_size",
            ">= 0": "value_coef entropy_coef",
            "> 0": "clip max_grad_norm value_clip target_kl",
        }
        check_values(self, ranges)


C = TypeVar("C", bound="AgentConfig")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Machine: seed and device."""

    seed: int = 0
    """of weights, sampled actions or tokens, minibatches, and the environments' first reset; at least 0"""
    device: str = "cpu"
    """torch device of the networks"""


@dataclass(frozen=True, kw_only=True)
class DiscountConfig:
    """Advantages: discounts."""

    gamma: float = 0.99
    """discount per step, [0, 1]"""
    lam: float = 0.95
    """GAE's lambda, [0, 1]"""


@dataclass(frozen=True, kw_only=True)
class AgentConfig(DiscountConfig, PlacementConfig):
    """Update: Adam, common to all algorithms."""

    learning_rate: float | Linear = 3e-4
    """Adam's step size, a constant or ``Linear(start, end)``"""
    adam_eps: float = 1e-5
    """Adam's epsilon (baselines' value; torch's default is 1e-8)"""

    def __post_init__(self) -> None:
        check_values(self, {"in [0, 1]": "gamma lam", ">= 0": "learning_rate seed", "> 0": "adam_eps"})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """The configuration ``to_dict`` came from; TypeError if a name is unknown."""
        values = dict(values)
        for name in ("learning_rate", "clip"):
            if isinstance(values.get(name), dict):
                values[name] = Linear(**values[name])
        if "hidden" in values:
            values["hidden"] = tuple(values["hidden"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ControlConfig(AgentConfig):
    """Control: rollouts and networks."""

    num_envs: int = 8
    """environments side by side, where the environment is given by id"""
    num_steps: int = 256
    """steps of each environment per rollout"""
    normalize_observations: bool = False
    """running mean 0 and standard deviation 1 for every observation column"""
    normalize_rewards: bool = False
    """divide rewards by the running standard deviation of the discounted return"""
    hidden: tuple[int, ...] = (64, 64)
    """widths of the hidden layers of actor and critic"""
    activation: Literal["tanh", "relu"] = "tanh"
    """between the layers"""
    log_std: float = 0.0
    """initial log standard deviation of continuous actions"""
    sde_sample_freq: int | None = None
    """steps between two draws of state-dependent exploration (gSDE, continuous actions), -1 for once a rollout. None:
    independent noise each step"""

    def __post_init__(self) -> None:
        AgentConfig.__post_init__(self)
        check_values(self, {">= 1": "num_envs num_steps"})


@dataclass(frozen=True, kw_only=True)
class PPOConfig(UpdateConfig, ControlConfig):
    """PPO's settings. The defaults are those of Schulman et al. 2017 for continuous control, over 8 environments."""

    def __post_init__(self) -> None:
        UpdateConfig.__post_init__(self)
        ControlConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TRPOConfig(ControlConfig):
    """TRPO: its settings; where nothing else is said the defaults are those of Stable-Baselines3's."""

    learning_rate: float | Linear = 1e-3
    """Adam's step size for the critic, a constant or ``Linear(start, end)``; the policy's step needs none"""
    target_kl: float = 0.01
    """how far one update may move the policy: mean KL(old || new) over the states, nats"""
    cg_steps: int = 15
    """products with the Fisher matrix per update, for its inverse"""
    cg_damping: float = 0.1
    """added to the Fisher matrix's diagonal"""
    line_search_steps: int = 10
    """lengths of the step to try, at most"""
    line_search_shrink: float = 0.8
    """each length as a share of the one before, (0, 1)"""
    critic_epochs: int = 10
    """the critic's passes over each batch"""
    critic_minibatch_size: int = 128
    """steps per optimizer step of the critic"""
    normalize_advantages: Literal["batch", "none"] = "batch"
    """"batch": once over all steps that count; "none" """

    def __post_init__(self) -> None:
        ControlConfig.__post_init__(self)
        ranges = {
            ">= 1": "cg_steps line_search_steps critic_epochs critic_minibatch_size",
            "> 0": "target_kl",
            ">= 0": "cg_damping",
            "in (0, 1)": "line_search_shrink",
        }
        check_values(self, ranges)


SB3_NAMES = {
    "n_envs": "it is num_envs", "n_steps": "it is num_steps", "batch_size": "it is minibatch_size",
    "n_epochs": "it is epochs", "gae_lambda": "it is lam", "clip_range": "it is clip", "ent_coef": "it is entropy_coef",
    "vf_coef": "it is value_coef, twice vf_coef", "clip_range_vf": "it is value_clip",
    "normalize_advantage": 'it is normalize_advantages, "minibatch" or "none"',
    "use_sde": "sde_sample_freq says it", "policy_kwargs": "hidden, activation and log_std are settings",
    "tensorboard_log": "pass logger=agents.runs.logging.FileSink(folder)",
}  # fmt: skip
"""Settings of Stable-Baselines3's agents, and what to write here."""
TRL_NAMES = {
    "num_generations": "it is group_size", "num_iterations": "it is epochs", "epsilon": "it is clip",
    "epsilon_high": "it is clip_high", "scale_rewards": "it is normalize_std", "kl_coef": "it is beta",
    "loss_type": "average, policy_loss and preset say it", "max_completion_length": "it is the env's max_new_tokens",
    "use_bias_correction_kl": "it is kl_in='loss', kl_estimator='k2'", "reward_weights": "it is the env's weights",
    "temperature": "pass sampling=agents.lm.sampling.TokenSampling(...)",
}  # fmt: skip
"""Settings of TRL's trainers, likewise."""


def with_settings(kind: type[C], config: C | None, settings: dict[str, Any]) -> C:
    """``config`` (None: the defaults of ``kind``) with some fields replaced by ``settings``.

    Raises:
        ValueError: for another kind of configuration, or a setting it does not have; the nearest name is in the
        message.
    """
    if config is not None and not isinstance(config, kind):
        raise ValueError(f"config: expected a {kind.__name__}, received {type(config).__name__}")
    check_settings(kind, settings)
    return kind(**settings) if config is None else replace(config, **settings)


def check_settings(kind: type, settings: Iterable[str]) -> None:
    """Raise ValueError unless all names are fields of ``kind``; the nearest name is in the message."""
    known = [field.name for field in fields(kind)]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            elsewhere = SB3_NAMES | TRL_NAMES
            hint = f"; here {elsewhere[name]}" if name in elsewhere else hint
            raise ValueError(f"{name!r} is no setting of {kind.__name__}{hint}")
