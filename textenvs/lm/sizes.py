"""How much is computed at once, by device: a CPU's caches are small, a GPU waits for its host.

Whatever branches on the kind of device reads it here, so that a test on a CPU can put a GPU's sizes in place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Sizes(NamedTuple):
    """Sizes for one kind of device."""

    pass_tokens: int
    """Tokens in one pass without gradients: enough for fast products, few enough for activations."""
    prefill_tokens: int
    """Tokens of prompts, padding included, in one pass, or those of one prompt."""
    logits: int
    """Entries of a logits array above which it is computed in pieces and recomputed backward."""
    part_logits: int
    """Entries of it that are processed together after the product."""
    product_rows: int
    """Rows of one product with the output layer: each reads the whole weight."""
    pass_overhead: int
    """Cost of one more forward pass, in positions (CPU: measured, 4 layers of width 192; GPU: an estimate)."""
    tokens_between_reads: int
    """Decoding steps between two times that the host waits for the device, to see which rows are finished."""
    static_cache: bool
    """Whether decoding keeps its shapes, so that a CUDA graph can repeat a step."""
    compact_at: float
    """Share of finished rows at which decoding removes them and waiting prompts join."""


CPU = Sizes(2**10, 2**15, 2**24, 2**19, 128, 32, 1, False, 1 / 16)
GPU = Sizes(2**16, 2**16, 2**26, 2**24, 2**16, 2**13, 32, True, 1 / 2)
"""Logits: 128 MB of bfloat16, 441 rows of 152k tokens; from some 300 rows on a product is bound by arithmetic. Every
number of rows has a CUDA graph of its own, so rows leave by halves. None was measured yet: see `scripts.gpu_check`."""


def sizes(device: torch.device) -> Sizes:
    """The sizes for ``device``; meta counts as a GPU."""
    return CPU if device.type == "cpu" else GPU
