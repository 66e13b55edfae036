"""The settings of language models' training: advantages and the loss of PPO, GRPO, RLOO and REINFORCE.

The four differ in these settings only. ``TextAgentConfig.for_algorithm("grpo")`` is an algorithm as its paper has it;
whatever does not apply to an algorithm is refused rather than ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agents.config import AgentConfig, UpdateConfig
from agents.functional.schedules import value_at

Algorithm = Literal["ppo", "grpo", "rloo", "reinforce"]
WITH_CRITIC, GROUP_ALGORITHMS = ("ppo",), ("grpo", "rloo")

PAPERS: dict[Algorithm, dict[str, Any]] = {
    "ppo": {},
    "grpo": {
        "group_size": 8,
        "normalize_std": True,
        "normalize_advantages": "none",
        "average": "sequence",
        "kl_in": "loss",
    },
    "rloo": {
        "group_size": 4,
        "normalize_advantages": "none",
        "policy_loss": "plain",
        "average": "constant",
        "epochs": 1,
    },
    "reinforce": {
        "baseline": "batch",
        "normalize_advantages": "none",
        "policy_loss": "plain",
        "average": "constant",
        "epochs": 1,
    },
}
"""What each algorithm's paper chose, where it is not ``TextAgentConfig``'s default; sources in the fields."""


@dataclass(frozen=True, kw_only=True)
class TextAdvantageConfig:
    """Advantages: how good each token was."""

    group_size: int = 1
    """texts of each prompt, in a row in every batch"""
    normalize_std: bool = False
    """GRPO: divide by the group's standard deviation (Shao et al. 2024, arXiv:2402.03300); Dr. GRPO does not
    (arXiv:2503.20783)"""
    baseline: Literal["batch", "moving", "none"] = "none"
    """REINFORCE (Williams 1992): "batch", the mean return of the batch; "moving", its running average; "none". With
    "none" and normalize_advantages "batch" it is REINFORCE++ (Hu et al. 2025, arXiv:2501.03262)"""
    baseline_decay: float = 0.9
    """of the running average, [0, 1)"""
    reward_to_go: bool = False
    """REINFORCE: a token answers for the rewards from it on, not for the whole text's (arXiv:2501.03262, eq. 5)"""
    critic_lam: float | None = None
    """PPO: GAE's lambda of the returns that the critic learns, [0, 1], where it is not the actor's (VC-PPO, Yuan et al.
    2025, arXiv:2503.01491; VAPO, arXiv:2504.05118)"""
    whiten_rewards: bool = False
    """PPO: rewards to standard deviation 1 over the batch's tokens before advantages are taken (Ziegler et al. 2019;
    Huang et al. 2024, "The N+ implementation details of RLHF with PPO", arXiv:2403.17031)"""
    whiten_shift_mean: bool = False
    """whether that whitening subtracts the mean, too, as the reward of every token"""


@dataclass(frozen=True, kw_only=True)
class TextLossConfig:
    """Loss: what an optimizer step minimizes."""

    policy_loss: Literal["clipped", "plain"] = "clipped"
    """"clipped", PPO's surrogate; "plain", the policy gradient, which holds for one step a batch"""
    clip_high: float | None = None
    """upper eps where it differs from ``clip`` (DAPO's clip-higher, Yu et al. 2025, arXiv:2503.14476)"""
    dual_clip: float | None = None
    """bound of the ratio where the advantage is negative, > 1 + eps (Ye et al. 2020, arXiv:1912.09729)"""
    average: Literal["token", "sequence", "constant"] = "token"
    """"token", mean over all tokens (DAPO, arXiv:2503.14476); "sequence", mean of the texts' means (GRPO,
    arXiv:2402.03300, eq. 3); "constant", sum over the batch's texts times budget (Dr. GRPO, arXiv:2503.20783)"""


@dataclass(frozen=True, kw_only=True)
class TextKLConfig:
    """KL: how the distance to the reference is charged."""

    kl_in: Literal["reward", "loss", "both"] = "reward"
    """who charges the KL to the reference: "reward" (Ziegler et al. 2019, arXiv:1909.08593), "loss" (GRPO), or, when
    asked for, "both" """
    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k3"
    """in the loss: k1, k2, k3 of ``agents.functional.kl`` at the sampled token, or "full", the sum over the
    vocabulary. Each sees the token at hand, not what it leads to; k1's gradient has mean zero (Tang & Munos 2025,
    arXiv:2506.09477)"""


