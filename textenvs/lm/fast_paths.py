"""Enables the faster layers, attention and packed rows of this room for a model, after a self-test at load.

They use transformers' internals, which may change in any release, and are disabled where the result differs.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from textenvs.lm.linear_kernels import speed_up
from textenvs.lm.packed_attention import SharedPrefixes, use_packed_attention
from textenvs.lm.packed_forward import PACKS, can_pack, hidden_states, trunk_of, without_dropout

ROWS, WIDTH, SHARED = 15, 5, 2
"""Shape of the test rows: 1 to 5 tokens, of which five rows share the first two."""


def accelerate(model: nn.Module) -> None:
    """Enable the faster paths of ``model`` in place; parameters and the saved files do not change.

    A path that raises, or whose hidden states differ from transformers' by more than rounding on a few short rows, is
    disabled with a warning. A model on the meta device, or of another library, is not tested.
    """
    if not isinstance(model, PreTrainedModel) or model.device.type == "meta":
        speed_up(model)
        if isinstance(model, PreTrainedModel):
            use_packed_attention(model)
        return
    trial = _Trial(trunk_of(model))
    with ExitStack() as undo:
        try:
            trial.plain = trial.padded()
            undo.callback(speed_up(model))
            undo.callback(use_packed_attention(model))
            trial.compare(trial.padded())
        except Exception as fault:  # changed internals may raise anything
            _warn(model, "faster layers and attention", fault)
            return
        undo.pop_all()
    try:
        if can_pack(trial.trunk):
            trial.compare(trial.packed())
    except Exception as fault:
        setattr(trial.trunk, PACKS, False)
        _warn(model, "rows without padding", fault)


class _Trial:
    """A few short rows, and ``trunk``'s hidden states ``[N, D]`` at their tokens."""

    plain: Tensor

    def __init__(self, trunk: PreTrainedModel) -> None:
        self.trunk, device = trunk, trunk.device
        width = min(WIDTH, getattr(trunk.config, "max_position_embeddings", None) or WIDTH)
        number, column = torch.arange(ROWS, device=device)[:, None], torch.arange(width, device=device)
        self.lengths = width - number[:, 0] % width
        self.group = number[:, 0] // WIDTH
        own = number * (column >= SHARED)
        embeddings: Any = trunk.get_input_embeddings()
        vocabulary = embeddings.weight.shape[0]
        self.rows = (self.group[:, None] + 3 * column + own) % min(11, vocabulary)
        self.real = column < self.lengths[:, None]

    @torch.no_grad()
    def padded(self) -> Tensor:
        """By an ordinary padded forward pass."""
        with without_dropout(self.trunk):
            out = self.trunk(input_ids=self.rows, attention_mask=self.real.long())
        return out.last_hidden_state[self.real]

    @torch.no_grad()
    def packed(self) -> Tensor:
        """By rows without padding, with shared prefixes computed once."""
        shared = SharedPrefixes(self.group, torch.full_like(self.lengths, min(SHARED, self.rows.shape[1])))
        with without_dropout(self.trunk):
            row, position = self.real.nonzero(as_tuple=True)
            return hidden_states(self.trunk, self.rows, self.lengths, row, position, prefixes=shared)

    def compare(self, found: Tensor) -> None:
        """Raise ArithmeticError unless ``found`` is ``plain`` up to rounding."""
        difference = float((found.double() - self.plain.double()).norm() / self.plain.double().norm())
        allowed = tolerance(self.plain, self.trunk.config.num_hidden_layers)
        if not difference <= allowed:
            raise ArithmeticError(
                f"expected hidden states equal to {allowed:.0e}, received a difference of {difference:.1e}"
            )


def tolerance(states: Tensor, num_layers: int) -> float:
    """Relative difference of ``states`` that rounding explains: half of the digits of their dtype, or, in half
    precision with many layers, a random walk of about 16 roundings per layer. A wrong path differs in the first digit.
    """
    eps = torch.finfo(states.dtype).eps
    if states.dtype == torch.float32:  # products may use TF32 or bfloat16
        eps = {"highest": eps, "high": 2.0**-11, "medium": 2.0**-8}[torch.get_float32_matmul_precision()]
    return max(eps**0.5, eps * (16 * num_layers) ** 0.5)


def _warn(model: nn.Module, path: str, fault: Exception) -> None:
    warnings.warn(
        f"{type(model).__name__} runs without {path}: {type(fault).__name__}: {fault}. It is slower, not wrong; this "
        "version of transformers may have other internals",
        stacklevel=3,
    )
