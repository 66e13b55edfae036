"""Batched decoding with a key-value cache: whole completions, their log-probabilities and values as they are sampled.

Little happens per token: one forward pass, one draw. The cache is allocated once; rows that ended leave the batch, the
last rows moving into their places, and with ``max_concurrent_rows`` the next prompts join in their stead (continuous
batching: Yu et
al. 2022, "Orca", section 3.1). Prompts that repeat (groups) and begin together are read once. Equal to a full forward
pass of the finished rows (a test says so).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.sampling import sample_tokens, uniform
from textenvs.lm.cache_layout import any_key_order
from textenvs.lm.kv_cache import PlainCache, new_cache
from textenvs.lm.linear_kernels import cache_keyword
from textenvs.lm.packed_attention import OURS, SDPA
from textenvs.tokens.rows import PAD

COMPACT_AT = 1 / 16
"""Share of finished rows in the batch at which they are removed, and waiting prompts join."""


class Generation(NamedTuple):
    """Completions and what the policy said while it wrote them; ``[B, T]`` each."""

    completions: Tensor
    """int64 token ids, the end-of-text token included, PAD after it."""
    logprobs: Tensor
    """float32 nats of the distribution that was sampled; 0 on PAD."""
    values: Tensor
    """float32 V of the state before each token; 0 on PAD."""


@torch.no_grad()
def generate(
    policy: CausalLMPolicy,
    prompts: Tensor,
    *,
    max_new_tokens: int,
    generator: torch.Generator | None = None,
    deterministic: bool = False,
    with_values: bool = True,
    max_concurrent_rows: int | None = None,
    beside: tuple[int, int] = (0, 0),
) -> Generation:
    """Let the policy write one completion for every prompt.

    Args:
        policy: acts by its own sampling rules.
        prompts: ``[B, P]`` int64, right-padded with PAD; every row has a token.
        max_new_tokens: budget T, tokens.
        generator: of the draws: one uniform number a row and step, whether or not the row still runs, for as many steps
            as the longest completion has tokens.
        deterministic: always take the likeliest token.
        with_values: whether values are wanted; zeros if not, and from a policy without critic.
        max_concurrent_rows: rows decoded at a time, which bounds the cache; a row that ended makes room for the next
        prompt. None:
            all at once. What is written, and where ``generator`` ends, is the same (up to rounding).
        beside: rows of the same batch that stand before and after these and are written elsewhere: their numbers are
            drawn, too, so that what these rows say is the same as if all were here.

    Raises:
        ValueError: if a prompt is empty, if prompt and budget exceed the model's positions, for
        ``max_concurrent_rows`` below 1, or
            with a model that does not attend to everything, or minds where it stands (see
            ``textenvs.lm.cache_layout``).
    """
    with policy.acting():
        return _generate(
            policy, prompts, max_new_tokens, generator, deterministic, with_values, max_concurrent_rows, beside
        )


def _generate(
    policy: CausalLMPolicy,
    prompts: Tensor,
    max_new_tokens: int,
    generator: torch.Generator | None,
    deterministic: bool,
    with_values: bool,
    max_concurrent_rows: int | None,
    beside: tuple[int, int],
) -> Generation:
    lengths = (prompts != PAD).sum(1)
    _check(policy, prompts, lengths, max_new_tokens, max_concurrent_rows)
    batch, device = prompts.shape[0], prompts.device
    max_concurrent_rows = batch if max_concurrent_rows is None else min(max_concurrent_rows, batch)
    tokens_out = torch.full((batch, max_new_tokens), PAD, dtype=torch.int64, device=device)
    logprobs_out = torch.zeros(batch, max_new_tokens, device=device)
    values_out = torch.zeros(batch, max_new_tokens, device=device)
    with_values = with_values and policy.has_critic
    shared = with_values and policy.critic == "shared"
    decoder = _Decoder(policy, max_concurrent_rows, int(lengths.max()), max_new_tokens, device)
    noise = _Noise(batch, max_new_tokens, generator, device, beside)
    begun = 0
    rows = steps = torch.zeros(0, dtype=torch.int64, device=device)  # of each row decoded, which it is and how far
    running = torch.zeros(0, dtype=torch.bool, device=device)
    while True:
        if begun < batch and len(rows) < max_concurrent_rows:
            joining = torch.arange(begun, min(batch, begun + max_concurrent_rows - len(rows)), device=device)
            decoder.join(prompts[joining], lengths[joining])
            begun += len(joining)
            rows, steps = torch.cat([rows, joining]), torch.cat([steps, torch.zeros_like(joining)])
            running = torch.cat([running, torch.ones_like(joining, dtype=torch.bool)])
        logits = policy.sampling.shape(policy.head_logits(decoder.hidden), steps, policy.eos_token_id)
        tokens, logprobs = sample_tokens(logits, None if deterministic else noise.of(rows, steps, running))
        whole = bool(running.all())
        target = (rows, steps) if whole else (rows[running], steps[running])
        tokens_out[target] = tokens if whole else tokens[running]
        logprobs_out[target] = logprobs if whole else logprobs[running]
        if shared:
            values = policy.value_of(decoder.hidden)
            values_out[target] = values if whole else values[running]
        running = running & (steps + 1 < max_new_tokens)
        if policy.eos_token_id is not None:
            running = running & (tokens != policy.eos_token_id)
        num_running = int(running.sum())
        if num_running == 0 and begun == batch:
            break
        if num_running == 0 or num_running <= (1 - COMPACT_AT) * len(rows):
            keep = decoder.compact(running)
            rows, steps, tokens, running = rows[keep], steps[keep], tokens[keep], running[keep]
        if len(rows):
            decoder.advance(tokens, running)
            steps = steps + running
    if with_values and not shared:
        values_out = policy.values_along(prompts, tokens_out)
    return Generation(tokens_out, logprobs_out, values_out)


class _Noise:
    """One uniform number in [0, 1) for each row and step; a step's B numbers are drawn when the first row gets there.

    So neither the numbers nor the generator's end depend on which rows are decoded together.
    """

    def __init__(
        self, batch: int, steps: int, generator: torch.Generator | None, device: torch.device, beside: tuple[int, int]
    ) -> None:
        self.generator, self.before = generator, beside[0]
        self.numbers = torch.empty(steps, batch + sum(beside), device=device)
        self.drawn = 0

    def of(self, rows: Tensor, steps: Tensor, running: Tensor) -> Tensor:
        """``[N]`` numbers of ``rows`` at their ``steps``; running rows' steps grow by one at most from call to call."""
        if int(steps[running].max()) == self.drawn:
            self.numbers[self.drawn] = uniform(self.numbers.shape[1], self.generator, self.numbers.device)
            self.drawn += 1
        return self.numbers[steps, self.before + rows]


