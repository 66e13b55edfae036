"""Decoding with max_concurrent_rows writes what decoding all rows at once writes, however rows follow one another
(trap T2)."""

from itertools import product

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import agents.lm.decoder as decoder
import agents.lm.generation as generation
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.sampling import TokenSampling
from textenvs.lm import sizes

V, EOS, T = 23, 0, 14
IDS = dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, vocab_size=V, initializer_range=0.3)
ROTARY = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=48,
)  # fmt: skip


def build(kind, **options):
    torch.manual_seed(0)
    if kind == "gpt2":
        # Not a position more than the longest prompt and budget need: rows that ended may not walk beyond.
        model = GPT2LMHeadModel(GPT2Config(n_positions=7 + T, n_embd=24, n_layer=2, n_head=4, **IDS))
    elif kind == "sliding":
        model = MistralForCausalLM(MistralConfig(**ROTARY, **IDS, sliding_window=6))
    else:
        attention = {"attn_implementation": "eager"} if kind == "eager" else {}
        model = LlamaForCausalLM(LlamaConfig(**ROTARY, **IDS, **attention))
    policy = CausalLMPolicy(model, **options)
    if policy.has_critic:
        torch.nn.init.normal_(policy.value_head.weight)
    return policy


def prompts_of(lengths, seed=0):
    prompts = torch.full((len(lengths), max(lengths)), -1)
    for i, n in enumerate(lengths):
        prompts[i, :n] = torch.randint(1, V, (n,), generator=torch.Generator().manual_seed(seed + i))
    return prompts


RAGGED = prompts_of([1, 5, 3, 2, 2, 2, 6, 4, 1, 3, 5, 3, 2, 6, 4, 1, 1, 2, 7, 3, 2])  # the longest one comes late
EVEN = prompts_of([4] * 21)
GROUPS = prompts_of([3, 1, 5, 2, 4]).repeat_interleave(4, 0)
B = len(RAGGED)


def write(policy, prompts=RAGGED, seed=0, budget=T, **options):
    """What is written, and the state of the generator after it."""
    generator = torch.Generator().manual_seed(seed)
    return generate(policy, prompts, max_new_tokens=budget, generator=generator, **options), generator.get_state()


