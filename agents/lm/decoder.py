"""The decoder of current rows: a key-value cache, random numbers by row and step, and what generation returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.sampling import uniform
from textenvs.lm.kv_cache import PlainCache, any_key_order, new_cache
from textenvs.lm.linear_kernels import cache_keyword
from textenvs.lm.packed_attention import OURS, SDPA
from textenvs.lm.sizes import sizes

AHEAD = 32
"""Steps whose random numbers are drawn and sent to the device together."""


class Generation(NamedTuple):
    """Completions and the policy's statistics of them, ``[B, T]`` each."""

    completions: Tensor
    """int64 token ids, the end-of-text token included, PAD after it."""
    logprobs: Tensor
    """float32 nats of the distribution that was sampled; 0 on PAD."""
    values: Tensor
    """float32 V of the state before each token; 0 on PAD."""


class Noise:
    """A uniform number in [0, 1) per row and step, drawn step after step for all rows, ahead of its use.

    Neither the numbers nor the generator's final state depend on which rows are decoded together.
    """

    def __init__(
        self,
        batch: int,
        steps: int,
        generator: torch.Generator | None,
        device: torch.device,
        other_rows: tuple[int, int],
    ) -> None:
        self.generator, self.before = torch.default_generator if generator is None else generator, other_rows[0]
        self.numbers = uniform(0, self.generator, device).new_empty(steps, batch + sum(other_rows))
        self.drawn = self.calls = 0
        self.states: list[Tensor] = []

    def of(self, rows: Tensor, steps: Tensor) -> Tensor:
        """``[N]`` numbers of ``rows`` at ``steps``, which grow by at most one between calls, from 0 on."""
        if self.drawn <= self.calls and self.drawn < len(self.numbers):
            self.states.append(self.generator.get_state())
            ahead = self._draw(min(AHEAD, len(self.numbers) - self.drawn))
            self.numbers[self.drawn : self.drawn + len(ahead)] = ahead
            self.drawn += len(ahead)
        self.calls += 1
        return self.numbers[steps, self.before + rows]

    def _draw(self, steps: int) -> Tensor:
        width = self.numbers.shape[1]
        return torch.stack([uniform(width, self.generator, self.generator.device) for _ in range(steps)])

    def rewind(self, steps: int) -> None:
        """Leave the generator as if only the numbers of the first ``steps`` steps, 1 or more, had been drawn."""
        if self.drawn:
            self.generator.set_state(self.states[(steps - 1) // AHEAD])
            self._draw((steps - 1) % AHEAD + 1)


class Repeated:
    """A step of constant shapes as a CUDA graph, one for each number of rows; elsewhere the step itself.

    The first call with a number of rows runs the step once and then records it. What the step reads beside its inputs
    has to stay in place, and numbers that the host computes have to be inputs. A model whose step waits for the device
    (as some rotary embeddings do) cannot be recorded, and runs as it is, with a warning.
    """

    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step, self.pool, self.refused = step, None, False
        self.recorded: dict[int, tuple[Any, tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, *inputs: Tensor, **options: bool) -> Tensor:
        """What the step returns, in memory that the next call overwrites; ``options`` are always the same."""
        cuda, step = graphs_of(inputs[0].device), partial(self.step, **options)
        if cuda is None or self.refused:
            return step(*inputs)
        if len(inputs[0]) not in self.recorded:
            try:
                self.recorded[len(inputs[0])] = self._record(cuda, step, tuple(each.clone() for each in inputs))
            except RuntimeError as fault:
                warnings.warn(f"decoding without CUDA graphs, slower: {fault}", stacklevel=2)
                self.refused = True
                return step(*inputs)
        graph, places, out = self.recorded[len(inputs[0])]
        for place, each in zip(places, inputs, strict=True):
            place.copy_(each)
        graph.replay()
        return out

    def _record(self, cuda: Any, step: Any, places: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...], Tensor]:
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            step(*places)  # libraries begin, and autocast casts the weights, outside of the graph
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, pool=self.pool):
            out = step(*places)
        self.pool = graph.pool()
        return graph, places, out


def graphs_of(device: torch.device) -> Any:
    """Where ``device`` has CUDA's streams and graphs; None: it has none."""
    return torch.cuda if device.type == "cuda" else None


class Decoder:
    """The cache of the current rows, their lengths, and their newest hidden states ``[N, D]``."""

    def __init__(
        self, policy: CausalLMPolicy, max_concurrent_rows: int, longest_prompt: int, budget: int, device: torch.device
    ) -> None:
        self.trunk = policy.trunk
        self.cache_keyword = cache_keyword(self.trunk)
        # Keys and values are kept in the dtype in which attention computes.
        attention = self.trunk.config._attn_implementation
        float32 = attention == OURS and device.type == "cpu"
        self.longest_prompt, self.capacity = longest_prompt, longest_prompt + budget - 1
        self.cache = new_cache(
            self.trunk, max_concurrent_rows=max_concurrent_rows, capacity=self.capacity, float32=float32
        )
        # A mask of rank 4 is used as it is; from one of rank 2 transformers builds a mask in each step.
        self.takes_mask = isinstance(self.cache, PlainCache) and attention in (OURS, SDPA)
        self.sizes = sizes(device)
        self.static = self.sizes.static_cache and self.takes_mask
        self.steady = self.cache if self.static and isinstance(self.cache, PlainCache) else None
        if self.steady is not None:
            self.steady.keep_shapes(device)
        self.step = Repeated(self._forward) if self.static else self._forward
        self.column = 0
        self.ragged = False
        self.lengths = torch.zeros(0, dtype=torch.int64, device=device)
        self.hidden: Tensor

    def join(self, prompts: Tensor, lengths: Tensor) -> None:
        """Prefill the prompts ``[M, P]`` of M more rows, which are appended to the current ones."""
        alone = len(self.lengths) == 0
        if alone:
            # Rows are right-aligned at the column, and the longest prompt must fit, even if it joins later.
            self.column = self.longest_prompt
            self.ragged = self.static or bool((lengths < self.longest_prompt).any())
        else:
            self.ragged = True
        # Keys of a growing cache cannot be appended piece by piece.
        rows = (
            max(1, self.sizes.prefill_tokens // self.longest_prompt)
            if isinstance(self.cache, PlainCache)
            else len(prompts)
        )
        parts = zip(prompts.split(rows), lengths.split(rows), strict=True)
        hidden = torch.cat([self._prefill(*part) for part in parts])
        self.hidden = hidden if alone else torch.cat([self.hidden, hidden])
        self.lengths = torch.cat([self.lengths, lengths])

    def _prefill(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """Prefill the distinct prompts of ``[M, P]``; returns hidden states ``[M, D]`` of the last tokens."""
        width = int(lengths.max())
        distinct, source = prompts.unique(dim=0, return_inverse=True)
        if len(distinct) == len(prompts):
            first = source = torch.arange(len(prompts), device=prompts.device)
        else:
            first = torch.empty(len(distinct), dtype=torch.int64, device=prompts.device)
            first[source] = torch.arange(len(prompts), device=prompts.device)  # any row with that prompt
        # Prompts are right-aligned, so that all rows append to the same column of the cache.
        pad = (width - lengths)[first, None]
        columns = torch.arange(width, device=prompts.device)
        positions = (columns - pad).clamp(min=0)
        tokens = prompts[first].gather(1, positions).clamp(min=0)
        if isinstance(self.cache, PlainCache):
            self.cache.expect(source, self.column)
        hidden = self._forward(tokens, positions, columns >= pad, ragged=bool((pad > 0).any()))
        if len(first) < len(source):
            hidden = hidden[source]
            if not isinstance(self.cache, PlainCache):
                self.cache.batch_select_indices(source)
        return hidden

    def _forward(self, tokens: Tensor, positions: Tensor, visible: Tensor, *, ragged: bool) -> Tensor:
        mask = visible
        if ragged and self.takes_mask:
            mask = mask[:, None, None]
            if tokens.shape[1] > 1:
                square = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
                # Padding attends to itself: a softmax over nothing would fill the cache with NaN.
                mask = (mask & square.tril()) | torch.eye(*square.shape, dtype=torch.bool, device=tokens.device)
        cache: dict[str, Any] = {self.cache_keyword: self.cache}
        out = self.trunk(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, **cache)
        return out.last_hidden_state[:, -1]

    def advance(self, tokens: Tensor, running: Tensor) -> None:
        """Append one token ``[N]`` to every row; rows that are not ``running`` are ignored."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + running
        if self.steady is not None:
            self.steady.write_at(self.column)
        columns = torch.arange(
            self.capacity if self.static else min(self.column + 1, self.capacity), device=tokens.device
        )
        age = (self.column - columns) % self.capacity
        self.hidden = self.step(tokens[:, None], positions, age < self.lengths[:, None], ragged=self.ragged)
        self.column += 1

    def compact(self, running: Tensor) -> Tensor:
        """Drop finished rows; returns ``[num_running]``, the old index of the row in each place."""
        count = int(running.sum())
        places = torch.arange(len(running), device=running.device)
        holes, movers = places[:count][~running[:count]], places[count:][running[count:]]
        keep = places[:count].clone()
        keep[holes] = movers
        self.lengths = self.lengths[keep]
        if isinstance(self.cache, PlainCache):
            self.cache.move(movers, holes, count)
        else:
            self.cache.batch_select_indices(keep)
        return keep


def check_prompts(
    policy: CausalLMPolicy, lengths: Tensor, max_new_tokens: int, max_concurrent_rows: int | None
) -> None:
    """Raise what `generate` raises, for prompts of ``lengths [B]`` and a budget of tokens after the longest."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected 1 or more, received {max_new_tokens}")
    check_max_concurrent_rows(max_concurrent_rows)
    if max_concurrent_rows is not None and not any_key_order(policy.trunk):
        raise ValueError(
            "max_concurrent_rows: expected a model that ignores the order of cached keys, received "
            f"{type(policy.model).__name__}: pass max_concurrent_rows=None, which decodes all rows at once"
        )
    if bool((lengths == 0).any()):
        raise ValueError(
            f"expected prompts of a token or more, received prompt {int((lengths == 0).nonzero()[0])} empty"
        )
    longest, limit = int(lengths.max()), policy.max_positions
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"expected at most {limit} tokens, the model's positions, received a prompt of {longest} and "
            f"{max_new_tokens} new ones: shorten the prompts or lower max_new_tokens"
        )


def check_max_concurrent_rows(max_concurrent_rows: int | None) -> None:
    """Raise ValueError unless ``max_concurrent_rows`` is None or at least 1."""
    if max_concurrent_rows is not None and max_concurrent_rows < 1:
        raise ValueError(f"max_concurrent_rows: expected 1 or more, or None for all, received {max_concurrent_rows}")
