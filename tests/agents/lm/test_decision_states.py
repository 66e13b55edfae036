"""Context is what is not padding, a mask says what is learned from: any mask equals a plain forward pass (T1, T3)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.sampling import TokenSampling
from textenvs.tokens.rows import PAD

V, SPECIAL = 31, dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)


def gpt2(seed):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3, **SPECIAL)
    )


def llama(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3, **SPECIAL,
        )
    )  # fmt: skip


def policy_of(model, **options):
    policy = CausalLMPolicy(model, **options)
    for head in [policy.value_head] if policy.has_critic else []:
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
        head.to(model.dtype)
    return policy


@pytest.fixture(scope="module", params=["gpt2-shared-64", "gpt2-separate-32", "llama-shared-64", "llama-separate-64"])
def policies(request):
    """A policy, and another model as its reference."""
    kind, critic, bits = request.param.split("-")
    build, dtype = {"gpt2": gpt2, "llama": llama}[kind], {"64": torch.float64, "32": torch.float32}[bits]
    policy = policy_of(build(0).to(dtype), critic=critic)
    if critic == "separate":  # the trunk of another seed, or reading the policy's would go unseen
        policy.critic_trunk.load_state_dict(build(5).to(dtype).base_model.state_dict())
    return policy, policy_of(build(3).to(dtype), critic="none")


@st.composite
def batches(draw):
    """Prompts of 1 to 4 tokens (some alike), completions of 0 to 8, and any mask on the completions' tokens."""
    rows, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, V, (rows, 4), generator=generator)
    actions = torch.randint(1, V, (rows, 8), generator=generator)
    for i in range(rows):
        if i and draw(st.booleans()):
            prompts[i] = prompts[i - 1]
        else:
            prompts[i, draw(st.integers(1, 4)) :] = PAD
        actions[i, draw(st.integers(0, 8)) :] = PAD
    mask = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=rows, max_size=rows)))
    return prompts, actions, mask & (actions != PAD)


def plainly(model, prompt, completion):
    """Log-softmax ``[T, V]`` before each of the completion's tokens, by transformers alone on the whole row."""
    row = torch.cat([prompt[prompt != PAD], completion[completion != PAD]])
    behind = int((prompt != PAD).sum()) - 1
    out = model(input_ids=row[None], use_cache=False, output_hidden_states=True)
    return torch.log_softmax(out.logits[0, behind:-1], -1), out.hidden_states[-1][0, behind:-1]


@settings(max_examples=12, deadline=None)
@given(batch=batches())
def test_any_mask_gives_the_numbers_of_a_plain_pass_over_the_whole_row(policies, batch):
    (policy, reference), (prompts, actions, mask) = policies, batch
    if not mask.any():
        return
    with torch.no_grad():
        judged = policy.evaluate(prompts, actions, mask, reference)
        for i in range(len(prompts)):
            length = int((actions[i] != PAD).sum())
            logprobs, hidden = plainly(policy.model, prompts[i], actions[i])
            other, _ = plainly(reference.model, prompts[i], actions[i])
            if policy.critic_trunk is not None:
                row = torch.cat([prompts[i][prompts[i] != PAD], actions[i, :length]])
                hidden = policy.critic_trunk(input_ids=row[None], use_cache=False).last_hidden_state[0]
                hidden = hidden[len(row) - length - 1 : -1]
            expected = (
                logprobs.gather(1, actions[i, :length, None])[:, 0],
                -(logprobs.exp() * logprobs).sum(1),
                policy.value_head(hidden)[:, 0],
                (logprobs.exp() * (logprobs - other)).sum(1),
            )
            for got, right in zip(judged[:4], expected, strict=True):
                wanted = torch.zeros(8, dtype=right.dtype).masked_scatter(mask[i], right[mask[i, :length]])
                # Logits here reach some 30; thirty roundings of that size in the type that the number comes in.
                close = 1e3 * torch.finfo(got.dtype).eps
                torch.testing.assert_close(got[i].to(right.dtype), wanted, atol=close, rtol=close)


def test_the_shortest_length_counts_all_tokens_of_the_completion():
    model = gpt2(0)
    policy = policy_of(model, sampling=TokenSampling(min_new_tokens=2))
    prompts, actions = torch.tensor([[3, 4]]), torch.tensor([[5, 6, 7, 8]])
    whole = policy.evaluate(prompts, actions).logprobs
    part = policy.evaluate(prompts, actions, torch.tensor([[False, False, True, True]])).logprobs
    torch.testing.assert_close(part[:, 2:], whole[:, 2:])


def test_a_mask_over_padding_is_refused():
    with pytest.raises(ValueError, match="mask: expected False on padding"):
        policy_of(gpt2(0)).evaluate(torch.tensor([[3]]), torch.tensor([[5, PAD]]), torch.tensor([[True, True]]))
