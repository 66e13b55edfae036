"""How a text agent writes and is paid, beside the settings of its algorithm; and that as plain values, for
checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from agents.lm.lora import LoraOptions
from agents.lm.sampling import TokenSampling
from agents.ranges import check_values
from agents.runs.checkpoint import CheckpointError
from agents.text import kl_controllers
from agents.text.kl_controllers import KLController
from agents.text.score_scaling import ScoreScaler


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of ``TextAlgorithm`` that are no settings of the algorithm."""

    batch_size: int = 64
    """texts an update, where the environment is given by id; otherwise its number of sub-environments"""
    critic: str | None = None
    """where values come from: "shared", "separate", "adapter", "none"; see ``CausalLMPolicy``. None: as the
    algorithm"""
    critic_start: Literal["model", "reward-model"] = "model"
    """what a critic of its own begins as: the language model with a head of zeros, or the environment's reward model,
    head included (Stiennon et al. 2020, arXiv:2009.01325, section 3.4); with it ``critic`` None is "separate" """
    beta: float | None = None
    """KL coefficient, reward units per nat. None: the environment's; where that chose none, the preset's"""
    sampling: TokenSampling | None = None
    """how logits become the distribution that acts. None: as they are"""
    lora: LoraOptions | None = None
    """train low-rank adapters over frozen weights. None: all weights"""
    dtype: str = "auto"
    """of matrix products, "float32" or "bfloat16"; "auto": bfloat16 on a CUDA device that has it, float32 elsewhere"""
    gradient_checkpointing: bool = False
    """compute layers again in the backward pass instead of keeping what they hold"""
    missing_eos_penalty: float = 0.0
    """reward units taken from texts that ran out of budget"""
    overlong_penalty: float = 0.0
    """reward units taken from texts as long as the budget; from shorter ones less, in proportion to how far they reach
    into the budget's last ``overlong_cache`` tokens (DAPO, arXiv:2503.14476, eq. 13)"""
    overlong_cache: int | None = None
    """tokens, >= 1. None: a fifth of the budget, as in that paper"""
    max_concurrent_rows: int | None = None
    """texts decoded at a time. None: all of a batch"""
    kl_controller: KLController | None = None
    """what moves the KL coefficient; see ``agents.text.kl_controllers``"""
    score_scaler: ScoreScaler | None = None
    """what the score is turned into before it is paid"""

    def __post_init__(self) -> None:
        ranges = {">= 1": "batch_size max_concurrent_rows overlong_cache"}
        check_values(self, ranges | {">= 0": "beta missing_eos_penalty overlong_penalty"})

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values; the state of a score scaler is the collector's, and a critic that has begun as
        the reward model is the policy's."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if found.pop("critic_start") == "reward-model":
            found["critic"] = self.critic or "separate"
        for name in ("sampling", "lora"):
            found[name] = None if found[name] is None else asdict(found[name])
        if self.kl_controller is not None:
            found["kl_controller"] = [type(self.kl_controller).__name__, dict(vars(self.kl_controller))]
        if self.score_scaler is not None:
            found["score_scaler"] = [self.score_scaler.standardize, self.score_scaler.limit]
        return found

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TextOptions:
        """The options that ``to_dict`` came from; CheckpointError for a KL controller of a user's own."""
        found = dict(values)
        if found["sampling"] is not None:
            allowed = found["sampling"]["allowed_tokens"]
            found["sampling"] = TokenSampling(**found["sampling"] | {"allowed_tokens": allowed and tuple(allowed)})
        if found["lora"] is not None:
            found["lora"] = LoraOptions(**found["lora"])
        if found["kl_controller"] is not None:
            name, state = found["kl_controller"]
            kind = getattr(kl_controllers, name, None)
            if kind is None:
                raise CheckpointError(f"kl_controller: expected one of agents.text.kl_controllers, received {name}")
            found["kl_controller"] = controller = kind.__new__(kind)
            vars(controller).update(state)
        if found["score_scaler"] is not None:
            standardize, limit = found["score_scaler"]
            found["score_scaler"] = ScoreScaler(standardize=standardize, limit=limit)
        return cls(**found)
