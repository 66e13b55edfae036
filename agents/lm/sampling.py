"""The distribution over tokens that is sampled, logged and trained, from logits.

`TokenSampling` maps logits to a distribution (temperature, top-k, top-p, minimum length, allowed tokens);
`token_logprobs` computes log-probabilities and entropies and saves only one `[N, V]` array for the backward pass;
`sample_tokens` samples. `agents.lm.fused_logprobs` includes the output layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from textenvs.lm.sizes import sizes
from textenvs.tokens.end_tokens import EndOfText, end_tokens

LARGE, RANKED = 2**15, 2**10
"""From so many tokens on top-p ranks so many first, and all only if their probability does not reach it."""


@dataclass(frozen=True, kw_only=True)
class TokenSampling:
    """How next-token logits become the policy's distribution.

    Filters apply in the order of the fields. Top-k and top-p keep the token that was taken (see ``shape``), so a later
    policy gives it a finite log-probability; for the policy that sampled it this changes nothing.
    """

    temperature: float = 1.0
    """Logits are divided by it; > 0."""
    min_new_tokens: int = 0
    """Tokens before which the end-of-text token has probability 0."""
    allowed_tokens: tuple[int, ...] | None = None
    """Token ids that may be sampled; all others have probability 0. None: all may."""
    top_k: int | None = None
    """Only the k likeliest tokens are kept; None: all."""
    top_p: float = 1.0
    """The smallest set of likeliest tokens whose probability reaches it is kept; (0, 1]."""

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature: expected a finite number > 0, received {self.temperature}")
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens: expected 0 or more, received {self.min_new_tokens}")
        if self.allowed_tokens is not None and min(self.allowed_tokens, default=-1) < 0:
            raise ValueError(f"allowed_tokens: expected a token or more, each >= 0, received {self.allowed_tokens}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, or None, received {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], received {self.top_p}")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ValueError unless all allowed tokens are in the vocabulary."""
        largest = max(self.allowed_tokens or (0,))
        if largest >= vocab_size:
            raise ValueError(f"allowed_tokens: expected tokens in [0, {vocab_size}), received {largest}")

    @property
    def filters(self) -> bool:
        """True if tokens may get probability 0."""
        return self.min_new_tokens > 0 or self.allowed_tokens is not None or self.top_k is not None or self.top_p < 1.0

    def shape(
        self, logits: Tensor, steps: Tensor | int, eos_token_id: EndOfText, taken: Tensor | None = None
    ) -> Tensor:
        """Logits of the policy's distribution: float32, ``-inf`` where the probability is 0.

        Args:
            logits: ``[N, V]`` of the model.
            steps: ``[N]`` or one number, completion tokens so far.
            eos_token_id: the token, or tokens, that ``min_new_tokens`` forbids; None: there is none.
            taken: ``[N]`` tokens that top-k and top-p always keep.
        """
        logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if not self.filters:
            return logits
        if self.min_new_tokens > 0 or self.allowed_tokens is not None:
            forbidden, early = self._forbidden(logits, eos_token_id), steps < self.min_new_tokens
            logits = logits.masked_fill(forbidden[early.long() if isinstance(early, Tensor) else int(early)], -math.inf)
        if self.top_k is None and self.top_p >= 1.0:
            return logits
        with torch.no_grad():
            dropped = self._outside_top(logits)
            if taken is not None:
                dropped.scatter_(1, taken[:, None], False)
        return logits.masked_fill(dropped, -math.inf)

    @cached_property
    def _made(self) -> dict[tuple[object, ...], Tensor]:
        return {}

    def _forbidden(self, logits: Tensor, eos_token_id: EndOfText) -> Tensor:
        """``[2, V]`` bool, True on tokens of probability 0: from ``min_new_tokens`` on, and before; made once."""
        key = logits.shape[1], logits.device, eos_token_id
        if key not in self._made:
            forbidden = torch.zeros(2, logits.shape[1], dtype=torch.bool)
            if self.allowed_tokens is not None:
                forbidden[:] = True
                forbidden[:, list(self.allowed_tokens)] = False
            if self.min_new_tokens > 0:
                forbidden[1, list(end_tokens(eos_token_id))] = True
            if bool(forbidden.all(dim=-1).any()):
                raise ValueError(
                    "every token is forbidden: allowed_tokens has only the end-of-text token, before min_new_tokens"
                )
            self._made[key] = forbidden.to(logits.device)
        return self._made[key]

    def _outside_top(self, logits: Tensor) -> Tensor:
        """``[N, V]`` bool, True on tokens that top-k and then top-p drop; ties at the border of top-k are kept."""
        size = logits.shape[1]
        if self.top_k is not None and self.top_k < size:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -math.inf)
        outside = logits == -math.inf
        if self.top_p >= 1.0:
            return outside
        for count in (RANKED, size) if size >= LARGE else (size,):
            ranked, order = logits.topk(count) if count < size else logits.sort(dim=-1, descending=True)
            # The sum over all of a large vocabulary, so that the two ways agree.
            probabilities = ranked.softmax(dim=-1) if size < LARGE else (ranked - logits.logsumexp(-1, True)).exp()
            above = probabilities.cumsum(dim=-1) - probabilities
            if count == size or bool((above[:, -1] >= self.top_p).all()):
                break
        dropped = above >= self.top_p
        dropped[:, 0] = False
        return torch.ones_like(outside).scatter_(1, order, dropped) | outside


