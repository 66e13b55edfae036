"""Settings of PPO, GRPO, RLOO and REINFORCE on text: advantages and loss.

The four differ in these settings only. ``TextAgentConfig.for_algorithm("grpo")`` has the settings of the algorithm's
paper; a setting that does not apply to the algorithm raises an error instead of being ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from agents.config import AgentConfig, UpdateConfig
from agents.functional.schedules import value_at
from agents.ranges import changed, check_values

Algorithm = Literal["ppo", "grpo", "rloo", "reinforce"]
Paper = Literal[
    "ppo", "grpo", "rloo", "reinforce", "dr_grpo", "dapo", "gspo", "cispo", "reinforce++", "reinforce++_baseline"
]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
WITH_CRITIC, GROUP_ALGORITHMS = ("ppo",), ("grpo", "rloo")

_GROUPS = {"algorithm": "grpo", "group_size": 8, "normalize_advantages": "none", "epochs": 1}
PAPERS: dict[Paper, dict[str, Any]] = {
    "ppo": {},
    "grpo": {
        "group_size": 8, "normalize_std": True, "normalize_advantages": "none", "average": "sequence", "kl_in": "loss",
        "epochs": 1,
    },
    "rloo": {
        "group_size": 4, "normalize_advantages": "none", "policy_loss": "plain", "average": "constant", "epochs": 1,
    },
    "reinforce": {
        "baseline": "batch", "normalize_advantages": "none", "policy_loss": "plain", "average": "constant", "epochs": 1,
    },
    "dr_grpo": {**_GROUPS, "average": "constant"},
    "dapo": {**_GROUPS, "group_size": 16, "normalize_std": True, "clip_high": 0.28, "dynamic_sampling": 9},
    "gspo": {
        **_GROUPS, "normalize_std": True, "average": "sequence", "policy_loss": "gspo", "clip": 3e-4, "clip_high": 4e-4,
    },
    "cispo": {**_GROUPS, "normalize_std": True, "policy_loss": "cispo", "clip": 1.0, "clip_high": 4.0},
    "reinforce++": {"algorithm": "reinforce", "reward_to_go": True, "epochs": 1},
    "reinforce++_baseline": {
        **_GROUPS, "normalize_advantages": "batch", "kl_in": "loss", "kl_estimator": "k2",
    },
}  # fmt: skip
"""Settings of each algorithm's paper that differ from ``TextAgentConfig``'s defaults; sources in the fields.

