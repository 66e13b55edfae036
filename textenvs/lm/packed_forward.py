"""One pass of a transformer's trunk over ragged rows: packing, parts of like length, recomputation of activations.

No head, no distribution and no adapter is known here: see ``agents.lm.causal_lm``, ``agents.lm.lora`` and
``reward_models.model``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from textenvs.lm.length_parts import length_parts
from textenvs.lm.packed_attention import LAYOUT, OURS, Beginnings, RowLayout, attends_to_everything
from textenvs.tokens.rows import PAD

COMPILED = "compiled_forward"
"""Attribute of a trunk that holds its compiled forward pass."""
PACKS = "takes_packed_rows"
"""Attribute of a trunk that says whether it does, once that was tried."""
READS = "last_mlp_is_by_position"
"""Attribute of a trunk that says whether its last layer's MLP may be left out where nothing is read, once tried."""
TOKENS_AT_ONCE = 2**10
"""Of whole rows that a CPU takes through the trunk together, where no graph is built: enough for its products, and what
a layer writes is still in the cache when the next one reads it."""


def hidden_states(
    trunk: Any, rows: Tensor, lengths: Tensor, row: Tensor, position: Tensor, *, beginnings: Beginnings | None = None
) -> Tensor:
    """Run ``trunk`` over right-padded ``rows [B, W]`` of ``lengths [B]``, each at least 1, and read some states.

    Rows go one behind the other through every layer, so that nothing is computed for padding, what several begin with
    once, and the last layer's MLP only where it is read; with a model that cannot, like lengths go together, cut to the
    longest. Without gradients a CPU takes a few rows at a time.

    Args:
        trunk: a transformers model.
        rows: token ids; what is behind a row's length does not matter.
        lengths: tokens of each row.
        row, position: ``[N]`` each, of the tokens whose last hidden state is asked for.
        beginnings: which rows begin alike, as the caller knows; None: each is computed whole.

    Returns:
        ``[N, D]``.
    """
    if not can_pack(trunk):
        return _in_parts(trunk, rows, lengths, row, position)
    if torch.is_grad_enabled() or trunk.device.type != "cpu":
        return _packed_states(trunk, rows, RowLayout(lengths, beginnings), row, position)
    states, inside = [], []
    for begin, end in _few_tokens(lengths):
        alike = None if beginnings is None else Beginnings(*(numbers[begin:end] for numbers in beginnings))
        layout, read = RowLayout(lengths[begin:end], alike), ((row >= begin) & (row < end)).nonzero()[:, 0]
        states.append(_packed_states(trunk, rows[begin:end], layout, row[read] - begin, position[read]))
        inside.append(read)
    return torch.cat(states).index_select(0, torch.cat(inside).argsort())


def _packed_states(trunk: Any, rows: Tensor, layout: RowLayout, row: Tensor, position: Tensor) -> Tensor:
    reads = layout.at(row, position)
    states = _run_packed(trunk, rows, layout, reads)
    if layout.layers != trunk.config.num_hidden_layers:
        raise RuntimeError(
            f"expected {trunk.config.num_hidden_layers} attention layers that keep rows apart, received "
            f"{layout.layers}: the model was changed below its configuration"
        )
    return states.index_select(0, reads)


def _few_tokens(lengths: Tensor) -> Iterator[tuple[int, int]]:
    """First row and end of parts of at most `TOKENS_AT_ONCE` tokens, or of one row."""
    begin = tokens = 0
    for row, length in enumerate(lengths.tolist()):
        if row > begin and tokens + length > TOKENS_AT_ONCE:
            yield begin, row
            begin, tokens = row, 0
        tokens += length
    yield begin, len(lengths)


def can_pack(trunk: Any) -> bool:
    """Whether ``trunk`` takes rows without padding: every attention layer is ours, sees all, and is told the layout.

    Which attention it has is asked at every pass, since ``set_attn_implementation`` may change it; the rest is tried
    once.
    """
    if not isinstance(trunk, PreTrainedModel) or hasattr(trunk, COMPILED) or trunk.device.type == "meta":
        return False
    if trunk.config._attn_implementation != OURS:
        return False
    if not hasattr(trunk, PACKS):
        setattr(trunk, PACKS, _tells_every_layer(trunk))
    return bool(getattr(trunk, PACKS))


