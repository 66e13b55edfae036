"""Batched decoding with a key-value cache: whole completions, their log-probabilities and values as they are sampled.

Little happens per token: one forward pass, one draw. The cache is allocated once; rows that ended leave the batch, the
last rows moving into their places. Prompts that repeat (groups) are read once, and what the cache holds of them is
copied. Equal to a full forward pass of the finished rows (a test says so).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from agents.causal_lm import CausalLMPolicy, uniform
from agents.token_distribution import sample_tokens
from textenvs.attention import OURS, SDPA, attends_to_everything
from textenvs.kernels import HALF, cache_keyword
from textenvs.rows import PAD

COMPACT_AT = 1 / 16
"""Share of finished rows in the batch at which they are removed."""


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
) -> Generation:
    """Let the policy write one completion for every prompt.

    Args:
        policy: acts by its own sampling rules.
        prompts: ``[B, P]`` int64, right-padded with PAD; every row has a token.
        max_new_tokens: budget T, tokens.
        generator: of the draws: one uniform number a row and step, whether or not the row still runs.
        deterministic: always take the likeliest token.
        with_values: whether values are wanted; zeros if not, and from a policy without critic.

    Raises:
        ValueError: if a prompt is empty, or prompt and budget exceed the model's positions.
    """
    with policy.acting():
        return _generate(policy, prompts, max_new_tokens, generator, deterministic, with_values)


def _generate(
    policy: CausalLMPolicy,
    prompts: Tensor,
    max_new_tokens: int,
    generator: torch.Generator | None,
    deterministic: bool,
    with_values: bool,
) -> Generation:
    lengths = (prompts != PAD).sum(1)
    _check(policy, prompts, lengths, max_new_tokens)
    width = int(lengths.max())
    batch, device = prompts.shape[0], prompts.device
    tokens_out = torch.full((batch, max_new_tokens), PAD, dtype=torch.int64, device=device)
    logprobs_out = torch.zeros(batch, max_new_tokens, device=device)
    values_out = torch.zeros(batch, max_new_tokens, device=device)
    decoder = _Decoder(policy, prompts, lengths, width, max_new_tokens)
    rows = torch.arange(batch, device=device)
    running = torch.ones(batch, dtype=torch.bool, device=device)
    with_values = with_values and policy.has_critic
    shared = with_values and policy.critic == "shared"
    for step in range(max_new_tokens):
        noise = None if deterministic else uniform(batch, generator, device)[rows]
        logits = policy.sampling.shape(policy.head_logits(decoder.hidden), step, policy.eos_token_id)
        tokens, logprobs = sample_tokens(logits, noise)
        whole = bool(running.all())
        target = rows if whole else rows[running]
        tokens_out[target, step] = tokens if whole else tokens[running]
        logprobs_out[target, step] = logprobs if whole else logprobs[running]
        if shared:
            values = policy.value_of(decoder.hidden)
            values_out[target, step] = values if whole else values[running]
        if policy.eos_token_id is not None:
            running = running & (tokens != policy.eos_token_id)
        num_running = int(running.sum())
        if num_running == 0 or step + 1 == max_new_tokens:
            break
        if num_running <= (1 - COMPACT_AT) * len(rows):
            keep = decoder.compact(running)
            rows, tokens, running = rows[keep], tokens[keep], running[keep]
        decoder.advance(tokens)
    if with_values and not shared:
        values_out = policy.values_along(prompts, tokens_out)
    return Generation(tokens_out, logprobs_out, values_out)


class _Decoder:
    """The running rows' cache, positions and newest hidden state ``[N, D]``."""

    def __init__(self, policy: CausalLMPolicy, prompts: Tensor, lengths: Tensor, width: int, budget: int) -> None:
        self.trunk = policy.model.base_model
        self.cache_keyword = cache_keyword(self.trunk)
        # What attention reads at every token is kept as the type that it computes in.
        ours = policy.model.config._attn_implementation == OURS
        float32 = ours and prompts.device.type == "cpu"
        self.cache = new_cache(policy.model.config, capacity=width + budget - 1, float32=float32)
        self.column = width
        self.next_position = lengths[:, None]
        pad = (width - lengths)[:, None]
        columns = torch.arange(width + budget, device=prompts.device)
        self.visible = columns >= pad
        # A mask of rank 4 is taken as it is; one of rank 2 goes through transformers' own mask making, each step.
        self.mask_is_ours = (
            bool((pad > 0).any())
            and isinstance(self.cache, PlainCache)
            and (ours or policy.model.config._attn_implementation == SDPA)
        )
        # Ragged prompts stand flush right, so that all rows append to the same column of the cache.
        positions = (columns[:width] - pad).clamp(min=0)
        self.hidden = self._prefill(prompts, positions)

    def _prefill(self, prompts: Tensor, positions: Tensor) -> Tensor:
        """Read the prompts ``[B, P]``, each different one once; hidden states ``[B, D]`` of their last tokens."""
        tokens = prompts.gather(1, positions).clamp(min=0)
        different, source = prompts.unique(dim=0, return_inverse=True)
        if len(different) == len(prompts):
            return self._forward(tokens, positions, self.visible)
        first = torch.empty(len(different), dtype=torch.int64, device=prompts.device)
        first[source] = torch.arange(len(prompts), device=prompts.device)  # any row with that prompt will do
        hidden = self._forward(tokens[first], positions[first], self.visible[first])
        if isinstance(self.cache, PlainCache):
            self.cache.spread(source)
        else:
            self.cache.batch_select_indices(source)
        return hidden[source]

    def _forward(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        mask = visible[:, : self.column]
        if self.mask_is_ours:
            mask = mask[:, None, None]
            if tokens.shape[1] > 1:
                square = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
                # Padding sees itself, or its attention would be a softmax over nothing and poison the cache with NaN.
                mask = (mask & square.tril()) | torch.eye(*square.shape, dtype=torch.bool, device=tokens.device)
        cache: dict[str, Any] = {self.cache_keyword: self.cache}
        out = self.trunk(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True, **cache)
        return out.last_hidden_state[:, -1]

    def advance(self, tokens: Tensor) -> None:
        """Append one token ``[N]`` to every row."""
        self.column += 1
        self.hidden = self._forward(tokens[:, None], self.next_position, self.visible)
        self.next_position = self.next_position + 1

    def compact(self, running: Tensor) -> Tensor:
        """Drop rows that ended; returns ``[num_running]``, which old row now stands in each place."""
        count = int(running.sum())
        places = torch.arange(len(running), device=running.device)
        holes, movers = places[:count][~running[:count]], places[count:][running[count:]]
        keep = places[:count].clone()
        keep[holes] = movers
        self.next_position, self.visible = self.next_position[keep], self.visible[keep]
        if isinstance(self.cache, PlainCache):
            self.cache.move(movers, holes, count)
        else:
            self.cache.batch_select_indices(keep)
        return keep


class _PlainLayer(DynamicLayer):
    """Keys and values of one layer in arrays that are allocated once: ``[B, H, capacity, D]``."""

    def __init__(self, capacity: int, float32: bool) -> None:
        super().__init__()
        self.capacity = capacity
        self.float32 = float32
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values; returns views of all so far."""
        begin, end = self.length, self.length + key_states.shape[-2]
        if not self.is_initialized:
            batch, heads = key_states.shape[:2]
            shape = (batch, heads, self.capacity)
            dtype = torch.float32 if self.float32 and key_states.dtype in HALF else key_states.dtype
            self.keys = key_states.new_empty(*shape, key_states.shape[-1], dtype=dtype)
            self.values = value_states.new_empty(*shape, value_states.shape[-1], dtype=dtype)
            self.is_initialized = True
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens in the cache."""
        return self.length

    def spread(self, source: Tensor) -> None:
        """Row i becomes a copy of row ``source[i]``: ``[B]`` rows from fewer."""
        assert self.keys is not None
        assert self.values is not None
        for name in ("keys", "values"):
            few = getattr(self, name)
            many = few.new_empty(len(source), *few.shape[1:])
            many[:, :, : self.length] = few[source, :, : self.length]
            setattr(self, name, many)

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Put row ``movers[i]`` in place ``holes[i]`` and keep the first ``count`` rows."""
        assert self.keys is not None
        assert self.values is not None
        if len(holes):
            self.keys[holes, :, : self.length] = self.keys[movers, :, : self.length]
            self.values[holes, :, : self.length] = self.values[movers, :, : self.length]
        self.keys, self.values = self.keys[:count], self.values[:count]


class PlainCache(Cache):
    """A preallocated cache for models whose layers all attend to everything."""

    def __init__(self, num_layers: int, capacity: int, *, float32: bool = False) -> None:
        super().__init__(layers=[_PlainLayer(capacity, float32) for _ in range(num_layers)])

    def spread(self, source: Tensor) -> None:
        """As in the layers, for all of them."""
        for layer in self.layers:
            layer.spread(source)  # type: ignore[union-attr]

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """As in the layers, for all of them."""
        for layer in self.layers:
            layer.move(movers, holes, count)  # type: ignore[union-attr]


def new_cache(config: Any, *, capacity: int, float32: bool = False) -> Cache:
    """An empty cache for ``config``'s model: ours if all layers attend to everything, else transformers' own.

    With ``float32`` ours keeps keys and values of half types as float32.
    """
    if attends_to_everything(config):
        return PlainCache(config.num_hidden_layers, capacity, float32=float32)
    return DynamicCache(config=config)


def _check(policy: CausalLMPolicy, prompts: Tensor, lengths: Tensor, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    if bool((lengths == 0).any()):
        raise ValueError(f"prompt {int((lengths == 0).nonzero()[0])} is empty; begin prompts with a token")
    longest, limit = int(lengths.max()), policy.max_positions
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's {limit} positions: "
            "shorten the prompts or lower max_new_tokens"
        )
