"""Attention over packed rows without padding, in float32 on CPUs, registered with transformers as ``textenvs``.

Concatenated rows, ``[1, N]`` tokens, pass through every layer without padding; only here they are unpacked to
``[B, W]``, so that rows do not attend to each other, and packed again. For padded float32 rows it equals torch's scaled
dot-product attention bit for bit. On a CPU bfloat16 and float16 are computed in float32, which is several times as fast
with one query per row, and rounded once. On a CUDA device in half precision rows stay packed (``textenvs.lm.varlen``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from textenvs.lm.linear_kernels import HALF, padded_rows
from textenvs.lm.varlen import varlen_attention

SDPA, OURS = "sdpa", "textenvs"
"""``attn_implementation`` of torch's attention, and of this one."""
LAYOUT = "row_layout"
"""Keyword by which a model's forward pass hands a `RowLayout` to its attention."""
WORTH_LEAVING_OUT = 0.95
"""Share of a layer's tokens above which none are skipped."""


def use_packed_attention(model: PreTrainedModel) -> Callable[[], None]:
    """Let ``model`` use this attention if it uses torch's. Saved configurations do not name it.

    Returns:
        A function that restores the attention.
    """
    if model.config._attn_implementation != SDPA:
        return lambda: None
    AttentionInterface.register(OURS, _attention)
    AttentionMaskInterface.register(OURS, sdpa_mask)
    model.set_attn_implementation(OURS)
    return lambda: model.set_attn_implementation(SDPA)


def has_full_attention(config: PretrainedConfig) -> bool:
    """True if every layer of this configuration attends to all earlier positions (none has a sliding window)."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return getattr(config, "sliding_window", None) is None
    return set(layer_types) == {"full_attention"}


class SharedPrefixes(NamedTuple):
    """Which rows share a prefix, e.g. texts of one prompt."""

    group: Tensor
    """``[B]`` int64; rows with the same number share a prefix."""
    lengths: Tensor
    """``[B]`` tokens of the prefix, equal within a group."""


class RowLayout:
    """Positions of the tokens of ``[B, W]`` right-padded rows in the packed (concatenated) rows.

    ``lengths [B]`` are tokens of each row, each at least 1. A shared prefix is packed once: in a causal model its
    states do not depend on what follows. A few unused tokens at the end round the number of tokens up to one for which
    products are fast (`padded_rows`).

    Attributes:
        rows, width: B, and the longest row, W.
        real: packed tokens without those at the end, n.
        places: ``[N]``, index in the flat ``[B x W]`` of each packed token; 0 at the end.
        sources: ``[B x W]`` the inverse; token 0 at padding, to which no valid position attends. None: the identity.
        twins: ``[M]`` places of prefix tokens that are packed with another row, or None.
        bounds: ``[B + 1]`` int32, where rows begin in the packed ones, and where the last one ends; None with twins.
        layers: number of attention layers that used this layout.
    """

    def __init__(self, lengths: Tensor, prefixes: SharedPrefixes | None = None) -> None:
        self.rows, self.width = len(lengths), int(lengths.max())
        steps = torch.arange(self.width, device=lengths.device)
        real = own = steps < lengths[:, None]
        if prefixes is not None:
            first = _first_row(prefixes.group)
            common = torch.minimum(torch.minimum(prefixes.lengths, lengths), lengths[first])
            first_itself = first == torch.arange(self.rows, device=lengths.device)
            own = real & ((steps >= common[:, None]) | first_itself[:, None])
            if int(own.sum()) > WORTH_LEAVING_OUT * int(real.sum()):
                own = real
        self.real = int(own.sum())
        more = padded_rows(self.real) - self.real
        self.places = pad(own.flatten().nonzero()[:, 0], (0, more))
        self.sources = self.twins = None
        if more or self.real < real.numel():
            numbers = (own.flatten().cumsum(0) - 1).view(real.shape)
            if own is not real:
                self.twins = (real & ~own).flatten().nonzero()[:, 0]
                numbers = torch.where(own, numbers, numbers[first])
            self.sources = torch.where(real, numbers, 0).flatten()
        whole = pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        self.bounds = whole if self.twins is None else None
        self.layers = 0

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        """``[R]`` packed indices of ``position [R]`` of ``row [R]``."""
        places = row * self.width + position
        return places if self.sources is None else self.sources[places]

    def positions(self) -> Tensor:
        """``[N]`` position of each packed token in its row."""
        return self.places % self.width

    def padded_reads(self, reads: Tensor) -> Tensor | None:
        """``[M]`` distinct packed tokens, ``reads [R]`` and some more (see `padded_rows`); None: nearly all."""
        read = torch.zeros(len(self.places), dtype=torch.uint8, device=self.places.device)
        read[reads] = 1
        number = padded_rows(int(read.sum()))
        nearly_all = number > WORTH_LEAVING_OUT * len(read)
        return None if nearly_all else read.argsort(descending=True, stable=True)[:number]

    def spread(self, packed: Tensor) -> Tensor:
        """``[1, H, N, D]`` packed to ``[B, H, W, D]`` rows."""
        rows = packed.squeeze(0).transpose(0, 1)
        if self.sources is not None:
            rows = _Spread.apply(rows, self.sources, self.places[: self.real], self.twins)  # type: ignore[no-untyped-call]
        return rows.unflatten(0, (self.rows, self.width)).transpose(1, 2)

    def pack(self, rows: Tensor) -> Tensor:
        """``[B, W, H, D]`` rows to ``[1, N, H, D]`` packed."""
        flat = rows.flatten(0, 1)
        return (flat if self.sources is None else flat.index_select(0, self.places))[None]


def _first_row(group: Tensor) -> Tensor:
    """``[B]`` the first row of each row's group."""
    group = group.unique(return_inverse=True)[1]
    rows = torch.arange(len(group), device=group.device)
    return torch.full_like(group, len(group)).scatter_reduce(0, group, rows, "amin")[group]


class _Spread(torch.autograd.Function):
    """Unpack rows; backward a gather, plus sums over twins. Gradients of padding are ignored."""

    @staticmethod
    def forward(ctx, packed: Tensor, sources: Tensor, places: Tensor, twins: Tensor | None):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(places, twins, None if twins is None else sources[twins])
        ctx.tokens = len(packed)
        return packed.index_select(0, sources)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        places, twins, sources = ctx.saved_tensors
        of_packed = grad.new_empty(ctx.tokens, *grad.shape[1:])
        of_packed[len(places) :] = 0
        torch.index_select(grad, 0, places, out=of_packed[: len(places)])
        if twins is not None:
            of_packed.index_add_(0, sources, grad.index_select(0, twins))
        return of_packed, None, None, None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    layout: RowLayout | None = options.pop(LAYOUT, None)
    if layout is None:
        return _in_float32(module, query, key, value, attention_mask, **options), None
    layout.layers += getattr(module, "is_causal", True)  # a bidirectional layer cannot be packed
    if layout.bounds is not None:
        found = varlen_attention(query, key, value, layout.bounds, layout.width, real=layout.real, **options)
        if found is not None:
            return found, None
    query, key, value = (layout.spread(part) for part in (query, key, value))
    return layout.pack(_in_float32(module, query, key, value, None, is_causal=True, **options)), None


def _in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    """``[B, W, H, D]``; computed in float32 instead of half precision on a CPU."""
    if query.device.type != "cpu" or query.dtype not in HALF:
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast("cpu", enabled=False):
        out = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)[0]
    return out.to(query.dtype)
