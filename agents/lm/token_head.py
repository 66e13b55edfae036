"""Log-probabilities, entropy and exact KL of the distribution over tokens in given states.

Logits of many states and a large vocabulary are computed in chunks, and recomputed in the backward pass, so that they
are never in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agents.functional.kl import full_kl
from agents.lm.fused_logprobs import linear_token_logprobs, rows_at_once
from agents.lm.sampling import TokenSampling, sample_tokens, token_logprobs
from textenvs.lm.linear_kernels import autocast_off
from textenvs.tokens.end_tokens import EndOfText


@dataclass(frozen=True)
class LogitTransform:
    """What a model makes of its output layer's product ``z``: ``scale z``, or ``cap tanh(scale z / cap)``.

    Granite and Cohere scale their logits, Gemma caps them (Gemma 2, arXiv:2408.00118, section 2).
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits`` of any shape; float32 or wider if they are changed."""
        if self.scale == 1.0 and self.cap is None:
            return logits
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


@dataclass(frozen=True)
class TokenHead:
    """An output layer and how its logits become the policy's distribution."""

    layer: nn.Linear
    """A model's output embedding: ``[N, D]`` hidden states to ``[N, V]`` logits; its weight is ``[V, D]``."""
    sampling: TokenSampling
    """How logits become the policy's distribution."""
    eos_token_id: EndOfText
    """The token that ends a completion, or several; None: there is none."""
    transform: LogitTransform = LogitTransform()
    """What the model does to the layer's product."""

    def logprobs_and_entropy(self, hidden: Tensor, tokens: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of one token in each state, or of M, and the distribution's entropy, with gradient.

        Args:
            hidden: ``[N, D]`` last hidden states.
            tokens: ``[N]`` taken there, or ``[N, M]``, of which filters keep the first.
            steps: ``[N]`` completion tokens before it.

        Returns:
            ``(logprobs, shaped as tokens, entropy [N])``, nats.
        """
        plain = type(self.layer) is nn.Linear and self.layer.bias is None and not self.sampling.filters
        first = tokens if tokens.dim() == 1 else tokens[:, 0]
        if tokens.numel() > len(tokens):

            def part(hidden: Tensor, tokens: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
                logits = self._logits(hidden, tokens[:, 0], steps)
                with autocast_off(logits.device):
                    logprobs = torch.log_softmax(logits, dim=-1)
                    entropy = -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)
                    return logprobs.gather(1, tokens), entropy

            logprobs, entropy = self._in_chunks(part, 2, hidden, tokens, steps)
        elif plain and self.transform.cap is None and self.transform.scale > 0:
            temperature = self.sampling.temperature / self.transform.scale
            logprobs, entropy = linear_token_logprobs(hidden, self.layer.weight, first, temperature=temperature)
        else:

            def one(hidden: Tensor, tokens: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
                logits = self._logits(hidden, tokens, steps)
                with autocast_off(logits.device):
                    return token_logprobs(logits, tokens)

            logprobs, entropy = self._in_chunks(one, 1, hidden, first, steps)
        return logprobs.view(tokens.shape), entropy

    def draw(self, hidden: Tensor, steps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """K tokens ``[N, K]`` in each state by ``noise [N, K]`` in [0, 1), and their log-probabilities, nats."""

        def part(hidden: Tensor, steps: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            logits = self.sampling.shape(self.transform(self.layer(hidden)), steps, self.eos_token_id)
            drawn = [sample_tokens(logits, each) for each in noise.unbind(1)]
            return tuple(torch.stack(column, dim=1) for column in zip(*drawn, strict=True))

        tokens, logprobs = self._in_chunks(part, 2, hidden, steps, noise)
        return tokens, logprobs

    def exact_kl(
        self, hidden: Tensor, tokens: Tensor, steps: Tensor, reference: TokenHead, ref_hidden: Tensor
    ) -> Tensor:
        """KL ``[N]``, nats, to ``reference`` with hidden states ``ref_hidden [N, D]``; gradient to ``hidden`` only.

        ``tokens`` and ``steps`` as in ``logprobs_and_entropy``.
        """

        def kl(hidden: Tensor, tokens: Tensor, steps: Tensor, ref_hidden: Tensor) -> tuple[Tensor]:
            logits = self._logits(hidden, tokens, steps)
            with torch.no_grad():
                ref_logits = reference._logits(ref_hidden, tokens, steps)
            return (full_kl(torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)),)

        (found,) = self._in_chunks(kl, 4, hidden, tokens, steps, ref_hidden)  # about four such arrays at once
        return found

    def _in_chunks(
        self, compute: Callable[..., tuple[Tensor, ...]], logits_at_a_time: int, *arrays: Tensor
    ) -> tuple[Tensor, ...]:
        """``compute(*arrays)``; in chunks of rows, recomputed in the backward pass, if its logits would be large."""
        chunk = max(1, rows_at_once(len(self.layer.weight), arrays[0].device) // logits_at_a_time)
        if len(arrays[0]) <= chunk:
            return compute(*arrays)
        parts = zip(*(array.split(chunk) for array in arrays), strict=True)
        found = [checkpoint(compute, *part, use_reentrant=False) for part in parts]
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def _logits(self, hidden: Tensor, tokens: Tensor, steps: Tensor) -> Tensor:
        return self.sampling.shape(self.transform(self.layer(hidden)), steps, self.eos_token_id, taken=tokens)
