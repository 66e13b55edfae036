"""Forward pass of a transformer's trunk over ragged rows: packing, length batches, activation checkpointing."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from textenvs.lm.packed_attention import LAYOUT, OURS, RowLayout, SharedPrefixes, has_full_attention
from textenvs.lm.sizes import sizes
from textenvs.tokens.rows import PAD

COMPILED = "compiled_forward"
"""Attribute of a trunk with its compiled forward pass."""
PACKS = "takes_packed_rows"
"""Attribute of a trunk that caches the result of a test of packed rows."""
RECOMPUTED = "recomputed_forward"
"""Attribute of a layer with its forward pass under activation checkpointing."""
READS = "last_mlp_is_by_position"
"""Attribute of a trunk that caches whether its last MLP can be skipped at positions that are not read."""


def hidden_states(
    trunk: nn.Module,
    rows: Tensor,
    lengths: Tensor,
    row: Tensor,
    position: Tensor,
    *,
    prefixes: SharedPrefixes | None = None,
) -> Tensor:
    """Run ``trunk`` over right-padded ``rows [B, W]`` of ``lengths [B]``, each at least 1, and read some states.

    Rows are packed, so that nothing is computed for padding, shared ``prefixes`` are computed once, and the last
    layer's MLP only where it is read. Models that do not support it run on batches of similar length. Without gradients
    a few rows run at a time.

    Returns:
        ``[N, D]`` the last hidden states of the tokens at ``row [N]`` and ``position [N]``.
    """
    if not can_pack(trunk):
        return _in_parts(trunk, rows, lengths, row, position)
    if torch.is_grad_enabled():
        return _packed_states(trunk, rows, RowLayout(lengths, prefixes), row, position)
    states, inside = [], []
    for begin, end in few_tokens(lengths, sizes(rows.device).pass_tokens):
        shared = None if prefixes is None else SharedPrefixes(*(each[begin:end] for each in prefixes))
        layout, read = RowLayout(lengths[begin:end], shared), ((row >= begin) & (row < end)).nonzero()[:, 0]
        states.append(_packed_states(trunk, rows[begin:end], layout, row[read] - begin, position[read]))
        inside.append(read)
    return torch.cat(states).index_select(0, torch.cat(inside).argsort())


def _packed_states(trunk: Any, rows: Tensor, layout: RowLayout, row: Tensor, position: Tensor) -> Tensor:
    reads, number = layout.at(row, position), trunk.config.num_hidden_layers
    states = _run_packed(trunk, rows, layout, reads)
    if layout.layers != number:
        raise RuntimeError(
            f"expected {number} attention layers that separate rows, received {layout.layers}: the model does not "
            "match its configuration"
        )
    return states.index_select(0, reads)


def few_tokens(lengths: Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """First and end row of slices of at most ``limit`` tokens, or of one row."""
    begin = tokens = 0
    for row, length in enumerate(lengths.tolist()):
        if row > begin and tokens + length > limit:
            yield begin, row
            begin, tokens = row, 0
        tokens += length
    yield begin, len(lengths)


def can_pack(trunk: nn.Module) -> bool:
    """True if ``trunk`` runs packed rows: every layer has this room's attention, unwindowed, and receives the layout.

    The attention is checked in every call, since ``set_attn_implementation`` may change it; the rest once.
    """
    if not isinstance(trunk, PreTrainedModel) or hasattr(trunk, COMPILED) or trunk.device.type == "meta":
        return False
    if trunk.config._attn_implementation != OURS:
        return False
    if not hasattr(trunk, PACKS):
        setattr(trunk, PACKS, _passes_layout(trunk))
    return bool(getattr(trunk, PACKS))


def _passes_layout(trunk: Any) -> bool:
    takes = inspect.signature(trunk.forward).parameters
    passes_on = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    if not (has_full_attention(trunk.config) and "position_ids" in takes and passes_on):
        return False
    lengths = torch.tensor([1, 2] * 20, device=trunk.device)
    layout, rows = RowLayout(lengths), torch.arange(80, device=trunk.device).view(40, 2) % 2
    with torch.no_grad(), without_dropout(trunk):
        whole = _run_packed(trunk, rows, layout)
        layers = layout.layers
        setattr(trunk, READS, True)
        ends = layout.at(lengths.new_tensor([0, 39]), lengths.new_tensor([0, 1]))  # the latter attends to one not read
        some = _run_packed(trunk, rows, layout, ends)
    setattr(trunk, READS, torch.allclose(some[ends], whole[ends], rtol=1e-3, atol=1e-3))
    return layers == trunk.config.num_hidden_layers


def trunk_of(model: Any) -> Any:
    """A causal LM's transformer, from tokens to hidden states; of a composite model (Gemma 3's) the part for text."""
    trunk = model.base_model
    if trunk is model:  # Llama 4 names another attribute
        trunk = getattr(model, "model", model)
    config = trunk.config
    return trunk if config.get_text_config(decoder=True) is config else trunk.get_decoder()


@contextmanager
def without_dropout(trunk: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; then the previous mode of each module."""
    training = [module for module in trunk.modules() if module.training]
    trunk.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _run_packed(trunk: Any, rows: Tensor, layout: RowLayout, reads: Tensor | None = None) -> Tensor:
    """Packed hidden states ``[N, D]``; valid at ``reads [R]`` only, unless it is None."""
    tokens = rows[:, : layout.width].reshape(-1).index_select(0, layout.places)[None]
    # A 4-D mask, which transformers passes on unchanged and this attention ignores.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.device)
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": layout.positions()[None], LAYOUT: layout}
    with _recomputing(trunk), _last_mlp_where_read(trunk, layout, reads):
        return trunk(**inputs, use_cache=False).last_hidden_state[0]


