"""Supervised fine-tuning of a causal LM: the loss of token rows, their batches and microbatches.

    L = - sum_{learned t} log pi(t | what is before it) / (number of learned tokens in the whole batch)

so a batch cut into microbatches of ragged rows has the gradient of the whole one. Logits are computed where a token is
learned and nowhere else, in pieces if they are many (`agents.lm.causal_lm`).
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agents.lm.causal_lm import CausalLMPolicy
from agents.recipes.sft.rows import TokenRow
from agents.runs.distributed import ALONE, Processes
from reward_models.fit_options import StepResult
from textenvs.tokens.rows import PAD

EVALUATION_POSITIONS = 8192
"""Of a forward pass over held-out rows, where `BatchLimits` sets no limit."""


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How rows are gathered; exactly one of ``rows`` and ``tokens`` is given."""

    rows: int | None = None
    """Rows an optimizer step, at most; batches of an epoch differ by one row."""
    tokens: int | None = None
    """Tokens an optimizer step, at most; a longer row is a batch of its own."""
    micro_rows: int | None = None
    """Rows a backward pass, at most."""
    micro_positions: int | None = None
    """Positions a backward pass, padding included; a longer row goes alone."""

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError(f"exactly one of rows and tokens must be given, received {self.rows} and {self.tokens}")


def pad_rows(rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor]:
    """``(tokens [B, W], mask [B, W])``: right-padded with PAD, True on what is learned."""
    ids = [torch.from_numpy(row.tokens).long() for row in rows]
    tokens = pad_sequence(ids, batch_first=True, padding_value=PAD)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for i, row in enumerate(rows):
        for begin, end in row.spans:
            mask[i, begin:end] = True
    return tokens, mask


def loss_sum(policy: CausalLMPolicy, rows: Sequence[TokenRow]) -> Tensor:
    """Negative log-likelihood of what is learned of ``rows``, summed, nats; with gradient."""
    tokens, mask = (part.to(policy.device) for part in pad_rows(rows))
    return -policy.row_logprobs(tokens, mask).sum()


def microbatches(rows: Sequence[TokenRow], limits: BatchLimits) -> list[list[TokenRow]]:
    """A batch in parts for one backward pass each, like lengths together."""
    parts: list[list[TokenRow]] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        # Rows come by length, so this one is the widest of the part it would join.
        size = len(parts[-1]) + 1 if parts else 0
        full = limits.micro_rows is not None and size > limits.micro_rows
        wide = limits.micro_positions is not None and size * len(row.tokens) > limits.micro_positions
        if not parts or full or wide:
            parts.append([])
        parts[-1].append(row)
    return parts


def epoch_of(rows: Sequence[TokenRow], limits: BatchLimits, rng: random.Random) -> list[list[TokenRow]]:
    """Every row once, in random order, in batches."""
    order = rng.sample(range(len(rows)), len(rows))
    if limits.rows is not None:
        pieces = math.ceil(len(order) / limits.rows)
        borders = [i * len(order) // pieces for i in range(pieces + 1)]
        return [[rows[i] for i in order[a:b]] for a, b in pairwise(borders)]
    assert limits.tokens is not None
    batches: list[list[TokenRow]] = [[]]
    room = limits.tokens
    for index in order:
        row = rows[index]
        if batches[-1] and len(row.tokens) > room:
            batches.append([])
            room = limits.tokens
        batches[-1].append(row)
        room -= len(row.tokens)
    return batches


def share_of(rows: Sequence[TokenRow], processes: Processes) -> list[TokenRow]:
    """This process's rows: as long as those of each other."""
    return sorted(rows, key=lambda row: len(row.tokens))[processes.index :: processes.count]


def mean_loss(
    policy: CausalLMPolicy, rows: Sequence[TokenRow], limits: BatchLimits, processes: Processes = ALONE
) -> float:
    """Nats per learned token over all ``rows``, which ``processes`` share, without gradient."""
    unlimited = limits.micro_rows is None and limits.micro_positions is None
    limits = BatchLimits(rows=1, micro_positions=EVALUATION_POSITIONS) if unlimited else limits
    with torch.no_grad():
        total = sum(loss_sum(policy, part).item() for part in microbatches(share_of(rows, processes), limits))
    return sum(processes.all_gather(total)) / sum(row.num_learned for row in rows)


@dataclass(eq=False)
class FineTuning:
    """A causal LM over token rows, as `reward_models.fitting` trains it."""

    module: CausalLMPolicy
    """Without critic; its parameters that require gradients are trained."""
    train: Sequence[TokenRow]
    """Rows to learn, at least one."""
    heldout: Sequence[TokenRow]
    """Rows to evaluate on; none: there is no evaluation."""
    limits: BatchLimits = field(kw_only=True)
    seed: int = field(kw_only=True)
    """Of the rows' order."""
    processes: Processes = field(default=ALONE, kw_only=True)
    """That share each batch."""

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps that ``epochs`` passes over the rows take, at least 1."""
        return max(1, round(epochs * len(epoch_of(self.train, self.limits, random.Random(self.seed)))))

    def batches(self) -> Iterator[list[TokenRow]]:
        """Endless: every row once an epoch, in an order shuffled anew each epoch."""
        rng = random.Random(self.seed)
        while True:
            yield from epoch_of(self.train, self.limits, rng)

    def gradient(self, batch: list[TokenRow]) -> StepResult:
        """Of the mean over all learned tokens of ``batch``, microbatch by microbatch."""
        count = sum(row.num_learned for row in batch)
        total = 0.0
        parts = microbatches(share_of(batch, self.processes), self.limits)
        idle = self.processes.most(len(parts)) - len(parts)
        for part in parts:
            loss = loss_sum(self.module, part) / count
            loss.backward()
            total += loss.item()
        for _ in range(idle):  # keeps step with other processes
            (0.0 * loss_sum(self.module, batch[:1])).backward()
        self.processes.all_reduce_gradients(list(self.module.parameters()))
        return StepResult(sum(self.processes.all_gather(total)), sum(len(row.tokens) for row in batch))

    def heldout_loss(self) -> float | None:
        """Nats per learned token of the held-out rows."""
        return mean_loss(self.module, self.heldout, self.limits, self.processes) if self.heldout else None

    def fingerprint(self) -> int:
        """A checksum of all rows' tokens and of what is learned of them."""
        checksum = 0
        for row in (*self.train, *self.heldout):
            checksum = zlib.crc32(row.tokens.tobytes(), zlib.crc32(repr(row.spans).encode(), checksum))
        return checksum