The papers of Dr. GRPO, DAPO, GSPO and CISPO charge no KL: set the environment's ``beta`` to 0. DAPO draws until its
batch is full; the bound is that of verl's recipe, ten batches in all. CISPO's upper bound is not in its paper: weights
up to 5 are those of ScaleRL (Khatri et al. 2025, arXiv:2510.13786).
"""


def paper_settings(name: Paper) -> dict[str, Any]:
    """The keywords of ``TextAgentConfig`` that ``PAPERS`` has under ``name``, ``algorithm`` included; ValueError if
    there is no such paper."""
    if name not in PAPERS:
        raise ValueError(f"algorithm: expected one of {', '.join(PAPERS)}, received {name!r}")
    return {"algorithm": name, **PAPERS[name]}


@dataclass(frozen=True, kw_only=True)
class TextAdvantageConfig:
    """Advantages: how much better than expected each token was."""

    group_size: int = 1
    """consecutive texts of each prompt in a batch"""
    credit: Literal["token", "turn", "state"] = "token"
    """of dialogues, what is credited as one action. "token"; "turn": GAE's lambda holds between turns and is 1 within
    one, and groups compare rewards to go of turns of the same number; "state", GRPO and RLOO: whole dialogues, and on
    top of that turns that began in the same state (GiGPO, Feng et al. 2025, arXiv:2505.10978)"""
    gamma_turn: float = 1.0
    """of dialogues: discount per turn, [0, 1], on top of ``gamma``"""
    state_weight: float = 1.0
    """credit "state": weight of the turns' part (GiGPO's omega)"""
    dynamic_sampling: int = 0
    """GRPO, RLOO: up to so many more batches are drawn until a rollout is full of groups whose texts differ in return;
    equal ones teach nothing (DAPO, Yu et al. 2025, arXiv:2503.14476, section 3.2 and eq. 11). A KL in the reward makes
    nearly all returns differ"""
    normalize_std: bool = False
    """GRPO: divide by the group's standard deviation (Shao et al. 2024, arXiv:2402.03300); Dr. GRPO does not
    (arXiv:2503.20783)"""
    baseline: Literal["batch", "moving", "none"] = "none"
    """REINFORCE (Williams 1992): "batch", the mean return of the batch; "moving", its running average; "none". With
    "none", reward_to_go and normalize_advantages "batch" it is REINFORCE++ (Hu et al. 2025, arXiv:2501.03262v9, eq. 5);
    its variant with a baseline is GRPO without the deviation, normalized alike (eqs. 6 and 7), with k2 in the loss"""
    baseline_decay: float = 0.9
    """decay of the running average, [0, 1)"""
    reward_to_go: bool = False
    """REINFORCE: credit a token with the rewards from it on, not with the whole text's (arXiv:2501.03262v9, eq. 4)"""
    critic_lam: float | None = None
    """PPO: GAE's lambda of the critic's targets, [0, 1]; None: the actor's (VC-PPO, Yuan et al. 2025, arXiv:2503.01491;
    VAPO, arXiv:2504.05118)"""
    branches: int = 0
    """PPO: so many further tokens are drawn in each state, whose advantages the critic tells: less noise from as many
    texts, for a pass of each model (``agents.functional.advantages.all_action_advantages``). 0: none"""
    whiten_rewards: bool = False
    """PPO: scale rewards to standard deviation 1 over the batch's tokens before advantages are computed (Ziegler et al.
    2019; Huang et al. 2024, "The N+ implementation details of RLHF with PPO", arXiv:2403.17031)"""
    whiten_shift_mean: bool = False
    """subtract the mean in that whitening, too, from the reward of every token"""


@dataclass(frozen=True, kw_only=True)
class TextLossConfig:
    """Loss: what an optimizer step minimizes."""

    policy_loss: Literal["clipped", "plain", "gspo", "cispo"] = "clipped"
    """"clipped", PPO's surrogate; "plain", the policy gradient, which holds for one step a batch; "gspo", the surrogate
    with one ratio a text (Zheng et al. 2025, arXiv:2507.18071, eqs. 5 and 7); "cispo", the policy gradient weighted by
    the clipped ratio (MiniMax 2025, arXiv:2506.13585, eqs. 4 and 5), where a clip of 1 is no lower bound"""
    clip_high: float | None = None
    """upper eps, if it differs from ``clip`` (DAPO's clip-higher, Yu et al. 2025, arXiv:2503.14476)"""
    dual_clip: float | None = None
    """bound of the ratio of steps with a negative advantage, > 1 + eps (Ye et al. 2020, arXiv:1912.09729)"""
    average: Literal["token", "sequence", "constant"] = "token"
    """"token", mean over all tokens (DAPO, arXiv:2503.14476); "sequence", mean of the texts' means (GRPO,
    arXiv:2402.03300, eq. 3); "constant", sum divided by texts x token budget (Dr. GRPO, arXiv:2503.20783)"""


@dataclass(frozen=True, kw_only=True)
class TextKLConfig:
    """KL: how the distance to the reference is charged."""

    kl_in: Literal["reward", "loss", "both"] = "reward"
    """where the KL to the reference is charged: "reward" (Ziegler et al. 2019, arXiv:1909.08593), "loss" (GRPO) or
    "both" """
    kl_estimator: Literal["k1", "k2", "k3", "full"] | None = None
    """of a KL in the loss: k1, k2 or k3 of ``agents.functional.kl`` at the sampled token, or "full", the sum over the
    vocabulary. Each sees the current token, not its consequences; k1's gradient has mean zero (Tang & Munos 2025,
    arXiv:2506.09477). None: k3"""