@dataclass(frozen=True, kw_only=True)
class TextAgentConfig(TextAdvantageConfig, TextKLConfig, TextLossConfig, UpdateConfig, AgentConfig):
    """Algorithm: what tells how good a text was.

    With what it joins, everything that ``agents.text.agent.TextAgent`` reads; the defaults are PPO's.

    Raises:
        ValueError: for a value out of range, or an option that does not apply to the algorithm.
    """

    algorithm: Algorithm = "ppo"
    """"ppo" (Schulman et al. 2017), "grpo" (Shao et al. 2024), "rloo" (Ahmadian et al. 2024), "reinforce" """
    gamma: float = 1.0
    """discount per token; 1 without a critic"""
    critic_warmup: int = 0
    """PPO: first updates in which only the critic learns, and the actor stays as it is"""

    @classmethod
    def for_algorithm(cls, algorithm: Algorithm, **changed: Any) -> TextAgentConfig:
        """``algorithm`` as its paper has it (``PAPERS``), but for what is ``changed``."""
        if algorithm not in PAPERS:
            raise ValueError(f"algorithm is one of {', '.join(PAPERS)}, not {algorithm!r}")
        return cls(algorithm=algorithm, **(PAPERS[algorithm] | changed))

    @property
    def uses_critic(self) -> bool:
        """Whether values are computed and learned."""
        return self.algorithm in WITH_CRITIC

    def __post_init__(self) -> None:
        UpdateConfig.__post_init__(self)
        AgentConfig.__post_init__(self)
        for name, known in {
            "algorithm": tuple(PAPERS),
            "policy_loss": ("clipped", "plain"),
            "average": ("token", "sequence", "constant"),
            "kl_in": ("reward", "loss", "both"),
            "kl_estimator": ("k1", "k2", "k3", "full"),
            "baseline": ("batch", "moving", "none"),
        }.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        self._check_ranges()
        self._refuse_what_does_not_apply()

    def _check_ranges(self) -> None:
        if self.group_size < 1 or (self.algorithm in GROUP_ALGORITHMS and self.group_size < 2):
            least = 2 if self.algorithm in GROUP_ALGORITHMS else 1
            raise ValueError(f"group_size must be at least {least} for {self.algorithm}, received {self.group_size}")
        if self.clip_high is not None and self.clip_high < 0:
            raise ValueError(f"clip_high must not be negative, received {self.clip_high}")
        upper = 1.0 + max(self.clip_high or 0.0, value_at(self.clip, 0.0), value_at(self.clip, 1.0))
        if self.dual_clip is not None and not self.dual_clip > upper:
            raise ValueError(f"dual_clip must exceed 1 + clip, {upper:g}, received {self.dual_clip}")
        if self.critic_warmup < 0:
            raise ValueError(f"critic_warmup: expected 0 or more updates, received {self.critic_warmup}")
        if not 0.0 <= self.baseline_decay < 1.0:
            raise ValueError(f"baseline_decay must lie in [0, 1), received {self.baseline_decay}")
        if self.critic_lam is not None and not 0.0 <= self.critic_lam <= 1.0:
            raise ValueError(f"critic_lam must lie in [0, 1], received {self.critic_lam}")
        if not self.uses_critic and self.gamma != 1.0:
            raise ValueError(f"{self.algorithm} judges texts by the sum of their rewards: gamma is 1, not {self.gamma}")

    def _changed(self, name: str) -> bool:
        """Whether a field has another value than its default."""
        return bool(getattr(self, name) != type(self).__dataclass_fields__[name].default)

    def _refuse_what_does_not_apply(self) -> None:
        plain = self.policy_loss == "plain"
        wrong = {
            "normalize_std is GRPO's": self.normalize_std and self.algorithm != "grpo",
            "baseline is REINFORCE's": self.baseline != "none" and self.algorithm != "reinforce",
            "reward_to_go is REINFORCE's": self.reward_to_go and self.algorithm != "reinforce",
            "critic_warmup needs a critic": self.critic_warmup > 0 and not self.uses_critic,
            "critic_lam needs a critic": self.critic_lam is not None and not self.uses_critic,
            "value_clip needs a critic": self.value_clip is not None and not self.uses_critic,
            "whiten_rewards is of tokens' rewards, which only a critic tells apart": self.whiten_rewards
            and not self.uses_critic,
            "whiten_shift_mean is of whiten_rewards": self.whiten_shift_mean and not self.whiten_rewards,
            "clip_high is of the clipped loss": self.clip_high is not None and plain,
            "dual_clip is of the clipped loss": self.dual_clip is not None and plain,
            "kl_estimator is of a KL in the loss": self._changed("kl_estimator") and self.kl_in == "reward",
            "lam needs a critic": self._changed("lam") and not self.uses_critic,
            "value_coef needs a critic": self._changed("value_coef") and not self.uses_critic,
            "baseline_decay is of the moving baseline": self._changed("baseline_decay") and self.baseline != "moving",
            "clip is of the clipped loss": self._changed("clip") and plain,
            f"the plain policy gradient holds for one pass over a batch, not {self.epochs}": plain and self.epochs > 1,
        }
        reasons = [reason for reason, holds in wrong.items() if holds]
        if reasons:
            raise ValueError(f"this does not apply to {self.algorithm}: {'; '.join(reasons)}")