class _Decoder:
    """The cache of the rows decoded now, their lengths in it, and their newest hidden states ``[N, D]``."""

    def __init__(
        self, policy: CausalLMPolicy, max_concurrent_rows: int, longest_prompt: int, budget: int, device: torch.device
    ) -> None:
        self.trunk = policy.model.base_model
        self.cache_keyword = cache_keyword(self.trunk)
        # What attention reads at every token is kept as the type that it computes in.
        kind = policy.model.config._attn_implementation
        float32 = kind == OURS and device.type == "cpu"
        self.longest_prompt, self.capacity = longest_prompt, longest_prompt + budget - 1
        self.cache = new_cache(
            self.trunk, max_concurrent_rows=max_concurrent_rows, capacity=self.capacity, float32=float32
        )
        # A mask of rank 4 is taken as it is; one of rank 2 goes through transformers' own mask making, each step.
        self.takes_mask = isinstance(self.cache, PlainCache) and kind in (OURS, SDPA)
        self.column = 0
        self.ragged = False
        self.lengths = torch.zeros(0, dtype=torch.int64, device=device)
        self.hidden: Tensor

    def join(self, prompts: Tensor, lengths: Tensor) -> None:
        """Read the prompts ``[M, P]`` of M more rows, which stand behind those there are."""
        alone = len(self.lengths) == 0
        if alone:
            # The longest prompt must fit before the column, even if it comes later: rows stand flush right.
            self.column, self.ragged = self.longest_prompt, bool((lengths < self.longest_prompt).any())
        else:
            self.ragged = True
        hidden = self._prefill(prompts, lengths)
        self.hidden = hidden if alone else torch.cat([self.hidden, hidden])
        self.lengths = torch.cat([self.lengths, lengths])

    def _prefill(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """Read the prompts ``[M, P]``, each different one once; hidden states ``[M, D]`` of their last tokens."""
        width = int(lengths.max())
        different, source = prompts.unique(dim=0, return_inverse=True)
        if len(different) == len(prompts):
            first = source = torch.arange(len(prompts), device=prompts.device)
        else:
            first = torch.empty(len(different), dtype=torch.int64, device=prompts.device)
            first[source] = torch.arange(len(prompts), device=prompts.device)  # any row with that prompt will do
        # Ragged prompts stand flush right, so that all rows append to the same column of the cache.
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
                # Padding sees itself, or its attention would be a softmax over nothing and poison the cache with NaN.
                mask = (mask & square.tril()) | torch.eye(*square.shape, dtype=torch.bool, device=tokens.device)
        cache: dict[str, Any] = {self.cache_keyword: self.cache}
        out = self.trunk(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, **cache)
        return out.last_hidden_state[:, -1]

    def advance(self, tokens: Tensor, running: Tensor) -> None:
        """Append one token ``[N]`` to every row; what happens to rows that are not ``running`` concerns nobody."""
        positions = self.lengths[:, None]
        self.lengths = self.lengths + running
        columns = torch.arange(min(self.column + 1, self.capacity), device=tokens.device)
        age = (self.column - columns) % self.capacity
        self.hidden = self._forward(tokens[:, None], positions, age < self.lengths[:, None], ragged=self.ragged)
        self.column += 1

    def compact(self, running: Tensor) -> Tensor:
        """Drop rows that ended; returns ``[num_running]``, which old row now stands in each place."""
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


def _check(
    policy: CausalLMPolicy, prompts: Tensor, lengths: Tensor, max_new_tokens: int, max_concurrent_rows: int | None
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    check_max_concurrent_rows(max_concurrent_rows)
    if max_concurrent_rows is not None and not any_key_order(policy.model.base_model):
        raise ValueError(
            "max_concurrent_rows needs a model whose layers all attend to everything, wherever it stands, which "
            f"{type(policy.model).__name__}'s do not: pass max_concurrent_rows=None, which decodes all rows at once"
        )
    if bool((lengths == 0).any()):
        raise ValueError(f"prompt {int((lengths == 0).nonzero()[0])} is empty; begin prompts with a token")
    longest, limit = int(lengths.max()), policy.max_positions
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's {limit} positions: "
            "shorten the prompts or lower max_new_tokens"
        )


def check_max_concurrent_rows(max_concurrent_rows: int | None) -> None:
    """Raises ValueError unless ``max_concurrent_rows`` is None or at least 1."""
    if max_concurrent_rows is not None and max_concurrent_rows < 1:
        raise ValueError(
            f"max_concurrent_rows must be at least 1 row, or None for all at once, got {max_concurrent_rows}"
        )
