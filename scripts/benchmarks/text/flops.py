"""Floating-point operations that an update of a GPT-2 needs, and how fast this machine multiplies matrices.

A product of ``[m, k]`` and ``[k, n]`` is ``2 m k n`` operations. Only matrix products count: norms, activations,
softmaxes and the optimizer are left out, so a time divided by this minimum can only look worse than it is. Nothing
that we avoid counts either: no padding, no token read twice, no logits but those of response tokens, nor the last
layer's feed-forward part where it is not read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

Shape = tuple[int, int, int]
"""``(m, k, n)`` of a product."""


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """GPT-2's shape."""

    layers: int
    width: int  # hidden size
    vocabulary: int

    @property
    def weights(self) -> int:
        """Entries of the blocks' matrices: 4 D^2 of attention and 8 D^2 of the feed-forward part, a block."""
        return 12 * self.layers * self.width**2


def causal_pairs(tokens: int) -> int:
    """(token, token at or before it) of a row: those that causal attention has to look at."""
    return tokens * (tokens + 1) // 2


def forward_flops(model: Transformer, *, tokens: int, pairs: int, predictions: int, read: int | None = None) -> int:
    """Operations of one forward pass.

        2 weights tokens - 16 width^2 (tokens - read) + 4 layers width pairs + 2 width vocabulary predictions

    ``tokens`` are positions that the blocks process, ``pairs`` of them attend to one another (a score and a weighted
    sum each); of ``predictions`` the logits are needed, of those ``read`` (None: all) the last hidden state.
    """
    unread = 0 if read is None else tokens - read
    blocks = 2 * model.weights * tokens - 2 * 8 * model.width**2 * unread
    attention = 4 * model.layers * model.width * pairs
    return blocks + attention + 2 * model.width * model.vocabulary * predictions


def update_flops(
    model: Transformer, *, prompts: Iterable[int], responses: Iterable[int], epochs: int
) -> dict[str, int]:
    """Operations of a PPO update whose critic shares the policy's trunk, by part and in ``total``.

    Writing and the reference read every token but the last, and predict the response; the reward model reads every
    token; each epoch is a forward pass like the reference's and a backward pass of twice its operations. All models are
    like ``model``; ``prompts`` and ``responses`` are tokens of each row.
    """
    rows = list(zip(prompts, responses, strict=True))
    lengths = [prompt + response for prompt, response in rows]
    predictions = sum(response for _, response in rows)
    pairs = sum(map(causal_pairs, lengths))
    whole = forward_flops(model, tokens=sum(lengths), pairs=pairs, predictions=0, read=len(rows))
    pairs = sum(causal_pairs(length - 1) for length in lengths)
    tokens = sum(lengths) - len(rows)
    judged = forward_flops(model, tokens=tokens, pairs=pairs, predictions=predictions, read=predictions)
    parts = {"write": judged, "reference": judged, "reward_model": whole, "update": 3 * epochs * judged}
    return parts | {"total": sum(parts.values())}


def update_shapes(model: Transformer, *, rows: int, tokens: int, predictions: int) -> list[Shape]:
    """The products of a minibatch of ``rows`` in training, and of the same number of rows a token in writing."""
    width, wide = model.width, 4 * model.width
    blocks = [(width, 3 * width), (width, width), (width, wide), (wide, width)]
    forward = [(m, *block) for m in (tokens, rows) for block in blocks]
    backward = [(tokens, n, k) for k, n in blocks] + [(k, tokens, n) for k, n in blocks]
    head = [(predictions, width, model.vocabulary), (predictions, model.vocabulary, width)]
    return list(dict.fromkeys([*forward, *backward, *head, (width, predictions, model.vocabulary)]))


def fastest_rate(shapes: Iterable[Shape]) -> float:
    """Operations a second of the fastest of these products, by torch's own choice of kernel or by oneDNN's."""
    return max(matmul_rate(shape, multiply) for shape in shapes for multiply in (torch.mm, _by_onednn))


def _by_onednn(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(one, other.t(), None, "none", [], "")


def matmul_rate(
    shape: Shape,
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    repeats: int = 5,
    flops: float = 4e8,
) -> float:
    """Operations a second of one product, median over ``repeats`` of about ``flops`` operations each."""
    m, k, n = shape
    one, other = torch.randn(m, k), torch.randn(k, n)
    work = 2 * m * k * n
    count = max(1, round(flops / work))
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for _ in range(count):
            multiply(one, other)
        rates.append(count * work / (time.perf_counter() - began))
    return statistics.median(rates[1:])
