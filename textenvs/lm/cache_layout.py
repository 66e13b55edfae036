"""Whether it is all the same to a model in which order its keys stand, or where; found by trying, not by its name.

Most causal LMs put positions into tokens or keys, and attend to whatever a mask lets them: then rows of different
lengths can have their keys anywhere in memory, as in `textenvs.wrappers.reference` and ``textenvs.lm.kv_cache``.
Others read a
distance off the columns: ALiBi's slope (Bloom, MPT), or a window that no mask tells of (GPT-Neo's local layers).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from textenvs.lm.linear_kernels import cache_keyword
from textenvs.lm.packed_attention import attends_to_everything
from textenvs.lm.packed_forward import without_dropout

ANY_ORDER = "takes_keys_in_any_order"
"""Attribute of a model that says whether it does, once that was tried."""
MOST_KEYS = 2**11
"""Keys that are tried, or as many as the model has positions: a longer window is seen if its configuration tells."""
TOLERANCE = 0.05
"""Relative change of a state from which on the order mattered. Rounding makes 1e-6 of it in float32, ALiBi 0.3."""


def any_key_order(model: Any) -> bool:
    """Whether all layers of ``model`` keep keys and values, see all of them, and do not mind in which order.

    Args:
        model: a transformers causal LM, or its trunk. It is run for two tokens when first asked about.
    """
    if not hasattr(model, ANY_ORDER):
        setattr(model, ANY_ORDER, attends_to_everything(model.config) and _order_is_nothing_to(model))
    return bool(getattr(model, ANY_ORDER))


def _order_is_nothing_to(model: Any) -> bool:
    try:
        one, other = _state_after(model, turned=False), _state_after(model, turned=True)
    except Exception:  # whatever a model says that has no such cache (Mamba), or fewer positions than it tells (MPT)
        return False
    return bool((one - other).norm() <= TOLERANCE * one.norm())


@torch.no_grad()
def _state_after(model: Any, *, turned: bool) -> Tensor:
    """``[D or V]`` what ``model`` says after keys and values that were made up, one half of them before the other."""
    positions = getattr(model.config, "max_position_embeddings", None)
    number = MOST_KEYS if positions is None else min(positions, MOST_KEYS)
    layers = [_MadeUpLayer(number, turned) for _ in range(model.config.num_hidden_layers)]
    device = model.device
    with without_dropout(model), torch.autocast(device.type, enabled=False):
        out = model(
            input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device),
            # Two dimensions, so that transformers may make of it what the layers' windows ask for.
            attention_mask=torch.ones(1, number, dtype=torch.int64, device=device),
            position_ids=torch.tensor([[number - 1]], device=device),
            use_cache=True,
            **{cache_keyword(model): Cache(layers=list(layers))},
        )
    if not all(layer.was_asked for layer in layers):
        raise ValueError("a layer keeps something else than keys and values")
    return out[0][0, -1].float()  # type: ignore[no-any-return]


class _MadeUpLayer(DynamicLayer):
    """Random keys; values are one vector, turned round and doubled for one half of them: a layer that sees only what is
    near, or sees that best, says the opposite when the halves change places. All together are not nothing, whose
    rounding a norm would blow up."""

    def __init__(self, number: int, turned: bool) -> None:
        super().__init__()
        self.number, self.turned, self.was_asked = number, turned, False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The made-up ``[1, H, number, D]``, whatever is handed over."""
        self.was_asked = True
        generator, half = torch.Generator().manual_seed(0), self.number // 2
        heads, size = value_states.shape[1], value_states.shape[3]
        keys = torch.randn(1, key_states.shape[1], self.number, key_states.shape[3], generator=generator)
        factors = torch.ones(self.number, 1).index_fill(0, torch.arange(half), -2.0)
        values = torch.randn(1, heads, 1, size, generator=generator) * factors
        if self.turned:
            keys, values = keys.roll(half, 2), values.roll(half, 2)
        return keys.to(key_states), values.to(value_states)

    def get_seq_length(self) -> int:
        """Tokens before the one that is read."""
        return self.number - 1