def _tells_every_layer(trunk: Any) -> bool:
    takes = inspect.signature(trunk.forward).parameters
    if (
        not attends_to_everything(trunk.config)
        or "position_ids" not in takes
        or all(parameter.kind != inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    ):
        return False
    lengths = torch.tensor([1, 2] * 20, device=trunk.device)
    layout, rows = RowLayout(lengths), torch.arange(80, device=trunk.device).view(40, 2) % 2
    with torch.no_grad(), without_dropout(trunk):
        whole = _run_packed(trunk, rows, layout)
        told = layout.layers
        setattr(trunk, READS, True)
        ends = layout.at(lengths.new_tensor([0, 39]), lengths.new_tensor([0, 0]))
        some = _run_packed(trunk, rows, layout, ends)
    setattr(trunk, READS, torch.allclose(some[ends], whole[ends], rtol=1e-3, atol=1e-3))
    return told == trunk.config.num_hidden_layers


@contextmanager
def without_dropout(trunk: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; what was in training mode is so again after it."""
    training = [module for module in trunk.modules() if module.training]
    trunk.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _run_packed(trunk: Any, rows: Tensor, layout: RowLayout, reads: Tensor | None = None) -> Tensor:
    """Hidden states ``[N, D]``, one row behind the other; right where ``reads [R]`` points only, unless it is None."""
    tokens = rows[:, : layout.width].reshape(-1).index_select(0, layout.places)[None]
    # Four dimensions: a mask that is finished already, which transformers hands on; our attention has no need of it.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.device)
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": layout.positions()[None], LAYOUT: layout}
    with _recomputing(trunk), _last_mlp_where_read(trunk, layout, reads):
        hidden: Tensor = trunk(**inputs, use_cache=False).last_hidden_state[0]
    return hidden


@contextmanager
def _last_mlp_where_read(trunk: nn.Module, layout: RowLayout, reads: Tensor | None) -> Iterator[None]:
    """The last layer's MLP, whose output no later layer sees, is computed where it is read; elsewhere it is 0."""
    layers = _layers(trunk)
    # A layer that is recomputed is so in the backward pass, when this is over.
    mlp = getattr(layers[-1], "mlp", None) if layers and not layers[-1].gradient_checkpointing else None
    needed = None
    if reads is not None and getattr(trunk, READS, False) and isinstance(mlp, nn.Module) and "forward" not in vars(mlp):
        needed = layout.with_some_more(reads)
    if needed is None:
        yield
        return
    assert mlp is not None
    forward = mlp.forward

    def at_needed(hidden: Tensor) -> Tensor:
        out: Tensor = forward(hidden.index_select(1, needed))
        return out.new_zeros(hidden.shape).index_copy(1, needed, out)

    mlp.forward = at_needed  # type: ignore[method-assign]
    try:
        yield
    finally:
        del mlp.forward


def _in_parts(trunk: Any, rows: Tensor, lengths: Tensor, row: Tensor, position: Tensor) -> Tensor:
    order, parts = length_parts(lengths)
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


def trunk_forward(trunk: Any, tokens: Tensor) -> Tensor:
    """Last hidden states ``[B, W, D]`` of packed rows ``[B, W]``; what lies right of a row's end does not matter."""
    with _recomputing(trunk):
        run = getattr(trunk, COMPILED, trunk)
        out = run(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


def compile_trunk(trunk: nn.Module) -> None:
    """Let ``trunk_forward`` run ``trunk`` through torch.compile, for any number and length of rows.

    Cached decoding goes on as before: a step of it is new to the compiler at every token. A deep copy is compiled anew,
    with weights of its own. The first passes take tens of seconds.
    """
    setattr(trunk, COMPILED, _Compiled(trunk))


class _Compiled:
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
    """Let ``trunk_forward`` keep each layer's input only; the rest is computed again in the backward pass.

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174).

    Args:
        trunk: a transformers model.
        around: called in each layer's forward pass; what it returns is entered when that layer is computed again (the
            adapters that were on, say: in the backward pass others may be).

    Returns:
        The layers.

    Raises:
        ValueError: if transformers cannot recompute this model.
    """
    layers = _layers(trunk)
    if not layers:
        raise ValueError(f"{type(trunk).__name__} has no layers to recompute: leave gradient checkpointing off")

    def context() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), around()

    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=context)  # type: ignore[assignment]
    return layers


@contextmanager
def _recomputing(trunk: nn.Module) -> Iterator[None]:
    """transformers recomputes in training mode only, where it also drops caches and turns dropout on; so it is on for
    the layers' own flag alone, and only while a graph is built."""
    layers = [layer for layer in _layers(trunk) if layer.gradient_checkpointing] if torch.is_grad_enabled() else []
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def _layers(trunk: nn.Module) -> list[GradientCheckpointingLayer]:
    return [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]


def pack_rows(prompts: Tensor, completions: Tensor) -> Tensor:
    """``[B, W]`` prompt and completion without a hole between them, right-padded with PAD, as wide as the longest."""
    joint = torch.cat([prompts, completions], dim=1)
    real = joint != PAD
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
    return joint.gather(1, order)[:, : int(real.sum(1).max())]
