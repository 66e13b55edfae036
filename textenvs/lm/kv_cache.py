"""A preallocated key-value cache whose finished rows are replaced by new ones; for `agents.lm.generation`.

Every row's newest token is in the same column, regardless of its length, with older tokens before it and masked columns
before those. Columns form a ring: the next token overwrites the oldest one, which no running row needs any more. It
needs models for which the order of keys is irrelevant (`any_key_order`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from textenvs.lm.linear_kernels import HALF, cache_keyword
from textenvs.lm.packed_attention import has_full_attention
from textenvs.lm.packed_forward import trunk_of, without_dropout

ANY_ORDER = "takes_keys_in_any_order"
"""Attribute of a model that caches the result."""
MOST_KEYS = 2**11
"""Number of keys in the probe, at most the model's positions; a longer window is found by the configuration only."""
TOLERANCE = 0.05
"""Relative change of a hidden state beyond which the order matters: rounding gives 1e-6 in float32, ALiBi 0.3."""


class _PlainLayer(DynamicLayer):
    """Keys and values of one layer, ``[max_concurrent_rows, H, capacity, D]``; the first ``rows`` rows are in use."""

    keys: Any
    values: Any

    def __init__(self, max_concurrent_rows: int, capacity: int, float32: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_concurrent_rows, self.capacity, self.float32 = max_concurrent_rows, capacity, float32
        self.rows = 0
        self.column = 0
        """Number of columns used so far; modulo ``capacity`` the column of the next token."""
        self.joining: Tensor | None = None
        self.place: Tensor | None = None
        """``[1]`` column of the next token, of a cache whose shapes stay."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values; returns those to attend to: the new ones where rows join, else views of all."""
        if not self.is_initialized:
            # Zeros: masked entries are multiplied by 0 and must be finite.
            self.keys, self.values = self._zeros(key_states), self._zeros(value_states)
            self.is_initialized = True
        if self.joining is not None:
            source, self.joining = self.joining, None
            begin, self.rows = self.rows, self.rows + len(source)
            places = torch.arange(self.column - key_states.shape[-2], self.column, device=source.device) % self.capacity
            for all_rows, states in ((self.keys, key_states), (self.values, value_states)):
                few = states if len(states) == len(source) else states[source]
                all_rows[begin : self.rows].index_copy_(2, places, few.to(all_rows.dtype))
            return key_states, value_states
        keys, values = self.keys[: self.rows], self.values[: self.rows]
        if self.place is not None:
            keys.index_copy_(2, self.place, key_states.to(keys.dtype))
            values.index_copy_(2, self.place, value_states.to(values.dtype))
            return keys, values
        at = self.column % self.capacity
        keys[:, :, at : at + 1] = key_states
        values[:, :, at : at + 1] = value_states
        self.column += 1
        end = min(self.column, self.capacity)
        return keys[:, :, :end], values[:, :, :end]

    def _zeros(self, states: Tensor) -> Tensor:
        dtype = torch.float32 if self.float32 and states.dtype in HALF else states.dtype
        return states.new_zeros(self.max_concurrent_rows, states.shape[1], self.capacity, states.shape[-1], dtype=dtype)

    def get_seq_length(self) -> int:
        """Cached tokens that the next ones attend to; in a full ring the last column is the query's own."""
        return 0 if self.joining is not None else min(self.column, self.capacity - 1)

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Move row ``movers[i]`` to ``holes[i]`` and keep the first ``count`` rows."""
        end = min(self.column, self.capacity) if self.place is None else self.capacity
        if len(holes):
            self.keys[holes, :, :end] = self.keys[movers, :, :end]
            self.values[holes, :, :end] = self.values[movers, :, :end]
        self.rows = count


class PlainCache(Cache):
    """A preallocated cache for models whose layers all attend to every key, in any order.

    ``capacity`` is the longest row, its newest token included. With ``float32`` half precision is stored as float32.
    """

    def __init__(self, num_layers: int, *, max_concurrent_rows: int, capacity: int, float32: bool = False) -> None:
        super().__init__(layers=[_PlainLayer(max_concurrent_rows, capacity, float32) for _ in range(num_layers)])

    def expect(self, source: Tensor, column: int) -> None:
        """Announce that the next forward pass prefills prompts, ``[M, W]`` right-aligned, of rows to append.

        ``source [R]`` is the index of each new row's prompt, 0 to M - 1 in order if R is M; prompts end right before
        ``column``, that of all rows' next token.
        """
        for layer in self.layers:
            layer.joining, layer.column = source, column  # type: ignore[union-attr]

    def keep_shapes(self, device: torch.device) -> None:
        """From now on a step reads all columns, so that its shapes depend on the number of rows only.

        Columns without a token of a row must be masked, and each step is announced by ``write_at``.
        """
        place = torch.zeros(1, dtype=torch.int64, device=device)
        for layer in self.layers:
            layer.place = place  # type: ignore[union-attr]

    def write_at(self, column: int) -> None:
        """Announce that the next step's tokens are at ``column``, with shapes that stay."""
        for layer in self.layers:
            layer.column = column  # type: ignore[union-attr]
        layer.place.fill_(column % layer.capacity)  # type: ignore[union-attr]

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Move rows ``movers`` to ``holes`` in every layer and keep the first ``count``."""
        for layer in self.layers:
            layer.move(movers, holes, count)  # type: ignore[union-attr]


def new_cache(trunk: PreTrainedModel, *, max_concurrent_rows: int, capacity: int, float32: bool = False) -> Cache:
    """An empty cache for ``trunk``: a `PlainCache` if its keys may be in any order, else transformers' growing one."""
    if any_key_order(trunk):
        return PlainCache(
            trunk.config.num_hidden_layers, max_concurrent_rows=max_concurrent_rows, capacity=capacity, float32=float32
        )
    return DynamicCache(config=trunk.config)


def check_has_cache(model: PreTrainedModel) -> None:
    """Raise ValueError unless ``model`` takes a cache whose layers hold keys and values only (Mamba's do not)."""
    trunk = trunk_of(model)
    takes_one = cache_keyword(trunk) in inspect.signature(trunk.forward).parameters
    # Finished rows leave the batch, which transformers supports for keys and values only.
    if not takes_one or not all(hasattr(x, "batch_select_indices") for x in DynamicCache(config=model.config).layers):
        raise ValueError(
            f"expected attention layers with a key-value cache (no recurrent layers), received {type(model).__name__}"
        )


def any_key_order(model: PreTrainedModel) -> bool:
    """True if all layers of ``model``, a causal LM or trunk, cache keys and values and attend to all, in any order.

    Most encode positions in tokens or keys and attend to all that a mask allows. Others derive distances from columns:
    ALiBi's slope (Bloom, MPT), or a window outside of the mask (GPT-Neo's local layers).
    """
    if not hasattr(model, ANY_ORDER):
        setattr(model, ANY_ORDER, has_full_attention(trunk_of(model).config) and _ignores_order(model))
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
    config = trunk_of(model).config
    positions = getattr(config, "max_position_embeddings", None)
    number = MOST_KEYS if positions is None else min(positions, MOST_KEYS)
    layers = [_MadeUpLayer(number, turned) for _ in range(config.num_hidden_layers)]
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
    return out[0][0, -1].float()


class _MadeUpLayer(DynamicLayer):
    """Random keys; values are one vector v, or -2 v for one half: the output of a layer that prefers near keys changes
    sign when the halves are swapped. The mean is not 0, so a norm does not amplify rounding errors."""

    def __init__(self, number: int, turned: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
