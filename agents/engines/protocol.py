"""What a collector asks of whoever writes its texts, and what it gets: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from agents.lm.dialogues import Dialogue
from agents.lm.sampling import TokenSampling
from textenvs.tokens.end_tokens import EndOfText


class EngineError(RuntimeError):
    """An engine failed, and did so again; the message names it. What it had finished is kept for the next call."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the rows of a call are written."""

    max_new_tokens: int
    """Budget of a completion, or of a turn where there is a dialogue, tokens."""
    max_tokens: int | None = None
    """Budget of a row, its prompt included; None: no other."""
    rules: TokenSampling = field(default_factory=TokenSampling)
    """How logits become a distribution. A local engine's policy has its own."""
    eos_token_id: EndOfText = None
    """What ends a completion; None: only its budget."""
    generator: torch.Generator | None = None
    """Of one uniform number per row and step (a local engine), or of one seed per row."""
    seeds: tuple[int, ...] | None = None
    """Of each row; None: drawn from ``generator``."""
    max_concurrent_rows: int | None = None
    """Rows that are written at a time; None: all."""
    other_rows: tuple[int, int] = (0, 0)
    """Rows of the same batch before and after these that are written elsewhere: their random numbers are drawn, too."""
    greedy: bool = False
    """The likeliest tokens instead of samples."""
    dialogue: Dialogue | None = None
    """Answers turns; None: a row is one completion."""


class Written(NamedTuple):
    """Completions of B prompts, and the writer's statistics of them."""

    ids: Tensor
    """``[B, T]`` int64, an end-of-text token included, right-padded with PAD; in dialogues with what was answered."""
    logprobs: Tensor
    """``[B, T]`` nats of the distribution that was sampled; 0 on what was not sampled."""
    finish_reason: list[str]
    """Of each row "stop" or "length"."""
    version: Tensor
    """``[B, T]`` int64, of the weights that sampled each token."""
    values: Tensor | None = None
    """``[B, T]`` reward units, V of the state before each token; None: the engine has no critic."""


class Engine(Protocol):
    """Writes completions."""

    local: bool
    """Whether it is the project's own decoder, which draws uniform numbers and computes values."""
    adapter_only: bool
    """Whether ``update`` takes a LoRA adapter alone."""

    def generate(self, prompts: Tensor, sampling: Sampling) -> Written:
        """Completions of ``prompts [B, P]``, which are right-padded with PAD; EngineError if it failed more often than
        it retries."""
        ...

    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write by these weights from now on, which are the policy's after ``version`` updates.

        Names are those of the policy's ``state_dict`` for a local engine, of the transformers model or of peft's files
        for others. Where several processes share an engine, all but the first pass none.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds; a server that it talks to runs on."""
        ...
