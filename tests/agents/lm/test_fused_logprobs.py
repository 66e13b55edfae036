"""A linear layer and the distribution behind it in one step equal the two of them, forward and backward."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.fused_logprobs import linear_token_logprobs
from agents.lm.sampling import TokenSampling
from textenvs.lm import linear_kernels as kernels
from textenvs.lm.sizes import CPU
from textenvs.tokens.rows import PAD

N, D, V = 23, 6, 11
TOKENS = torch.arange(N) % V
SIZES = dict(vocab_size=V, n_positions=9, n_embd=8, n_layer=1, n_head=2)


def parts(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def by_definition(hidden, weight, temperature):
    """Log-probabilities and entropies as torch's autograd has them."""
    logprobs = (hidden @ weight.t() / temperature).log_softmax(-1)
    return logprobs.gather(1, TOKENS[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(
    ("rows_at_a_time", "rows_of_a_product", "rows_of_a_piece"),
    [(1, 1, 100), (4, 128, 100), (4, 10, 100), (100, 8, 100), (1, 2, 5), (4, 3, 8), (100, 100, 22)],
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("of_entropy", [0.0, 0.3])
@pytest.mark.parametrize("of_logprob", [0.0, 1.0])
def test_values_and_gradients(
    rows_at_a_time, rows_of_a_product, rows_of_a_piece, temperature, of_entropy, of_logprob, onednn, monkeypatch
):
    few = dict(part_logits=rows_at_a_time * V, product_rows=rows_of_a_product, logits=rows_of_a_piece * V)
    monkeypatch.setattr("textenvs.lm.sizes.CPU", CPU._replace(**few))
    monkeypatch.setattr("agents.lm.fused_logprobs.FEWEST_ROWS", 1)
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: onednn)
    weights = torch.linspace(-1.0, 2.0, N)
    results = []
    for compute, dtype in ((linear_token_logprobs, torch.float32), (None, torch.float64)):
        hidden, weight = parts(dtype)
        if compute is None:
            logprobs, entropy = by_definition(hidden, weight, temperature)
        else:
            logprobs, entropy = compute(hidden, weight, TOKENS, temperature=temperature)
        loss = sum(
            (share * weights.to(dtype) * part).sum()
            for share, part in ((of_logprob, logprobs), (of_entropy, entropy))
            if share
        )
        if of_logprob or of_entropy:
            loss.backward()
        results.append([logprobs, entropy, hidden.grad, weight.grad])
    for ours, exact in zip(*results, strict=True):
        assert (ours is None) == (exact is None)
        if ours is not None:
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(
        lambda hidden, weight: linear_token_logprobs(hidden, weight, TOKENS, temperature=1.3), parts()
    )


def test_a_near_certain_token_keeps_its_small_gradient():
    hidden, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[12.0], [0.0]])
    logprobs, entropy = linear_token_logprobs(hidden, weight, torch.tensor([0]))
    other = math.exp(-12) / (1 + math.exp(-12))
    torch.testing.assert_close(logprobs.item(), math.log1p(-other), rtol=2e-2, atol=0.0)
    torch.testing.assert_close(entropy.item(), 12 * other + math.log1p(math.exp(-12)), rtol=2e-2, atol=0.0)
    logprobs.sum().backward()
    torch.testing.assert_close(hidden.grad.item(), 12 * other, rtol=1e-2, atol=0.0)


def test_a_frozen_weight_gets_no_gradient_and_nothing_is_kept_where_none_is_asked_for():
    hidden, weight = parts()
    linear_token_logprobs(hidden, weight.detach(), TOKENS)[0].sum().backward()
    assert hidden.grad.abs().sum() > 0
    logprobs, entropy = linear_token_logprobs(hidden.detach(), weight.detach(), TOKENS)
    assert not logprobs.requires_grad
    torch.testing.assert_close((logprobs, entropy), by_definition(hidden.detach(), weight.detach(), 1.0))


@pytest.mark.parametrize("instructions", [False, True])
def test_in_autocast_the_product_is_rounded_and_the_rest_is_float32(instructions, monkeypatch):
    if instructions and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no instructions for bfloat16")
    monkeypatch.setattr(kernels, "half_is_faster", lambda dtype: instructions)
    (hidden, weight), weights = parts(torch.float32), torch.linspace(-1.0, 2.0, N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, entropy = linear_token_logprobs(hidden, weight, TOKENS, temperature=0.7)
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact_hidden, exact_weight = parts(torch.float32)
    half_hidden, half_weight = exact_hidden, exact_weight
    if instructions:  # what it multiplies is rounded, too
        half_hidden, half_weight = (part.bfloat16().float() for part in (exact_hidden, exact_weight))
    logits = (half_hidden @ half_weight.t()).bfloat16().float() / 0.7
    expected = logits.log_softmax(-1).gather(1, TOKENS[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, rtol=1e-2, atol=1e-2)
    assert (logprobs - expected).abs().median() < 1e-6  # a product may round the other way
    for result in (logprobs, expected):
        (result * weights).sum().backward()
    for ours, theirs in ((hidden, exact_hidden), (weight, exact_weight)):
        assert ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-2, atol=6e-2)


def test_a_policy_judges_alike_with_and_without_filters_that_filter_nothing():
    prompts, completions = torch.tensor([[3, 4], [5, PAD]]), torch.tensor([[6, 7, 8], [9, 1, PAD]])
    results = []
    for options in ({}, {"top_k": 10**6}):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=V, n_positions=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
        )
        policy = CausalLMPolicy(model, sampling=TokenSampling(temperature=0.7, **options))
        found = policy.evaluate(prompts, completions)
        (found.logprobs.sum() + 0.1 * found.entropy.sum()).backward()
        gradients = [part.grad for part in policy.model.parameters()]
        results.append([found.logprobs, found.entropy, policy.completion_logprobs(prompts, completions), *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