@dataclass(frozen=True, kw_only=True)
class TextOptimizerConfig:
    """Update: AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    adam_eps: float = 1e-8
    """Adam's epsilon, > 0. The 1e-5 of control tasks is more than the gradients of a large model's weights, so that
    its first steps would be a fraction of the learning rate"""
    adam_beta1: float = 0.9
    """decay of the gradient's running mean, [0, 1)"""
    adam_beta2: float = 0.999
    """decay of its square's running mean, [0, 1)"""
    weight_decay: float = 0.0
    """share of each weight, times the learning rate, that a step takes off; >= 0"""
    warmup_updates: int = 0
    """updates over which the learning rate rises from 0 in a straight line, on top of its schedule"""

    microbatch_tokens: int | None = None
    """tokens per backward pass, of texts as long as the batch's longest with its prompt; a longer text goes alone. It
    takes ``microbatch_size``'s place"""

    def microbatch_rows(self, longest: int) -> int | None:
        """Rows per backward pass of a batch whose longest text has so many tokens; None: not bounded by tokens."""
        return None if self.microbatch_tokens is None else max(1, self.microbatch_tokens // max(1, longest))

    def warmup(self, updates: int) -> float:
        """Factor of the learning rate after so many ``updates``, (0, 1]."""
        return min(1.0, (updates + 1) / (self.warmup_updates + 1))


def correction_of(given: Correction | None, *, on_policy: bool) -> Correction:
    """The correction that holds if ``given`` is asked for; None: one unless the policy itself writes."""
    return given or ("none" if on_policy else "sequence_truncate")


@dataclass(frozen=True, kw_only=True)
class TextEngineConfig:
    """Engine: who writes the texts, and what becomes of its difference from the policy that learns from them."""

    engine: str | None = None
    """URL of a vLLM server that writes, as ``textenvs serve`` starts one; None: the project's own decoder"""
    engine_weights: Literal["full", "adapter"] = "full"
    """what an engine is sent after an update: the whole model, or its LoRA adapter alone"""
    engine_transfer: Literal["folder", "broadcast"] = "folder"
    """how whole weights get to an engine, as ``textenvs serve --transfer``: through a folder, or over NCCL (gloo
    without GPUs)"""
    engine_folder: str | None = None
    """folder that the engine reads weights from; None: a temporary one, for an engine on this machine"""
    async_rollouts: int = 0
    """most updates by which what wrote a batch may be behind what learns from it, 0 or 1. With 1 the next batch is
    written while this one is learned from; without an engine by a copy of the model, which takes its memory"""
    correction: Correction | None = None
    """importance weights between what wrote and what learns: "token_truncate" (TIS), "token_mask" (IcePop),
    "sequence_truncate", "sequence_mask" or "none"; see ``agents.functional.correction``. None: "sequence_truncate" with
    an engine or async_rollouts, else "none", where the writer's log-probs are taken for the policy's own"""
    correction_low: float = 0.0
    """least ratio that a mask lets pass, [0, 1]"""
    correction_high: float = 3.0
    """largest ratio that a mask lets pass, or that a weight is cut to; >= 1"""


@dataclass(frozen=True, kw_only=True)
class TextAgentConfig(
    TextEngineConfig, TextOptimizerConfig, TextAdvantageConfig, TextKLConfig, TextLossConfig, UpdateConfig, AgentConfig
):
    """Algorithm: how texts are evaluated.

    With its base classes, all settings of ``agents.text.agent.TextAgent``; the defaults are PPO's.

    Raises:
        ValueError: for a value out of range, or a setting that does not apply to the algorithm.
    """

    algorithm: Algorithm = "ppo"
    """"ppo" (Schulman et al. 2017), "grpo" (Shao et al. 2024), "rloo" (Ahmadian et al. 2024), "reinforce" """
    gamma: float = 1.0
    """discount per token; 1 without a critic"""
    critic_warmup: int = 0
    """PPO: first updates in which only the critic learns, and the actor stays as it is"""

    @classmethod
    def for_algorithm(cls, algorithm: Paper, **changed: Any) -> TextAgentConfig:
        """The settings of the algorithm's paper (``PAPERS``), updated by ``changed``."""
        return cls(**(paper_settings(algorithm) | changed))

    @property
    def uses_critic(self) -> bool:
        """Whether values are computed and learned."""
        return self.algorithm in WITH_CRITIC

    def __post_init__(self) -> None:
        UpdateConfig.__post_init__(self)
        AgentConfig.__post_init__(self)
        self._check_ranges()
        self._check_applicable()

    def _check_ranges(self) -> None:
        ranges = {
            ">= 0": "weight_decay warmup_updates clip_high critic_warmup dynamic_sampling branches",
            "> 0": "state_weight",
            ">= 1": "group_size correction_high microbatch_tokens",
            "in [0, 1)": "adam_beta1 adam_beta2 baseline_decay",
            "in [0, 1]": "critic_lam gamma_turn async_rollouts correction_low",
        }
        check_values(self, ranges)
        if self.branches and self.normalize_advantages == "minibatch":
            raise ValueError('branches: expected normalize_advantages "batch" or "none", received "minibatch"')
        if self.microbatch_tokens is not None and self.microbatch_size is not None:
            raise ValueError("microbatch_tokens and microbatch_size both bound a backward pass: leave one of them out")
        if self.algorithm in GROUP_ALGORITHMS and self.group_size < 2:
            raise ValueError(f"group_size: expected 2 or more for {self.algorithm}, received {self.group_size}")
        upper = 1.0 + max(self.clip_high or 0.0, value_at(self.clip, 0.0), value_at(self.clip, 1.0))
        if self.dual_clip is not None and not self.dual_clip > upper:
            raise ValueError(f"dual_clip: expected more than 1 + clip = {upper:g}, received {self.dual_clip}")
        if not self.uses_critic and self.gamma != 1.0:
            raise ValueError(f"gamma: expected 1 for {self.algorithm}, which has no critic, received {self.gamma}")

    def _check_applicable(self) -> None:
        """Raise ValueError if a setting was changed that this algorithm, or another setting, makes irrelevant."""
        plain = self.policy_loss == "plain"
        mode = correction_of(self.correction, on_policy=not (self.engine or self.async_rollouts))
        needs = {
            "GRPO": (self.algorithm == "grpo", ("normalize_std",)),
            'GRPO or RLOO to be "state"': (self.credit != "state" or self.algorithm in GROUP_ALGORITHMS, ("credit",)),
            'credit "state"': (self.credit == "state", ("state_weight",)),
            "GRPO or RLOO": (self.algorithm in GROUP_ALGORITHMS, ("dynamic_sampling",)),
            "REINFORCE": (self.algorithm == "reinforce", ("baseline", "reward_to_go")),
            "a critic": (
                self.uses_critic,
                ("critic_lam", "critic_warmup", "value_clip", "whiten_rewards", "lam", "value_coef", "branches"),
            ),
            "whiten_rewards": (self.whiten_rewards, ("whiten_shift_mean",)),
            "the clipped loss, rewards as paid, and texts by the policy itself": (
                self.policy_loss == "clipped" and not self.whiten_rewards and mode == "none",
                ("branches",),
            ),
            "the clipped loss": (self.policy_loss == "clipped", ("dual_clip",)),
            "a clipped loss": (not plain, ("clip", "clip_high")),
            "a KL in the loss": (self.kl_in != "reward", ("kl_estimator",)),
            "an engine": (self.engine is not None, ("engine_weights", "engine_transfer", "engine_folder")),
            'engine_weights "full"': (self.engine_weights == "full", ("engine_transfer",)),
            'engine_transfer "folder"': (self.engine_transfer == "folder", ("engine_folder",)),
            "a correction": (mode != "none", ("correction_high",)),
            "a correction by a mask": (mode.endswith("mask"), ("correction_low",)),
            "the moving baseline": (self.baseline == "moving", ("baseline_decay",)),
        }
        reasons = [
            f"{name} needs {needed}"
            for needed, (holds, names) in needs.items()
            for name in ([] if holds else changed(self, *names))
        ]
        if plain and self.epochs > 1:
            reasons.append(f"the plain policy gradient holds for one pass over a batch, received epochs {self.epochs}")
        if reasons:
            raise ValueError(f"this does not apply to {self.algorithm}: {'; '.join(reasons)}")