@contextmanager
def _last_mlp_where_read(trunk: nn.Module, layout: RowLayout, reads: Tensor | None) -> Iterator[None]:
    """Compute the last layer's MLP, whose output no later layer uses, only where it is read; 0 elsewhere."""
    layers = layers_of(trunk)
    # A checkpointed layer is recomputed in the backward pass, outside of this context.
    mlp = getattr(layers[-1], "mlp", None) if layers and not hasattr(layers[-1], RECOMPUTED) else None
    needed = None
    if reads is not None and getattr(trunk, READS, False) and isinstance(mlp, nn.Module) and "forward" not in vars(mlp):
        needed = layout.padded_reads(reads)
    if needed is None:
        yield
        return
    assert mlp is not None
    forward = mlp.forward

    def at_needed(hidden: Tensor) -> Tensor:
        out: Tensor = forward(hidden.index_select(1, needed))
        return out.new_zeros(hidden.shape).index_copy(1, needed, out)

    mlp.forward = at_needed
    try:
        yield
    finally:
        del mlp.forward


def _in_parts(trunk: Any, rows: Tensor, lengths: Tensor, row: Tensor, position: Tensor) -> Tensor:
    order, parts = length_parts(lengths)
    if torch.is_grad_enabled() and isinstance(trunk, FSDPModule):  # all processes make equally many passes
        parts = [(0, len(lengths), int(lengths.max()))]
    starts = torch.empty_like(lengths)
    flat, offset = [], 0
    for begin, end, width in parts:
        index = order[begin:end]
        hidden = trunk_forward(trunk, rows[index, :width].clamp(min=0))
        starts[index] = offset + width * torch.arange(end - begin, device=lengths.device)
        flat.append(hidden.flatten(0, 1))
        offset += width * (end - begin)
    joined = flat[0] if len(flat) == 1 else torch.cat(flat)
    return joined.index_select(0, starts[row] + position)


