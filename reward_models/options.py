"""Settings of a reward model's training; imports nothing heavy, as commands read them before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Settings of a reward model's training."""

    epochs: float = 1.4
    """Passes over the comparisons' texts, at most."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW at the last block; linear warm-up, then linear to zero."""
    layer_decay: float = 0.9
    """The learning rate of each block is that of the block above it times this, in (0, 1]."""
    head_lr_multiplier: float = 4.0
    """Learning rate of the head in units of `learning_rate`."""
    weight_decay: float = 0.05
    """AdamW weight decay on matrices."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises."""
    dropout: float = 0.0
    """Rate of dropout in the backbone during training, in place of its configuration's, in [0, 1); without any it is
    trained in evaluation mode."""
    attention_dropout: float | None = None
    """That of attention weights, which costs as much as all the rest, in [0, 1); None: as `dropout`."""
    token_noise: float = 0.05
    """Share of the tokens replaced by random ones in training, in [0, 1)."""
    truncation_share: float = 0.15
    """Share of the texts cut at a random place (without eos) in training, in [0, 1]."""
    centering_coef: float = 0.01
    """Weight of the pull of a pair's rewards to zero, >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    average_decay: float = 0.96
    """Decay a step of the running average of the weights, which is kept; 0 keeps the last weights."""
    chunk_size: int = 32
    """Texts of like length encoded together; smaller wastes less on padding."""
    eval_every: int = 60
    """Optimizer steps between evaluations of the held-out loss."""
    patience: int = 4
    """Evaluations without a better held-out loss after which training stops."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the backbone's matrix products (autocast), kept until the model is loaded again; rewards, loss, weights
    and optimizer are float32."""
    seed: int = 0
    """Seed of order, grouping, dropout and noise."""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name == "attention_dropout":
                continue
            if not (isinstance(value, int | float) and least <= value <= most):
                raise ValueError(f"{name}: expected a number in [{least:g}, {most:g}], received {value!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: expected float32 or bfloat16, received {self.dtype!r}")

    @property
    def drops(self) -> bool:
        """Whether there is any dropout."""
        return bool(self.dropout or self.attention_dropout)


_MOST, _BELOW_1 = 1e9, 1 - 1e-6
_RANGES = {
    "epochs": (1e-6, _MOST), "learning_rate": (1e-12, _MOST), "max_grad_norm": (1e-12, _MOST),
    "layer_decay": (1e-6, 1.0), "dropout": (0.0, _BELOW_1), "attention_dropout": (0.0, _BELOW_1),
    "token_noise": (0.0, _BELOW_1), "average_decay": (0.0, _BELOW_1), "truncation_share": (0.0, 1.0),
    "warmup_share": (0.0, 1.0), "centering_coef": (0.0, _MOST), "weight_decay": (0.0, _MOST),
    "head_lr_multiplier": (0.0, _MOST), "chunk_size": (1, _MOST), "eval_every": (1, _MOST), "patience": (1, _MOST),
    "seed": (0, 2**63),
}  # fmt: skip