def read_off(logits: Tensor, tokens: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Fill ``probabilities [N, V]`` and return log-probability and entropy, ``[N]`` each; without gradient."""
    # Relative to the largest, for accuracy of nearly certain tokens; clamped, since 0 x -inf is NaN.
    below = (logits - logits.amax(-1, keepdim=True)).clamp_(min=torch.finfo(logits.dtype).min)
    torch.softmax(below, dim=-1, out=probabilities)
    largest = probabilities.amax(-1).log()
    chosen = below.gather(1, tokens[:, None])[:, 0] + largest
    return chosen, -largest - below.mul_(probabilities).sum(-1)


def parts_in_cache(logits: Tensor) -> Iterator[slice]:
    """Slices of a few rows of ``[N, V]``, so that one kernel's output is in the CPU cache when the next reads it."""
    step = max(1, sizes(logits.device).part_logits // logits.shape[1])
    return (slice(begin, begin + step) for begin in range(0, len(logits), step))


class _TokenLogprobs(torch.autograd.Function):
    """Gathered log-softmax and entropy; only the probabilities are saved for the backward pass.

    d logp(a) / d z = 1_a - p          d H / d z = -p (log p + H)
    """

    @staticmethod
    def forward(ctx, logits: Tensor, tokens: Tensor):  # type: ignore[no-untyped-def]
        probabilities = torch.empty_like(logits)
        chosen, entropy = logits.new_empty(len(tokens)), logits.new_empty(len(tokens))
        for part in parts_in_cache(logits):
            chosen[part], entropy[part] = read_off(logits[part], tokens[part], probabilities[part])
        ctx.save_for_backward(probabilities, tokens, entropy)
        ctx.set_materialize_grads(False)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_chosen: Tensor | None, grad_entropy: Tensor | None):  # type: ignore[no-untyped-def]
        probabilities, tokens, entropy = ctx.saved_tensors
        grad = None
        if grad_chosen is not None:
            grad = probabilities * -grad_chosen[:, None]
            grad.scatter_add_(-1, tokens[:, None], grad_chosen[:, None])
        if grad_entropy is not None:
            part = entropy_gradient(probabilities, entropy, grad_entropy)
            grad = part if grad is None else grad + part
        return grad, None


def entropy_gradient(probabilities: Tensor, entropy: Tensor, grad: Tensor) -> Tensor:
    """The gradient ``[N, V]`` with respect to the logits of a gradient ``[N]`` with respect to the entropy."""
    plogp: Tensor = torch.special.xlogy(probabilities, probabilities)
    return (plogp + probabilities * entropy[:, None]) * -grad[:, None]


def token_logprobs(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of one token and entropy of the distribution, per row.

    Args:
        logits: ``[N, V]`` float32 (or float64); ``-inf`` marks probability 0.
        tokens: ``[N]`` int64 in ``[0, V)``.

    Returns:
        ``(logprobs [N], entropy [N])`` in nats; both differentiable.

    Raises:
        ValueError: if the shapes differ in N.
    """
    if logits.dim() != 2 or tokens.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [N, V] and tokens [N], received {tuple(logits.shape)} and {tuple(tokens.shape)}"
        )
    found: tuple[Tensor, Tensor] = _TokenLogprobs.apply(logits, tokens)  # type: ignore[no-untyped-call]
    return found


def sample_tokens(logits: Tensor, noise: Tensor | None, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """One token per row by inverse transform sampling; the most likely token if ``noise`` is None.

    Each row uses one uniform number, so its token does not depend on other rows.

    Args:
        logits: ``[N, V]`` float32; ``-inf`` marks probability 0.
        noise: ``[N]`` uniform in ``[0, 1)``.
        check: wait for the result and raise; otherwise the caller does, by ``check_finite``.

    Returns:
        ``(tokens [N], logprobs [N])``, nats; log-probabilities are NaN where logits are NaN or infinite.

    Raises:
        FloatingPointError: if a row's logits are NaN or infinite.
    """
    if noise is None:
        tokens = logits.argmax(dim=-1)
        return tokens, torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0]
    logprobs = torch.log_softmax(logits, dim=-1)
    mass = pad(logprobs.exp(), (0, -logits.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    block, within = _invert(mass.sum(-1), noise)
    token, _ = _invert(mass[torch.arange(len(block), device=block.device), block], within)
    tokens = (block * BLOCK + token).clamp_(max=logits.shape[-1] - 1)  # beyond only for NaN
    taken = logprobs.gather(-1, tokens[:, None])[:, 0]
    if check:
        check_finite(bool(taken.isnan().any()))
    return tokens, taken


def check_finite(broken: bool) -> None:
    """Raise FloatingPointError if the logits of a sample are ``broken``."""
    if broken:
        raise FloatingPointError("expected finite logits to sample from, received NaN or infinity")


BLOCK = 64
"""Tokens whose mass is added up before the inversion finds one of them: only the sums need float64."""


def _invert(mass: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Index ``[N]`` at which the running sum of ``mass [N, K]`` passes ``level [N]`` of its total, and the share of
    that entry which lies below it; both levels in [0, 1).

    In float64: float32 would skip most of a long tail, whose masses are less than its steps near 1.
    """
    wide = torch.float32 if mass.device.type == "mps" else torch.float64  # which has no float64
    heights = mass.to(wide).cumsum(dim=-1)
    total = heights[:, -1:]
    # Strictly below the total, so that the first height above it belongs to an entry of positive mass.
    target = torch.minimum(level[:, None].to(wide) * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(heights, target, right=True).clamp_(max=mass.shape[-1] - 1)  # beyond only for NaN
    entry = mass.gather(-1, index).to(wide)
    within = (target - (heights.gather(-1, index) - entry)) / entry
    return index[:, 0], within[:, 0].clamp_(min=0.0)


def uniform(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """``[count]`` float64 numbers in [0, 1), drawn on the generator's device: a CPU seed gives equal numbers anywhere.

    Float32's steps of 6e-8 would never reach most tokens of a long tail.
    """
    drawn_on = None if generator is None else generator.device
    numbers = torch.rand(count, dtype=torch.float64, generator=generator, device=drawn_on)
    return numbers.to(device, torch.float32 if torch.device(device).type == "mps" else torch.float64)