def length_parts(lengths: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Group rows of similar length such that padding plus passes cost least (dynamic programming over lengths).

    Returns:
        ``order [B]``, the rows by length, and ``(begin, end, width)`` of each part in that order.
    """
    order = lengths.argsort(stable=True)
    ranked = lengths[order].tolist()
    borders = [i for i in range(1, len(ranked)) if ranked[i] != ranked[i - 1]] + [len(ranked)]
    cost, came_from, overhead = [0.0], [0], sizes(lengths.device).pass_overhead
    for j, end in enumerate(borders):
        begins = [0, *borders[:j]]
        options = [cost[i] + (end - begin) * ranked[end - 1] + overhead for i, begin in enumerate(begins)]
        best = min(range(len(options)), key=options.__getitem__)
        cost.append(options[best])
        came_from.append(best)
    parts, j = [], len(borders)
    while j > 0:
        i, end = came_from[j], borders[j - 1]
        parts.append((borders[i - 1] if i > 0 else 0, end, max(1, ranked[end - 1])))
        j = i
    return order, parts[::-1]


def trunk_forward(trunk: nn.Module, tokens: Tensor | None = None, **inputs: Tensor) -> Tensor:
    """Last hidden states ``[B, W, D]`` of right-padded rows ``[B, W]``, whose padding is arbitrary, or of ``inputs``.

    Without gradients a few rows run at a time.
    """
    if tokens is not None:
        at_once = max(1, sizes(tokens.device).prefill_tokens // tokens.shape[1])
        if len(tokens) > at_once and not torch.is_grad_enabled():
            return torch.cat([trunk_forward(trunk, part) for part in tokens.split(at_once)])
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with _recomputing(trunk):
        return getattr(trunk, COMPILED, trunk)(**inputs, use_cache=False).last_hidden_state


def compile_trunk(trunk: nn.Module) -> None:
    """Let ``trunk_forward`` run ``trunk`` through torch.compile, for any number and length of rows.

    Cached decoding is not compiled: its shapes change with every token. The first passes take tens of seconds.
    """
    setattr(trunk, COMPILED, _Compiled(trunk))


class _Compiled:
    """A compiled forward pass, which a deep copy compiles again, with its own weights."""

    def __init__(self, trunk: nn.Module) -> None:
        self.trunk = trunk
        self.forward = torch.compile(trunk.forward, dynamic=True)

    def __call__(self, **inputs: Any) -> Any:
        return self.forward(**inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Compiled:
        return _Compiled(copy.deepcopy(self.trunk, memo))


def recompute_layers(
    trunk: nn.Module, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> list[GradientCheckpointingLayer]:
    """Activation checkpointing: ``trunk_forward`` keeps each layer's input only and recomputes the rest backward.

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174).

    ``around`` is called in each layer's forward pass and returns a context for its recomputation (to activate the same
    adapter, for instance). Returns the layers.

    Raises:
        ValueError: if transformers does not support it for this model.
    """
    layers = layers_of(trunk)
    if not layers:
        raise ValueError(f"expected layers that support gradient checkpointing, {type(trunk).__name__} has none")

    def context() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), around()

    for layer in layers:
        run = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=context)
        setattr(layer, RECOMPUTED, run)
    return layers


@contextmanager
def _recomputing(trunk: nn.Module) -> Iterator[None]:
    """Recompute layers while a graph is built. transformers does so in training mode only, which enables dropout."""
    layers = [layer for layer in layers_of(trunk) if hasattr(layer, RECOMPUTED)] if torch.is_grad_enabled() else []
    for layer in layers:
        layer.forward = getattr(layer, RECOMPUTED)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def layers_of(trunk: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of ``trunk`` that can be told apart, from the first to the last."""
    return [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]


def pack_rows(prompts: Tensor, completions: Tensor) -> Tensor:
    """``[B, W]`` prompts and completions concatenated, right-padded with PAD to the longest row."""
    joint = torch.cat([prompts, completions], dim=1)
    real = joint != PAD
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
    return joint.gather(1, order)[:, : int(real.sum(1).max())]
