"""Batched decoding with a key-value cache: completions with the log-probabilities and values of their tokens.

One forward pass and one draw per token. The cache is allocated once; finished rows leave the batch, the last rows move
into their places, and with ``max_concurrent_rows`` the next prompts join (continuous batching: Yu et al. 2022, "Orca",
section 3.1). Repeated prompts (groups) that join together are prefilled once. The results equal a full forward pass of
the finished rows (tested).
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decoder import Decoder, Generation, Noise, check_prompts
from agents.lm.dialogues import Dialogue, generate_dialogues
from agents.lm.sampling import check_finite, sample_tokens
from textenvs.tokens.end_tokens import end_tensor
from textenvs.tokens.rows import PAD


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
    other_rows: tuple[int, int] = (0, 0),
    dialogue: Dialogue | None = None,
) -> Generation:
    """Sample one completion for every prompt, or one dialogue.

    Args:
        policy: samples by its ``sampling``.
        prompts: ``[B, P]`` int64, right-padded with PAD; at least a token each.
        max_new_tokens: budget T, tokens.
        generator: of the samples: one uniform number per row and step, finished rows included, for as many steps as the
            longest completion has tokens.
        deterministic: take the most likely token.
        with_values: False, or a policy without a critic: values are 0.
        max_concurrent_rows: rows decoded at a time, which bounds the cache; None: all. The completions and the final
            state of ``generator`` do not depend on it (up to rounding).
        other_rows: number of rows of the same batch before and after these that are generated elsewhere: their random
            numbers are drawn, too, so that these rows are the same as if all were here.
        dialogue: answers turns, whose budget ``max_new_tokens`` then is; see ``agents.lm.dialogues``.

    Raises:
        ValueError: if a prompt is empty, if prompt and budget exceed the model's positions, for
            ``max_concurrent_rows`` below 1 or with a model that needs its keys in order (``textenvs.lm.kv_cache``).
    """
    with policy.forward_context():
        if dialogue is not None:
            return generate_dialogues(
                policy, prompts, dialogue, max_turn_tokens=max_new_tokens, generator=generator,
                deterministic=deterministic, max_concurrent_rows=max_concurrent_rows, other_rows=other_rows,
            )  # fmt: skip
        return _generate(
            policy, prompts, max_new_tokens, generator, deterministic, with_values, max_concurrent_rows, other_rows
        )


def _generate(
    policy: CausalLMPolicy,
    prompts: Tensor,
    max_new_tokens: int,
    generator: torch.Generator | None,
    deterministic: bool,
    with_values: bool,
    max_concurrent_rows: int | None,
    other_rows: tuple[int, int],
) -> Generation:
    lengths = (prompts != PAD).sum(1)
    check_prompts(policy, lengths, max_new_tokens, max_concurrent_rows)
    batch, device = prompts.shape[0], prompts.device
    max_concurrent_rows = batch if max_concurrent_rows is None else min(max_concurrent_rows, batch)
    tokens_out = torch.full((batch, max_new_tokens), PAD, dtype=torch.int64, device=device)
    logprobs_out = torch.zeros(batch, max_new_tokens, device=device)
    values_out = torch.zeros(batch, max_new_tokens, device=device)
    with_values = with_values and policy.has_critic
    shared = with_values and policy.critic == "shared"
    decoder = Decoder(policy, max_concurrent_rows, int(lengths.max()), max_new_tokens, device)
    noise = Noise(batch, max_new_tokens, generator, device, other_rows)
    ends = end_tensor(policy.eos_token_id, device)
    begun = unread = left = 0
    rows = steps = torch.zeros(0, dtype=torch.int64, device=device)  # index and progress of each row
    running = torch.zeros(0, dtype=torch.bool, device=device)
    broken = torch.zeros((), dtype=torch.bool, device=device)
    while True:
        if begun < batch and len(rows) < max_concurrent_rows and not unread:
            joining = torch.arange(begun, min(batch, begun + max_concurrent_rows - len(rows)), device=device)
            decoder.join(prompts[joining], lengths[joining])
            begun, left = begun + len(joining), max_new_tokens
            rows, steps = torch.cat([rows, joining]), torch.cat([steps, torch.zeros_like(joining)])
            running = torch.cat([running, torch.ones_like(joining, dtype=torch.bool)])
        logits = policy.sampling.shape(policy.head_logits(decoder.hidden), steps, policy.eos_token_id)
        tokens, logprobs = sample_tokens(logits, None if deterministic else noise.of(rows, steps), check=False)
        here = rows, steps
        tokens_out[here] = torch.where(running, tokens, tokens_out[here])
        logprobs_out[here] = torch.where(running, logprobs, logprobs_out[here])
        if shared:
            values = policy.value_of(decoder.hidden)
            values_out[here] = torch.where(running, values, values_out[here])
        running = running & (steps + 1 < max_new_tokens) & ~torch.isin(tokens, ends)
        broken = broken | logprobs.isnan().any()
        unread, left = unread + 1, left - 1
        if unread >= decoder.sizes.tokens_between_reads or not left:
            unread, num_running = 0, int(torch.where(broken, -1, running.sum()))  # the one wait
            check_finite(broken=num_running < 0)
            if num_running == 0 and begun == batch:
                break
            if num_running == 0 or num_running <= (1 - decoder.sizes.compact_at) * len(rows):
                keep = decoder.compact(running)
                rows, steps, tokens, running = rows[keep], steps[keep], tokens[keep], running[keep]
        if len(rows):
            decoder.advance(tokens, running)
            steps = steps + running
    noise.rewind(int((tokens_out != PAD).sum(1).max()))
    if with_values and not shared:
        values_out = policy.completion_values(prompts, tokens_out)
    return Generation(tokens_out, logprobs_out, values_out)
