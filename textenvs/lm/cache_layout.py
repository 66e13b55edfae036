"""Probe whether a model's attention is invariant to the order and location of cached keys.

Most causal LMs encode positions in tokens or keys and attend to all that a mask allows. Others derive distances from
the columns: ALiBi's slope (Bloom, MPT), or a window outside of the mask (GPT-Neo's local layers).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from textenvs.lm.linear_kernels import cache_keyword
from textenvs.lm.packed_attention import has_full_attention
from textenvs.lm.packed_forward import without_dropout

ANY_ORDER = "takes_keys_in_any_order"
"""Attribute of a model that caches the result."""
MOST_KEYS = 2**11
"""Number of keys in the probe, at most the model's positions; a longer window is found by the configuration only."""
TOLERANCE = 0.05
"""Relative change of a hidden state beyond which the order matters: rounding gives 1e-6 in float32, ALiBi 0.3."""


def any_key_order(model: PreTrainedModel) -> bool:
    """True if all layers of ``model``, a causal LM or trunk, cache keys and values and attend to all, in any order."""
    if not hasattr(model, ANY_ORDER):
        setattr(model, ANY_ORDER, has_full_attention(model.config) and _ignores_order(model))
    return bool(getattr(model, ANY_ORDER))


def _ignores_order(model: PreTrainedModel) -> bool:
    try:
        one, other = _state_after(model, turned=False), _state_after(model, turned=True)
    except Exception:  # a model without such a cache (Mamba), or with fewer positions than configured (MPT)
        return False
    return bool((one - other).norm() <= TOLERANCE * one.norm())


@torch.no_grad()
def _state_after(model: PreTrainedModel, *, turned: bool) -> Tensor:
    """The output ``[D or V]`` of ``model`` after random keys and values, whose halves are swapped if ``turned``."""
    positions = getattr(model.config, "max_position_embeddings", None)
    number = MOST_KEYS if positions is None else min(positions, MOST_KEYS)
    layers = [_MadeUpLayer(number, turned) for _ in range(model.config.num_hidden_layers)]
    device = model.device
    with without_dropout(model), torch.autocast(device.type, enabled=False):
        out = model(
            input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
            # Two dimensions, so that transformers applies the layers' windows.
            attention_mask=torch.ones(1, number, dtype=torch.int64, device=device),
            position_ids=torch.tensor([[number - 1]], device=device),
            use_cache=True,
            **{cache_keyword(model): Cache(layers=list(layers))},
        )
    if not all(layer.was_called for layer in layers):
        raise ValueError("expected layers with keys and values, received another one")
    return out[0][0, -1].float()  # type: ignore[no-any-return]


class _MadeUpLayer(DynamicLayer):
    """Random keys; values are one vector v, or -2 v for one half: the output of a layer that prefers near keys changes
    sign when the halves are swapped. The mean is not 0, so a norm does not amplify rounding errors."""

    def __init__(self, number: int, turned: bool) -> None:
        super().__init__()
        self.number, self.turned, self.was_called = number, turned, False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The random ``[1, H, number, D]``; the arguments give heads and sizes only."""
        self.was_called = True
        generator, half = torch.Generator().manual_seed(0), self.number // 2
        heads, size = value_states.shape[1], value_states.shape[3]
        keys = torch.randn(1, key_states.shape[1], self.number, key_states.shape[3], generator=generator)
        factors = torch.ones(self.number, 1).index_fill(0, torch.arange(half), -2.0)
        values = torch.randn(1, heads, 1, size, generator=generator) * factors
        if self.turned:
            keys, values = keys.roll(half, 2), values.roll(half, 2)
        return keys.to(key_states), values.to(value_states)

    def get_seq_length(self) -> int:
        """Tokens before the current one."""
        return self.number - 1
