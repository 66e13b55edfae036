"""Attention of a transformers model that may be given rows of any length without padding, and is exact in half types.

Registered with transformers beside its own as ``textenvs``; where rows are padded as usual and the type is float32, it
is torch's scaled dot-product attention, bit for bit.

- Rows packed one behind the other, ``[1, N]`` tokens, go through every layer without padding; only here, where rows
  must not see one another, they are laid out as ``[B, W]`` and packed again.
- What would run in bfloat16 or float16 on a CPU runs in float32, which is several times as fast where there is one
  query a row, and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from textenvs.kernels import HALF

SDPA, OURS = "sdpa", "textenvs"
"""torch's attention, and ours around it, as transformers' ``attn_implementation`` calls them."""
LAYOUT = "row_layout"
"""Keyword under which a model's forward pass takes a `RowLayout` to its attention."""


def attend(model: Any) -> None:
    """Let ``model`` use this attention, if it uses torch's; others are left alone. What is saved does not name it."""
    if model.config._attn_implementation == SDPA:
        AttentionInterface.register(OURS, _attention)
        AttentionMaskInterface.register(OURS, sdpa_mask)
        model.set_attn_implementation(OURS)


def attends_to_everything(config: Any) -> bool:
    """Whether all layers of a model with this configuration see every earlier position (none has a sliding window)."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is None
    return set(kinds) == {"full_attention"}


class RowLayout:
    """Where the tokens of ``[B, W]`` right-padded rows are when the rows are packed, one behind the other.

    Args:
        lengths: ``[B]`` tokens of each row, each at least 1.

    Attributes:
        starts: ``[B]`` where each row begins, packed.
        width: the longest row, W.
        places: ``[N]``, of each packed token its place in the flat ``[B x W]``.
        sources: ``[B x W]`` the inverse; padding has token 0, which no real position of its row ever sees.
        layers: attention layers that were run by this layout.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.starts = lengths.cumsum(0) - lengths
        self.width = int(lengths.max())
        steps = torch.arange(self.width, device=lengths.device)
        real = steps < lengths[:, None]
        self.places = real.flatten().nonzero()[:, 0]
        self.sources = torch.where(real, self.starts[:, None] + steps, 0).flatten()
        self.layers = 0

    def positions(self) -> Tensor:
        """``[N]`` of each packed token, how many stand before it in its row."""
        return self.places % self.width

    def spread(self, packed: Tensor) -> Tensor:
        """``[1, H, N, D]`` packed to ``[B, H, W, D]`` rows."""
        rows = _Spread.apply(packed[0].transpose(0, 1), self.sources, self.places)  # type: ignore[no-untyped-call]
        return rows.unflatten(0, (len(self.starts), self.width)).transpose(1, 2)  # type: ignore[no-any-return]

    def pack(self, rows: Tensor) -> Tensor:
        """``[B, W, H, D]`` rows to ``[1, N, H, D]`` packed."""
        return rows.flatten(0, 1).index_select(0, self.places)[None]


class _Spread(torch.autograd.Function):
    """Rows out of packed tokens; backward one gather, since what happens to padding concerns nothing real."""

    @staticmethod
    def forward(ctx, packed: Tensor, sources: Tensor, places: Tensor):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(places)
        return packed.index_select(0, sources)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    layout: RowLayout | None = options.pop(LAYOUT, None)
    if layout is None:
        return _in_float32(module, query, key, value, attention_mask, **options), None
    layout.layers += 1
    rows = [layout.spread(part) for part in (query, key, value)]
    out = _in_float32(module, rows[0], rows[1], rows[2], None, is_causal=True, **options)
    return layout.pack(out), None


def _in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    """``[B, W, H, D]``; in float32 if it would be in a half type on a CPU."""
    if query.device.type != "cpu" or query.dtype not in HALF:
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    if mask is not None and mask.is_floating_point():
        mask = mask.float()
    with torch.autocast("cpu", enabled=False):
        out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
    return out.to(query.dtype)
