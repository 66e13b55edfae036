"""Cached decoding equals full forward passes (trap T2), whatever the padding, compaction or cache; edge rows (T17)."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

import agents.lm.generation as generation
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.sampling import TokenSampling
from textenvs.lm import sizes
from textenvs.lm.kv_cache import PlainCache, new_cache

V, EOS = 23, 0
IDS = dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, vocab_size=V, initializer_range=0.3)
ROTARY = dict(
    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=48,
)  # fmt: skip


def build(kind, **options):
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=48, n_embd=24, n_layer=2, n_head=4, **IDS))
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**ROTARY, **IDS))
    elif kind == "eager":
        model = LlamaForCausalLM(LlamaConfig(**ROTARY, **IDS, attn_implementation="eager"))
    elif kind == "local":
        local = dict(attention_types=[[["global", "local"], 1]], window_size=6, max_position_embeddings=48)
        model = GPTNeoForCausalLM(GPTNeoConfig(hidden_size=24, num_layers=2, num_heads=4, **local, **IDS))
    elif kind == "mpt":
        model = MptForCausalLM(MptConfig(d_model=24, n_layers=2, n_heads=4, max_seq_len=48, **IDS))
    elif kind == "bloom":
        model = BloomForCausalLM(BloomConfig(hidden_size=24, n_layer=2, n_head=4, **IDS))
    else:
        model = MistralForCausalLM(MistralConfig(**ROTARY, **IDS, sliding_window=6))
    policy = CausalLMPolicy(model, **options)
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


def prompts_of(lengths, seed=0):
    prompts = torch.full((len(lengths), max(lengths)), -1)
    for i, n in enumerate(lengths):
        prompts[i, :n] = torch.randint(1, V, (n,), generator=torch.Generator().manual_seed(seed + i))
    return prompts


RAGGED = prompts_of([1, 5, 3, 7, 2, 2, 6, 4, 1, 7, 5, 3, 2, 6, 4, 1])
EVEN = prompts_of([4] * 16)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "eager", "sliding", "local", "mpt", "bloom"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("prompts", [RAGGED, EVEN], ids=["ragged", "even"])
def test_what_decoding_kept_is_what_a_full_forward_pass_says(kind, critic, prompts):
    policy = build(kind, critic=critic)
    written = generate(policy, prompts, max_new_tokens=20, generator=torch.Generator().manual_seed(2))
    lengths = (written.completions >= 0).sum(1)
    assert lengths.min() < 10 < lengths.max()  # some rows end early, so that rows left the batch on the way
    judged = policy.evaluate(prompts, written.completions)
    torch.testing.assert_close(written.logprobs, judged.logprobs, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(written.values, judged.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 2.0], ids=["at once", "later", "never"])
def test_when_rows_leave_the_batch_changes_nothing(share, monkeypatch):
    policy = build("gpt2")
    expected = generate(policy, RAGGED, max_new_tokens=20, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(compact_at=share))
    got = generate(policy, RAGGED, max_new_tokens=20, generator=torch.Generator().manual_seed(1))
    assert got.completions.tolist() == expected.completions.tolist()
    torch.testing.assert_close(got.logprobs, expected.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "eager", "sliding"])
def test_prompts_that_repeat_are_read_once_and_nothing_else_changes(kind, monkeypatch):
    policy = build(kind)
    # [3] and [3, 3] are different prompts that look alike once padding is filled in
    alike = torch.tensor([[3, -1], [3, 3], [7, 5]])
    prompts = torch.nn.functional.pad(alike, (0, 5), value=-1)
    prompts = torch.cat([RAGGED[:3], prompts]).repeat_interleave(4, 0)
    seen, forward = [], generation.Decoder._forward
    monkeypatch.setattr(
        generation.Decoder,
        "_forward",
        lambda self, *args, **kwargs: (seen.append(args[0].shape), forward(self, *args, **kwargs))[1],
    )
    shared = generate(policy, prompts, max_new_tokens=12, generator=torch.Generator().manual_seed(0))
    assert seen[0] == (6, 5)
    distinct = lambda rows, *args, **kwargs: (rows, torch.arange(len(rows)))  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "unique", distinct)
    alone = generate(policy, prompts, max_new_tokens=12, generator=torch.Generator().manual_seed(0))
    assert shared.completions.tolist() == alone.completions.tolist()
    torch.testing.assert_close(shared.logprobs, alone.logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared.values, alone.values, atol=1e-4, rtol=1e-4)


def test_a_row_writes_the_same_whatever_stands_beside_it():
    policy = build("llama")
    both = generate(policy, RAGGED, max_new_tokens=12, deterministic=True)
    for i in (0, 3, 9):
        alone = generate(policy, RAGGED[i : i + 1], max_new_tokens=12, deterministic=True)
        assert alone.completions[0].tolist() == both.completions[i].tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        TokenSampling(temperature=0.6),
        TokenSampling(temperature=1.7, top_k=5),
        TokenSampling(top_p=0.8),
        TokenSampling(min_new_tokens=6, allowed_tokens=(0, 1, 2, 3, 4, 5, 6)),
    ],
    ids=["cold", "top-k", "top-p", "shortest and allowed"],
)
def test_logged_is_behavior_is_evaluated_distribution(sampling):
    policy = build("gpt2", sampling=sampling)
    written = generate(policy, RAGGED, max_new_tokens=16, generator=torch.Generator().manual_seed(2))
    judged = policy.evaluate(RAGGED, written.completions)
    torch.testing.assert_close(written.logprobs, judged.logprobs, atol=3e-5, rtol=1e-5)
    mask = written.completions >= 0
    if sampling.min_new_tokens:
        assert mask.sum(1).min() >= sampling.min_new_tokens + 1
        assert set(written.completions[mask].tolist()) <= set(sampling.allowed_tokens)
    if sampling.top_k:
        assert (judged.entropy[mask] <= torch.tensor(5.0).log() + 1e-5).all()


def test_samples_follow_the_models_distribution():
    policy = build("gpt2")
    prompts = RAGGED[3:4].expand(4000, -1)
    first = generate(policy, prompts, max_new_tokens=1, generator=torch.Generator().manual_seed(0)).completions[:, 0]
    expected = policy.model(input_ids=RAGGED[3:4]).logits[0, -1].softmax(-1)
    share = torch.bincount(first, minlength=V) / 4000
    assert (share - expected).abs().max() < 4 * (expected.max() / 4000).sqrt()


def test_same_seed_same_text_and_another_seed_another():
    policy = build("gpt2")
    write = lambda seed: generate(  # noqa: E731
        policy, RAGGED, max_new_tokens=12, generator=torch.Generator().manual_seed(seed)
    ).completions.tolist()
    assert write(3) == write(3) != write(4)


def forced(token):
    """A policy that always says ``token``."""
    policy = build("gpt2", sampling=TokenSampling(allowed_tokens=(token,)))
    return policy


def test_edge_rows():
    at_once = generate(forced(EOS), RAGGED, max_new_tokens=5)
    assert at_once.completions[:, 0].eq(EOS).all()
    assert at_once.completions[:, 1:].eq(-1).all()
    never = generate(forced(3), RAGGED, max_new_tokens=5)
    assert never.completions.eq(3).all()
    full = prompts_of([40, 41])
    assert generate(forced(3), full, max_new_tokens=7).completions.shape == (2, 7)
    with pytest.raises(ValueError, match="at most 48 tokens"):
        generate(forced(3), full, max_new_tokens=8)
    with pytest.raises(ValueError, match="received prompt 1 empty"):
        generate(forced(3), torch.tensor([[4], [-1]]), max_new_tokens=2)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(forced(3), RAGGED, max_new_tokens=0)


def test_a_policy_without_end_of_text_always_uses_its_budget():
    policy = build("gpt2", eos_token_id=None)
    written = generate(policy, RAGGED, max_new_tokens=12, generator=torch.Generator().manual_seed(0))
    assert (written.completions >= 0).all()
    assert (written.completions == EOS).any()


@pytest.mark.parametrize("kind", ["sliding", "local", "mpt", "bloom"])
def test_models_that_mind_where_keys_stand_keep_transformers_own_cache_and_get_no_slots(kind):
    assert isinstance(new_cache(build("gpt2").model.base_model, max_concurrent_rows=2, capacity=4), PlainCache)
    policy = build(kind)
    assert not isinstance(new_cache(policy.model.base_model, max_concurrent_rows=2, capacity=4), PlainCache)
    with pytest.raises(ValueError, match=f"received {type(policy.model).__name__}: pass max_concurrent_rows=None"):
        generate(policy, RAGGED, max_new_tokens=20, max_concurrent_rows=3)
