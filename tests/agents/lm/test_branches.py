"""Branches read side by side are what whole rows read one by one are, and their draws are the policy's."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from agents.lm.branches import branch_states, draw_branches
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decision_states import Decisions
from agents.lm.sampling import TokenSampling, uniform
from textenvs.tokens.rows import PAD

EOS, V = 0, 11
SPECIAL = dict(vocab_size=V, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, initializer_range=0.5)
SIZES = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
PROMPTS = torch.tensor([[3, 5, PAD], [4, 2, 6], [1, PAD, PAD]])
COMPLETIONS = torch.tensor([[7, 2, EOS, PAD], [5, 5, 1, 3], [EOS, PAD, PAD, PAD]])


def policy_of(family, critic="separate", **options):
    torch.manual_seed(0)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=2, **SPECIAL))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=16, **SIZES, **SPECIAL))
    else:
        model = MistralForCausalLM(MistralConfig(max_position_embeddings=16, sliding_window=2, **SIZES, **SPECIAL))
    policy = CausalLMPolicy(model, eos_token_id=EOS, critic=critic, **options)
    if policy.has_critic:
        torch.nn.init.normal_(policy.value_head.weight)
    return policy


def noise(states, count):
    return uniform(states * count, torch.Generator().manual_seed(0), torch.device("cpu")).view(states, count)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_branch_is_read_as_the_row_that_ends_with_it(family):
    policy, mask = policy_of(family), COMPLETIONS != PAD
    decisions = Decisions.find(PROMPTS, COMPLETIONS, mask)
    tokens = torch.randint(V, (int(mask.sum()), 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = branch_states(policy.critic_trunk, decisions, tokens)
        places = zip(decisions.row.tolist(), decisions.position.tolist(), strict=True)
        for number, (row, position) in enumerate(places):
            prefix = decisions.rows[row, : position + 1].expand(3, -1)
            whole = torch.cat([prefix, tokens[number][:, None]], dim=1)
            mask_of_all = torch.ones_like(whole)
            read = policy.critic_trunk(input_ids=whole, attention_mask=mask_of_all, use_cache=False)
            torch.testing.assert_close(found[number], read.last_hidden_state[:, -1], rtol=1e-4, atol=1e-5)


def test_a_model_with_a_window_is_refused():
    decisions = Decisions.find(PROMPTS, COMPLETIONS, COMPLETIONS != PAD)
    with pytest.raises(ValueError, match="branches: expected a model whose layers attend to all earlier tokens"):
        branch_states(policy_of("mistral").critic_trunk, decisions, torch.zeros(8, 2, dtype=torch.int64))


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_draws_have_the_probabilities_of_both_models_and_the_values_of_what_follows(critic):
    policy, reference = policy_of("gpt2", critic, sampling=TokenSampling(temperature=0.7)), policy_of("llama", "none")
    mask = COMPLETIONS != PAD
    drawn = draw_branches(policy, reference, PROMPTS, COMPLETIONS, mask, noise=noise(8, 4))
    for row, prompt in enumerate(PROMPTS):
        prompt = prompt[prompt != PAD]
        for step in range(int(mask[row].sum())):
            prefix = torch.cat([prompt, COMPLETIONS[row, :step]])
            with torch.no_grad():
                ours = torch.log_softmax(policy.model(prefix[None]).logits[0, -1] / 0.7, -1)
                theirs = torch.log_softmax(reference.model(prefix[None]).logits[0, -1], -1)
            tokens = drawn.tokens[row, step]
            for found, expected in ((drawn.logprobs, ours), (drawn.ref_logprobs, theirs)):
                torch.testing.assert_close(found[row, step], expected[tokens], rtol=1e-4, atol=1e-5)
            after = torch.cat([prefix.expand(4, -1), tokens[:, None]], dim=1)
            torch.testing.assert_close(drawn.values[row, step], policy.values(after), rtol=1e-4, atol=1e-5)
            assert torch.equal(drawn.ends[row, step], tokens == EOS)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    policy = policy_of("gpt2")
    count = 4_000
    one = torch.tensor([[3, 5]]), torch.tensor([[7]])
    drawn = draw_branches(policy, policy, *one, torch.tensor([[True]]), noise=noise(1, count))
    with torch.no_grad():
        likely = torch.softmax(policy.model(one[0]).logits[0, -1], -1)
    share = torch.bincount(drawn.tokens.flatten(), minlength=V) / count
    deviation = (likely * (1 - likely) / count).sqrt()
    assert bool(((share - likely).abs() < 4 * deviation + 1e-6).all())
    assert math.isclose(float(share.sum()), 1.0, rel_tol=1e-6)


def test_evaluating_them_gives_the_log_probabilities_that_were_drawn():
    policy, mask = policy_of("gpt2"), COMPLETIONS != PAD
    drawn = draw_branches(policy, policy, PROMPTS, COMPLETIONS, mask, noise=noise(8, 3))
    with_them = policy.evaluate(PROMPTS, COMPLETIONS, mask, branches=drawn.tokens)
    without = policy.evaluate(PROMPTS, COMPLETIONS, mask)
    torch.testing.assert_close(with_them.branch_logprobs, drawn.logprobs, rtol=1e-4, atol=1e-5)
    for name in ("logprobs", "entropy", "values"):
        torch.testing.assert_close(getattr(with_them, name), getattr(without, name), rtol=1e-4, atol=1e-5)
    assert without.branch_logprobs is None
