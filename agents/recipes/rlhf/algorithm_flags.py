"""The flags of `scripts.train_text` that choose and tune the algorithm; None leaves a value to its preset."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from agents.schedules import Linear
from agents.text.config import Algorithm, TextAgentConfig
from agents.text.kl_controllers import AdaptiveKL, AnnealedKL, KLController
from agents.text.presets import preset_settings
from agents.text.score_scaling import ScoreScaler


@dataclass(frozen=True, kw_only=True)
class AlgorithmFlags:
    """How a language model learns from its texts."""

    algorithm: Algorithm = "ppo"
    """PPO has a critic; GRPO and RLOO compare texts of one prompt, REINFORCE all texts of a batch."""

    batch_size: int = 256
    """Texts an update."""
    minibatch_size: int | None = None
    """Texts an optimizer step. None: 64; the whole batch for the plain policy gradient."""
    microbatch_size: int | None = None
    """Texts a backward pass; their gradients add up to the minibatch's. None: the whole minibatch."""
    epochs: int | None = None
    """Passes over each batch. None: 2; 1 for RLOO and REINFORCE."""
    learning_rate: float | None = None
    """Adam's step size at the start; falls linearly to 0. None: 4e-4; 1e-3 for RLOO and REINFORCE."""

    beta: float = 0.155
    """Price of the KL, reward units per nat (where it starts, if kl_target moves it)."""
    beta_start: float | None = None
    """Price that the first texts pay; from there it goes in a straight line to beta. None: beta throughout."""
    beta_share: float = 0.5
    """Share of the episodes in which it gets there, (0, 1]."""
    kl_in: Literal["reward", "loss", "both"] | None = None
    """Who charges it. None: the reward; GRPO with a kl_estimator: the loss."""
    kl_estimator: Literal["k1", "k2", "k3", "full"] | None = None
    """How the loss estimates it; "full" sums over the vocabulary. None: k3."""
    kl_target: float | None = None
    """Nats per sequence that an adaptive price aims at (Ziegler et al. 2019). None: the price is fixed."""
    kl_horizon: int = 2560
    """Episodes over which the adaptive price reacts."""

    clip: float | None = None
    """Half-width of the interval that the probability ratio is kept in. None: 0.2."""
    clip_high: float | None = None
    """Upper half-width where it differs (DAPO's clip-higher, e.g. 0.28)."""
    dual_clip: float | None = None
    """Bound of the ratio of bad tokens, e.g. 3 (Ye et al. 2020)."""
    policy_loss: Literal["clipped", "plain"] | None = None
    """PPO's clipped ratio, or the plain policy gradient. None: clipped; plain for RLOO and REINFORCE."""
    average: Literal["token", "sequence", "constant"] | None = None
    """How tokens are averaged: over all (DAPO), over texts' means (GRPO's paper), over texts times budget (Dr. GRPO).
    None: token for PPO, else constant."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, reward units per nat."""

    group_size: int | None = None
    """Texts of each prompt in a batch. None: 1; GRPO 8, RLOO 4."""
    normalize_std: bool | None = None
    """GRPO: divide by the group's standard deviation, as its paper does. None: no, as Dr. GRPO."""
    normalize_advantages: Literal["batch", "minibatch", "none"] | None = None
    """Whiten advantages over the tokens of a batch. None: batch for PPO, else none."""
    baseline: Literal["batch", "moving", "none"] | None = None
    """REINFORCE: what returns are compared with. None: batch, the batch's mean."""
    reward_to_go: bool = False
    """REINFORCE: tokens answer for the rewards after them only."""

    lam: float | None = None
    """PPO: GAE's lambda. None: 0.95."""
    critic_lam: float | None = None
    """PPO: the lambda of the critic's targets (VC-PPO, VAPO: 1). None: lam."""
    gamma: float = 1.0
    """Discount per token; 1 without a critic."""
    value_coef: float | None = None
    """PPO: weight of the value loss. None: 0.1."""
    value_clip: float | None = None
    """PPO: how far values may move from the rollout's before their error is clipped, reward units. None: no clip."""
    critic_warmup: int = 0
    """PPO: updates in which only the value learns; all of them, if the run has no more."""

    whiten_rewards: bool = False
    """PPO: tokens' rewards to standard deviation 1 before advantages are taken."""
    whiten_shift_mean: bool = False
    """Whether that also subtracts their mean."""
    normalize_scores: bool = False
    """Scores less their running mean, by their running standard deviation, before they are paid."""
    score_clip: float | None = None
    """Scores are clipped to this absolute value, reward units, or deviations with normalize_scores. None: not."""
    missing_eos_penalty: float = 0.0
    """Reward units taken from texts that ran out of budget."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {self.batch_size}")
        settings = self.agent_config()
        of_critic = {"lam": self.lam, "value_coef": self.value_coef, "critic_warmup": self.critic_warmup or None}
        wrong = [name for name, value in of_critic.items() if value is not None]
        if wrong and not settings.uses_critic:
            raise ValueError(f"this does not apply to {self.algorithm}: {', '.join(wrong)} needs a critic")
        if self.batch_size % settings.group_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of group_size {settings.group_size}")
        if settings.policy_loss == "plain" and (settings.minibatch_size or self.batch_size) < self.batch_size:
            raise ValueError(
                f"the plain policy gradient holds for one step a batch: minibatch_size {settings.minibatch_size} is "
                f"below batch_size {self.batch_size}; microbatch_size bounds the memory, policy_loss clipped allows it"
            )
        if self.kl_estimator is not None and settings.kl_in == "reward":
            raise ValueError("kl_estimator is of a KL in the loss: the reward charges k1, the log-ratio")
        if not self.beta >= 0:
            raise ValueError(f"beta must be 0 or more reward units per nat, received {self.beta}")
        if self.kl_target is not None and not self.beta > 0:
            raise ValueError(
                f"kl_target multiplies the price, and from beta {self.beta:g} it never moves: begin above 0"
            )
        if self.kl_target is not None and not self.kl_horizon > 0.2 * self.batch_size:
            raise ValueError(
                f"kl_horizon must exceed a fifth of batch_size {self.batch_size}, received {self.kl_horizon}: the "
                "price could fall below 0"
            )
        if not self.missing_eos_penalty >= 0:
            raise ValueError(f"missing_eos_penalty must be 0 or more reward units, received {self.missing_eos_penalty}")
        unread = {
            "kl_horizon is of kl_target": self.kl_target is None and self._changed("kl_horizon"),
            "beta_share is of beta_start": self.beta_start is None and self._changed("beta_share"),
        }
        if any(unread.values()):
            raise ValueError("; ".join(reason for reason, holds in unread.items() if holds) + ", which is not given")
        if not 0.0 < self.beta_share <= 1.0:
            raise ValueError(f"beta_share lies in (0, 1], received {self.beta_share}")
        if self.beta_start is not None and self.kl_target is not None:
            raise ValueError("beta_start and kl_target both move the price: leave one of them out")
        self.score_scaler()
        self.kl_controller(episodes=1)

    def _changed(self, name: str) -> bool:
        """Whether a flag has another value than its default."""
        return bool(getattr(self, name) != type(self).__dataclass_fields__[name].default)

    def kl_controller(self, episodes: int) -> KLController | None:
        """What moves the KL's price in a training of so many ``episodes``."""
        if self.kl_target is not None:
            return AdaptiveKL(target=self.kl_target, horizon=self.kl_horizon)
        if self.beta_start is not None:
            return AnnealedKL(start=self.beta_start, end=self.beta, horizon=self.beta_share * episodes)
        return None

    def score_scaler(self) -> ScoreScaler | None:
        """What turns scores into what is paid."""
        if self.score_clip is None and not self.normalize_scores:
            return None
        return ScoreScaler(standardize=self.normalize_scores, limit=self.score_clip)

    def agent_config(self) -> TextAgentConfig:
        """The agent's settings: the flags of the same names, over the preset, over what the paper chose.

        Raises:
            ValueError: for values out of range, or options that do not apply to the algorithm.
        """
        names = {field.name for field in fields(TextAgentConfig)} & {field.name for field in fields(self)}
        given = {name: getattr(self, name) for name in sorted(names) if getattr(self, name) is not None}
        if "learning_rate" in given:
            given["learning_rate"] = Linear(given["learning_rate"], 0.0)
        return TextAgentConfig(**preset_settings(self.algorithm, given))