def assert_equal(got, expected):
    (written, state), (all_at_once, state_of_all) = got, expected
    assert written.completions.tolist() == all_at_once.completions.tolist()
    torch.testing.assert_close(written.logprobs, all_at_once.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(written.values, all_at_once.values, atol=1e-4, rtol=1e-4)
    assert state.equal(state_of_all)


CRITICS = {"gpt2": "shared", "llama": "separate", "eager": "shared"}
PROMPTS = {"ragged": RAGGED, "even": EVEN, "groups": GROUPS}
SLOTS = [1, 3, B, B + 5]
CASES = [
    pytest.param(kind, name, slots, marks=() if (i + j + k) % 3 == 0 else pytest.mark.slow)
    for (i, kind), (j, name), (k, slots) in product(enumerate(CRITICS), enumerate(PROMPTS), enumerate(SLOTS))
]
"""By default every pair of two of the three is there."""


@pytest.mark.parametrize(("kind", "prompts", "max_concurrent_rows"), CASES)
def test_slots_change_nothing_of_what_is_written(kind, prompts, max_concurrent_rows):
    policy, prompts = build(kind, critic=CRITICS[kind]), PROMPTS[prompts]
    expected = write(policy, prompts)
    lengths = (expected[0].completions >= 0).sum(1)
    assert lengths.min() < 6 < lengths.max()  # rows end at different times
    assert_equal(write(policy, prompts, max_concurrent_rows=max_concurrent_rows), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("max_concurrent_rows", [1, 4])
def test_what_slots_kept_is_what_a_full_forward_pass_says(kind, max_concurrent_rows):
    policy = build(kind)
    written, _ = write(policy, max_concurrent_rows=max_concurrent_rows)
    judged = policy.evaluate(RAGGED, written.completions)
    torch.testing.assert_close(written.logprobs, judged.logprobs, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(written.values, judged.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("max_concurrent_rows", [1, 4])
def test_likeliest_tokens_with_slots(max_concurrent_rows):
    policy = build("gpt2")
    got, expected = (write(policy, deterministic=True, max_concurrent_rows=n) for n in (max_concurrent_rows, None))
    assert_equal(got, expected)
    assert got[1].equal(torch.Generator().manual_seed(0).get_state())  # nothing was drawn


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 2.0], ids=["at once", "later", "much later", "when all ended"])
@pytest.mark.parametrize("critic", ["shared", "none"])
def test_when_prompts_join_changes_nothing(share, critic, monkeypatch):
    policy = build("llama", critic=critic, sampling=TokenSampling(temperature=1.2, top_k=9, min_new_tokens=2))
    expected = write(policy, seed=3)
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(compact_at=share))
    assert_equal(write(policy, seed=3, max_concurrent_rows=6), expected)


@pytest.mark.parametrize("budget", [1, 2, T])
@pytest.mark.parametrize("token", [EOS, 3], ids=["all end at once", "none ends"])
def test_edge_rows_with_slots(budget, token):
    policy = build("gpt2", sampling=TokenSampling(allowed_tokens=(token,)))
    assert_equal(write(policy, budget=budget, max_concurrent_rows=4), write(policy, budget=budget))


def test_the_cache_has_no_more_rows_than_slots_and_the_batch_stays_full(monkeypatch):
    policy = build("gpt2")
    caches, fed = [], []
    make, advance = decoder.new_cache, generation.Decoder.advance
    monkeypatch.setattr(decoder, "new_cache", lambda *args, **kw: (caches.append(make(*args, **kw)), caches[-1])[1])
    monkeypatch.setattr(
        generation.Decoder,
        "advance",
        lambda self, tokens, running: (fed.append((len(tokens), int(running.sum()))), advance(self, tokens, running))[
            1
        ],
    )
    prompts = RAGGED.repeat(8, 1)
    write(policy, prompts, max_concurrent_rows=32)
    assert len(caches) == 1
    for layer in caches[0].layers:
        assert layer.keys.shape == layer.values.shape == (32, 4, 7 + T - 1, 6)
    # A step that lets waiting prompts in first loses the rows that ended; none loses more than a sixteenth otherwise.
    assert all(running > (1 - 1 / 16) * rows for rows, running in fed)
    assert max(rows for rows, _ in fed) == 32
    assert fed[-1][0] < 8  # as the queue is empty, rows leave


def test_prompts_of_a_group_that_begin_together_are_read_once(monkeypatch):
    policy = build("gpt2")
    seen, forward = [], generation.Decoder._forward
    monkeypatch.setattr(
        generation.Decoder,
        "_forward",
        lambda self, *args, **kw: (seen.append(tuple(args[0].shape)), forward(self, *args, **kw))[1],
    )
    write(policy, GROUPS, max_concurrent_rows=8)
    assert seen[0] == (2, 3)


def test_slots_that_cannot_be_are_refused():
    for max_concurrent_rows in (0, -1):
        with pytest.raises(
            ValueError,
            match=f"max_concurrent_rows: expected 1 or more, or None for all, received {max_concurrent_rows}",
        ):
            write(build("gpt2"), max_concurrent_rows=max_concurrent_rows)
    policy = build("sliding")
    with pytest.raises(ValueError, match="received MistralForCausalLM: pass max_concurrent_rows=None"):
        write(policy, max_concurrent_rows=4)
    assert write(policy)[0].completions.shape == (B, T)


def test_prompts_are_prefilled_in_bounded_pieces(monkeypatch):
    policy = build("gpt2")
    expected, seen = write(policy, RAGGED), []
    policy.trunk.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(prefill_tokens=2 * RAGGED.shape[1]))
    assert_equal(write(policy, RAGGED), expected)
    assert max(seen) <= max(2 * RAGGED.shape[1], B)
