"""Attention of a transformers model that may be given rows of any length without padding, and is exact in half types.

Registered with transformers beside its own as ``textenvs``; where rows are padded as usual and the type is float32, it
is torch's scaled dot-product attention, bit for bit.

- Rows packed one behind the other, ``[1, N]`` tokens, go through every layer without padding; only here, where rows
  must not see one another, they are laid out as ``[B, W]`` and packed again.
- What would run in bfloat16 or float16 on a CPU runs in float32, which is several times as fast where there is one
  query a row, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from textenvs.lm.linear_kernels import HALF, padded_rows

SDPA, OURS = "sdpa", "textenvs"
"""torch's attention, and ours around it, as transformers' ``attn_implementation`` calls them."""
LAYOUT = "row_layout"
"""Keyword under which a model's forward pass takes a `RowLayout` to its attention."""

WORTH_LEAVING_OUT = 0.95
"""Share of a layer's tokens from which on none are left out."""


def attend(model: Any) -> Callable[[], None]:
    """Let ``model`` use this attention, if it uses torch's; others are left alone. What is saved does not name it.

    Returns:
        What undoes it.
    """
    if model.config._attn_implementation != SDPA:
        return lambda: None
    AttentionInterface.register(OURS, _attention)
    AttentionMaskInterface.register(OURS, sdpa_mask)
    model.set_attn_implementation(OURS)
    return lambda: model.set_attn_implementation(SDPA)


def attends_to_everything(config: Any) -> bool:
    """Whether all layers of a model with this configuration see every earlier position (none has a sliding window)."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is None
    return set(kinds) == {"full_attention"}


class Beginnings(NamedTuple):
    """Which rows begin alike; texts of one prompt, for instance."""

    which: Tensor
    """``[B]`` int64; rows with the same number begin alike."""
    lengths: Tensor
    """``[B]`` with so many tokens, the same for rows with the same number."""


class RowLayout:
    """Where the tokens of ``[B, W]`` right-padded rows are when the rows are packed, one behind the other.

    What several rows begin with is there once: in a causal model they all see the same in it, and it sees none of them.
    A few tokens behind the last row, which no row sees and nobody reads, make their number one that products like.

    Args:
        lengths: ``[B]`` tokens of each row, each at least 1.
        beginnings: of rows that begin alike; None: every row is there whole.

    Attributes:
        rows: B.
        width: the longest row, W.
        real: tokens that are there, n.
        places: ``[N]``, of each packed token its place in the flat ``[B x W]``; behind the last row 0.
        sources: ``[B x W]`` the inverse; padding has token 0, which no real position of its row ever sees. None: rows
            are whole and of one length, so that both are the same.
        twins: ``[M]`` places of tokens that are there as another row's, or None.
        layers: attention layers that were run by this layout.
    """

    def __init__(self, lengths: Tensor, beginnings: Beginnings | None = None) -> None:
        self.rows, self.width = len(lengths), int(lengths.max())
        steps = torch.arange(self.width, device=lengths.device)
        real = own = steps < lengths[:, None]
        if beginnings is not None:
            first = _first_of(beginnings.which)
            common = torch.minimum(torch.minimum(beginnings.lengths, lengths), lengths[first])
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
        self.layers = 0

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        """``[R]`` packed tokens that stand at ``position [R]`` of ``row [R]``."""
        places = row * self.width + position
        return places if self.sources is None else self.sources[places]

    def positions(self) -> Tensor:
        """``[N]`` of each packed token, how many stand before it in its row."""
        return self.places % self.width

    def with_some_more(self, reads: Tensor) -> Tensor | None:
        """``[M]`` different packed tokens, ``reads [R]`` among them, a number that products like; None: nearly all."""
        read = torch.zeros(len(self.places), dtype=torch.uint8, device=self.places.device)
        read[reads] = 1
        number = padded_rows(int(read.sum()))
        if number > WORTH_LEAVING_OUT * len(read):
            return None
        return read.argsort(descending=True, stable=True)[:number]

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


def _first_of(which: Tensor) -> Tensor:
    """``[B]`` the first row with each row's number."""
    which = which.unique(return_inverse=True)[1]
    rows = torch.arange(len(which), device=which.device)
    return torch.full_like(which, len(which)).scatter_reduce(0, which, rows, "amin")[which]


class _Spread(torch.autograd.Function):
    """Rows out of packed tokens; backward a gather, and sums over twins. What befalls padding concerns nothing real."""

    @staticmethod
    def forward(ctx, packed: Tensor, sources: Tensor, places: Tensor, twins: Tensor | None):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(places, twins, None if twins is None else sources[twins])
        ctx.tokens = len(packed)
        return packed.index_select(0, sources)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
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
    layout.layers += getattr(module, "is_causal", True)  # one that sees what comes is none that packs
    query, key, value = (layout.spread(part) for part in (query, key, value))
    return layout.pack(_in_float32(module, query, key, value, None, is_causal=True, **options)), None


def _in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    """``[B, W, H, D]``; in float32 if it would be in a half type on a CPU."""
    if query.device.type != "cpu" or query.dtype not in HALF:
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]  # type: ignore[no-any-return]
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast("cpu", enabled=False):
        out = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)[0]
    return out.to(query.dtype)
