"""The language model as a policy: packing, time shift, distribution, precision (T1, T3, T8-T11, T15, T17, P13)."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    RwkvConfig,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.critic import start_critic
from agents.lm.sampling import TokenSampling, sample_tokens, token_logprobs, uniform
from textenvs.lm import sizes
from textenvs.lm.linear_kernels import padded_rows
from textenvs.lm.packed_forward import length_parts, pack_rows
from textenvs.tokens.rows import PAD

V, EOS = 31, 0
SPECIAL = dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS)


def gpt2(**options):
    torch.manual_seed(0)
    base = dict(vocab_size=V, n_positions=48, n_embd=24, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2LMHeadModel(GPT2Config(**(base | SPECIAL | options)))


def llama(**options):
    torch.manual_seed(0)
    base = dict(
        vocab_size=V, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(base | SPECIAL | options)))


def one_layer():
    return llama(num_hidden_layers=1)


@pytest.fixture(params=[gpt2, llama], ids=["gpt2", "llama"])
def model(request):
    return request.param()


def policy_of(model, **options):
    policy = CausalLMPolicy(model, **options)
    torch.manual_seed(1)
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


def ragged(num_rows=9, prompt_width=5, width=7, seed=0):
    """Prompts and completions of every length from 1 up, right-padded."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, V, (num_rows, prompt_width), generator=generator)
    actions = torch.randint(1, V, (num_rows, width), generator=generator)
    for i in range(num_rows):
        prompts[i, 1 + i % prompt_width :] = -1
        actions[i, 1 + (3 * i) % width :] = -1
    return prompts, actions


def by_hand(policy, prompt, action):
    """Log-probabilities and values of one row, one prefix at a time, straight from the transformers model."""
    logprobs, values = [], []
    row = prompt[prompt >= 0].tolist()
    for token in action[action >= 0].tolist():
        out = policy.model(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False)
        logprobs.append(torch.log_softmax(out.logits[0, -1].double(), -1)[token])
        values.append(policy.value_head(out.hidden_states[-1][0, -1])[0])
        row.append(token)
    return torch.stack(logprobs).float(), torch.stack(values)


def test_each_token_is_judged_from_its_prefix_and_nothing_else(model):
    policy = policy_of(model)
    prompts, actions = ragged()
    with torch.no_grad():
        judged = policy.evaluate(prompts, actions)
        for i in range(len(prompts)):
            logprobs, values = by_hand(policy, prompts[i], actions[i])
            torch.testing.assert_close(judged.logprobs[i, : len(logprobs)], logprobs, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(judged.values[i, : len(values)], values, atol=1e-5, rtol=1e-5)


def test_a_row_alone_is_judged_as_among_others_and_with_more_padding(model):
    policy = policy_of(model)
    prompts, actions = ragged()
    together = policy.evaluate(prompts, actions)
    wider = policy.evaluate(
        torch.nn.functional.pad(prompts, (0, 6), value=-1), torch.nn.functional.pad(actions, (0, 4), value=-1)
    )
    left = policy.evaluate(torch.nn.functional.pad(prompts, (6, 0), value=-1), actions)
    for i in range(len(prompts)):
        n = int((actions[i] >= 0).sum())
        alone = policy.evaluate(prompts[i : i + 1][:, prompts[i] >= 0], actions[i : i + 1, :n])
        for one, among, more, moved in zip(alone[:3], together[:3], wider[:3], left[:3], strict=True):
            for other in (among, more, moved):
                torch.testing.assert_close(one[0], other[i, :n], atol=1e-5, rtol=1e-5)


def test_changing_token_t_changes_nothing_at_or_before_t(model):
    policy = policy_of(model)
    prompts, actions = torch.full((1, 3), 5), torch.arange(1, 9)[None]
    before = policy.evaluate(prompts, actions)
    changed = actions.clone()
    changed[0, 4] = 20
    after = policy.evaluate(prompts, changed)
    torch.testing.assert_close(before.logprobs[:, :4], after.logprobs[:, :4])
    torch.testing.assert_close(before.values[:, :5], after.values[:, :5])
    torch.testing.assert_close(before.entropy[:, :5], after.entropy[:, :5])
    assert not torch.allclose(before.values[:, 5:], after.values[:, 5:])


def test_masked_entries_are_zero_and_get_no_gradient(model):
    policy = policy_of(model)
    prompts, actions = ragged()
    mask = actions >= 0
    judged = policy.evaluate(prompts, actions.masked_fill(~mask, 7), mask)
    for got in judged[:3]:
        assert got[~mask].eq(0).all()
    plain = policy.evaluate(prompts, actions)
    torch.testing.assert_close(judged.logprobs, plain.logprobs)


def test_gradient_of_ragged_rows_is_the_sum_of_the_rows_own(model):
    policy = policy_of(model)
    prompts, actions = ragged()
    weights = torch.randn(actions.shape, generator=torch.Generator().manual_seed(2))

    def gradient(rows):
        policy.zero_grad()
        for index in rows:
            judged = policy.evaluate(prompts[index], actions[index])
            ((judged.logprobs + judged.values + judged.entropy) * weights[index]).sum().backward()
        return torch.cat([p.grad.flatten().clone() for p in policy.parameters()])

    whole = gradient([torch.arange(len(prompts))])
    pieces = gradient([torch.tensor([0, 5]), torch.tensor([7, 1, 2]), torch.tensor([3, 4, 6, 8])])
    torch.testing.assert_close(whole, pieces, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_texts_of_one_prompt_read_it_once_and_are_judged_as_each_alone(model, critic):
    policy = policy_of(model, critic=critic)
    prompts, actions = ragged(prompt_width=12)
    prompts = prompts[torch.tensor([7, 8, 7, 7, 8, 7, 8, 2, 7])]  # of 8, 9 and 3 tokens
    weights = torch.randn(actions.shape, generator=torch.Generator().manual_seed(2))
    tokens = []
    hook = policy.model.base_model.register_forward_pre_hook(
        lambda trunk, inputs, options: tokens.append(options["input_ids"].numel()), with_kwargs=True
    )

    def gradient(rows):
        policy.zero_grad()
        found = []
        for index in rows:
            judged = policy.evaluate(prompts[index], actions[index])
            ((judged.logprobs + judged.values + judged.entropy) * weights[index]).sum().backward()
            found.append(torch.stack([judged.logprobs, judged.values, judged.entropy]).detach())
        return torch.cat(found, 1), torch.cat([p.grad.flatten().clone() for p in policy.parameters()])

    together, sum_together = gradient([torch.arange(9)])
    hook.remove()
    written = int((actions >= 0).sum()) - 9  # the last token is never read
    assert tokens[-1] == padded_rows(8 + 9 + 3 + written)
    alone, sum_alone = gradient(torch.arange(9)[:, None])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sum_together, sum_alone, atol=1e-4, rtol=1e-4)


def test_length_parts_cover_each_row_once_at_sufficient_width():
    lengths = torch.randint(1, 200, (300,), generator=torch.Generator().manual_seed(0))
    order, parts = length_parts(lengths)
    assert sorted(order.tolist()) == list(range(300))
    assert [part[0] for part in parts] == [0, *[part[1] for part in parts[:-1]]]
    assert parts[-1][1] == 300
    assert len(parts) > 1
    for begin, end, width in parts:
        assert int(lengths[order[begin:end]].max()) == width


def test_cutting_by_length_changes_no_number(model, monkeypatch):
    policy = policy_of(model)
    prompts, actions = ragged()
    one_part = policy.evaluate(prompts, actions)
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(pass_overhead=0))
    many_parts = policy.evaluate(prompts, actions)
    torch.testing.assert_close(one_part, many_parts, atol=1e-5, rtol=1e-5)


def test_logits_in_pieces_are_the_same_with_their_gradient(model, monkeypatch):
    policy = policy_of(model)
    prompts, actions = ragged()

    def run():
        policy.zero_grad()
        judged = policy.evaluate(prompts, actions)
        (judged.logprobs.sum() + 0.3 * judged.entropy.sum() + judged.values.sum()).backward()
        return judged.logprobs.detach(), [p.grad.clone() for p in policy.parameters()]

    whole = run()
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(logits=5 * V))
    monkeypatch.setattr("agents.lm.fused_logprobs.FEWEST_ROWS", 1)
    # Gradients of about 3 are float32 sums taken in another order: a few units in the last place each.
    torch.testing.assert_close(whole, run(), rtol=1e-5, atol=5e-5)


def test_dropout_stays_off_whatever_is_called():
    policy = policy_of(gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5), critic="separate")
    policy.train()
    assert not any(module.training for module in policy.modules())
    prompts, actions = ragged()
    torch.testing.assert_close(policy.evaluate(prompts, actions), policy.evaluate(prompts, actions))


@pytest.mark.parametrize("sampling", [TokenSampling(), TokenSampling(top_k=V)], ids=["plain", "filtered"])
def test_log_softmax_is_taken_in_float32_when_the_model_is_not(sampling):
    policy = policy_of(gpt2().to(torch.bfloat16), sampling=sampling)
    prompts, actions = ragged()
    judged = policy.evaluate(prompts, actions)
    assert judged.logprobs.dtype == judged.values.dtype == torch.float32
    row, action = prompts[8][prompts[8] >= 0], actions[8][actions[8] >= 0]
    tokens = torch.cat([row, action])[None, :-1]
    logits = policy.model(input_ids=tokens).logits[0, len(row) - 1 :]
    expected = torch.log_softmax(logits.float(), -1).gather(-1, action[:, None])[:, 0]
    # One rounding of bfloat16 logits may differ between row widths; 2^-8 relative of logits near 4.
    torch.testing.assert_close(judged.logprobs[8, : len(action)], expected, atol=0.05, rtol=0)


def test_entropy_lies_between_zero_and_log_v(model):
    prompts, actions = ragged()
    entropy = policy_of(model).evaluate(prompts, actions).entropy[actions >= 0]
    assert (entropy >= 0).all()
    assert (entropy <= math.log(V) + 1e-5).all()
    torch.testing.assert_close(
        token_logprobs(torch.zeros(2, V), torch.tensor([3, 4]))[1], torch.full((2,), math.log(V))
    )


def test_separate_critic_leaves_the_policy_alone_and_starts_at_its_trunk(model):
    policy = CausalLMPolicy(model, critic="separate")
    prompts, actions = ragged()
    policy.evaluate(prompts, actions).values.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in policy.model.parameters())
    torch.testing.assert_close(policy.critic_trunk.state_dict(), model.base_model.state_dict())
    critic = {id(p) for p in policy.critic_parameters()}
    assert critic.isdisjoint({id(p) for p in model.parameters()})


def test_values_of_states_equal_the_values_evaluate_gives(model):
    for critic in ("shared", "separate"):
        policy = policy_of(model, critic=critic)
        prompts, actions = ragged()
        judged = policy.evaluate(prompts, actions).values
        for t in (0, 2):
            rows = (actions >= 0).sum(1) > t
            states = pack_rows(prompts[rows], actions[rows, :t])
            torch.testing.assert_close(policy.values(states), judged[rows, t], atol=1e-5, rtol=1e-5)


def test_act_draws_from_the_distribution_that_evaluate_judges(model):
    policy = policy_of(model, sampling=TokenSampling(temperature=0.7, top_k=9, top_p=0.9))
    prompts, _ = ragged()
    tokens, logprobs = policy.act(prompts, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(policy.evaluate(prompts, tokens[:, None]).logprobs[:, 0], logprobs, atol=1e-5, rtol=1e-5)
    greedy, _ = policy.act(prompts, deterministic=True)
    assert greedy.tolist() == [policy.model(input_ids=p[p >= 0][None]).logits[0, -1].argmax().item() for p in prompts]


def test_act_refuses_a_shortest_length_it_cannot_count():
    with pytest.raises(ValueError, match="min_new_tokens"):
        policy_of(gpt2(), sampling=TokenSampling(min_new_tokens=2)).act(torch.ones(1, 2, dtype=torch.long))


def test_without_a_critic_there_is_no_value_head_and_the_rest_is_the_same(model):
    prompts, actions = ragged()
    expected = policy_of(model).evaluate(prompts, actions)
    policy = CausalLMPolicy(model, critic="none")
    assert [name for name, _ in policy.named_parameters() if not name.startswith("model.")] == []
    got = policy.evaluate(prompts, actions)
    assert torch.equal(got.logprobs, expected.logprobs)
    assert not got.values.any()
    assert policy.critic_parameters() == []


@pytest.mark.parametrize("at_once", [2**26, 4 * V * 5], ids=["whole", "in pieces"])
def test_the_exact_kl_to_a_reference_by_enumeration(model, at_once, monkeypatch):
    reference = CausalLMPolicy(copy.deepcopy(model), critic="none")
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1)
    policy = policy_of(model, sampling=TokenSampling(temperature=0.7))
    prompts, actions = ragged()
    monkeypatch.setattr(sizes, "CPU", sizes.CPU._replace(logits=at_once))
    monkeypatch.setattr("agents.lm.fused_logprobs.FEWEST_ROWS", 1)
    judged = policy.evaluate(prompts, actions, reference=reference)
    expected = torch.zeros(actions.shape)
    for i, (prompt, action) in enumerate(zip(prompts, actions, strict=True)):
        row = torch.cat([prompt[prompt >= 0], action[action >= 0]])[None]
        first, last = int((prompt >= 0).sum()) - 1, row.shape[1] - 1
        ours = (model(input_ids=row).logits[0, first:last] / 0.7).log_softmax(-1)
        theirs = reference.model(input_ids=row).logits[0, first:last].log_softmax(-1)
        expected[i, : last - first] = (ours.exp() * (ours - theirs)).sum(-1)
    torch.testing.assert_close(judged.kl, expected, atol=1e-5, rtol=1e-4)
    parameter = model.get_output_embeddings().weight
    (gradient,) = torch.autograd.grad(judged.kl.sum(), parameter)
    (by_hand,) = torch.autograd.grad(expected.sum(), parameter)
    torch.testing.assert_close(gradient, by_hand, atol=1e-4, rtol=1e-3)
    assert all(p.grad is None for p in reference.parameters())
    assert policy.evaluate(prompts, actions).kl is None


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="critic"):
        CausalLMPolicy(gpt2(), critic="twin")
    with pytest.raises(ValueError, match="99"):
        CausalLMPolicy(gpt2(), eos_token_id=99)
    with pytest.raises(ValueError, match=rf"allowed_tokens: expected tokens in \[0, {V}\), received {V}"):
        CausalLMPolicy(gpt2(), sampling=TokenSampling(allowed_tokens=(V, 3)))
    CausalLMPolicy(gpt2(), sampling=TokenSampling(allowed_tokens=(0, V - 1)))
    with pytest.raises(ValueError, match="no end-of-text"):
        CausalLMPolicy(gpt2(eos_token_id=None))
    with pytest.raises(ValueError, match="empty"):
        policy_of(gpt2()).evaluate(torch.full((1, 2), -1), torch.ones(1, 2, dtype=torch.long))


def granite():
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0))


def cohere():
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25))


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=6, final_logit_softcapping=0.5))


SMALL = dict(
    vocab_size=V, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, eos_token_id=EOS, initializer_range=0.5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("build", "transform"), [(granite, (1 / 8, None)), (cohere, (0.25, None)), (gemma2, (1.0, 0.5))]
)
@pytest.mark.parametrize(
    "sampling", [TokenSampling(temperature=0.7), TokenSampling(top_k=V)], ids=["plain", "filtered"]
)
def test_scaled_and_capped_logits_are_computed_as_the_model_does(build, transform, sampling):
    torch.manual_seed(0)
    model = build().eval()
    policy = CausalLMPolicy(model, sampling=sampling)
    found = policy.transform
    assert (found.scale, found.cap) == (pytest.approx(transform[0], rel=1e-5), pytest.approx(transform[1]))
    prompts, actions = ragged()
    judged = policy.evaluate(prompts, actions)
    for i, (prompt, action) in enumerate(zip(prompts, actions, strict=True)):
        prompt, action = prompt[prompt >= 0], action[action >= 0]
        logits = model(input_ids=torch.cat([prompt, action])[None]).logits[0, len(prompt) - 1 : -1]
        expected = (logits / sampling.temperature).log_softmax(-1).gather(1, action[:, None])[:, 0]
        torch.testing.assert_close(judged.logprobs[i, : len(action)], expected, atol=1e-5, rtol=1e-5)
    parameter = policy.output_layer.weight
    (gradient,) = torch.autograd.grad(judged.logprobs.sum() + 0.3 * judged.entropy.sum(), parameter)
    assert gradient.abs().max() > 1e-3


def test_logits_that_are_changed_in_another_way_are_refused():
    model = gpt2()
    model.register_forward_hook(
        lambda module, inputs, output: CausalLMOutputWithPast(logits=output.logits.clamp(max=3.0))
    )
    with pytest.raises(ValueError, match="or scaled, or with a soft cap"):
        policy_of(model)


def test_a_model_that_sees_later_tokens_is_refused():
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(vocab_size=V, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ValueError, match="expected a causal model, received BertLMHeadModel"):
        CausalLMPolicy(BertLMHeadModel(config).eval(), eos_token_id=EOS)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_values_and_logprobs_alone_are_those_of_the_whole_evaluation(critic):
    torch.manual_seed(0)
    policy = CausalLMPolicy(gpt2(), critic=critic)
    nn.init.normal_(policy.value_head.weight)
    prompts, completions = torch.tensor([[3, 4, PAD], [5, 6, 7]]), torch.tensor([[8, 9, EOS], [4, EOS, PAD]])
    whole = policy.evaluate(prompts, completions)
    torch.testing.assert_close(policy.completion_values(prompts, completions), whole.values.detach())
    torch.testing.assert_close(policy.completion_logprobs(prompts, completions), whole.logprobs.detach())


@pytest.mark.parametrize(
    ("build", "critic"),
    [
        pytest.param(gpt2, "separate", marks=pytest.mark.slow),
        pytest.param(llama, "shared", marks=pytest.mark.slow),
        pytest.param(one_layer, "shared", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_trunk_gives_the_same_for_rows_of_any_length_and_its_own_copy(build, critic, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced, not translated
    plain, compiled = CausalLMPolicy(build(), critic=critic), CausalLMPolicy(build(), critic=critic, compile=True)
    for width in (2, 5):
        rows = torch.arange(1, 2 * (width + 2) + 1).view(2, -1) % V
        results = [policy.evaluate(rows[:, :2], rows[:, 2:]) for policy in (plain, compiled)]
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
    results[1].logprobs.sum().backward()
    assert compiled.model.get_input_embeddings().weight.grad is not None
    twin = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in compiled.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin.evaluate(rows[:, :2], rows[:, 2:]).logprobs, results[0].logprobs)


# -- the token distribution --------------------------------------------------------------------------------------------


def test_rows_worked_on_a_few_at_a_time_are_the_same_rows(monkeypatch):
    logits = torch.randn(11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[3, 2] = -math.inf
    tokens = torch.arange(11) % 7
    expected = logits.log_softmax(-1)
    probabilities = expected.exp()
    entropy = -torch.where(probabilities > 0, probabilities * expected, 0).sum(-1)
    for entries in (1, 21, 1000):
        monkeypatch.setattr("textenvs.lm.sizes.CPU", sizes.CPU._replace(part_logits=entries))
        logprobs, found = token_logprobs(logits, tokens)
        torch.testing.assert_close(logprobs, expected.gather(1, tokens[:, None])[:, 0])
        torch.testing.assert_close(found, entropy)


def test_token_logprobs_gradients_are_those_of_finite_differences():
    logits = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, torch.tensor([0, 5, 2, 2, 1])), (logits,))


def test_forbidden_tokens_have_probability_zero_and_finite_entropy():
    sampling = TokenSampling(allowed_tokens=(1, 2, 4), min_new_tokens=3)
    logits = torch.randn(4, V, generator=torch.Generator().manual_seed(0), requires_grad=True)
    shaped = sampling.shape(logits, torch.tensor([0, 2, 3, 9]), eos_token_id=4)
    assert (shaped > -math.inf).sum(-1).tolist() == [2, 2, 3, 3]
    logprobs, entropy = token_logprobs(shaped, torch.tensor([1, 2, 4, 1]))
    (logprobs.sum() + entropy.sum()).backward()
    assert logits.grad.isfinite().all()
    assert (entropy <= math.log(3)).all()
    assert logits.grad[:, 5:].eq(0).all()


def test_nothing_left_to_sample_raises():
    with pytest.raises(ValueError, match="forbidden"):
        TokenSampling(allowed_tokens=(4,), min_new_tokens=1).shape(torch.zeros(1, V), 0, eos_token_id=4)


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_top_k_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = lambda **options: (TokenSampling(**options).shape(logits, 0, 0) > -math.inf)[0].tolist()  # noqa: E731
    assert kept(top_p=0.79) == [True, True, False, False]
    assert kept(top_p=0.81) == [True, True, True, False]
    assert kept(top_p=0.01) == [True, False, False, False]
    assert kept(top_k=1) == [True, False, False, False]
    assert kept(top_k=3, top_p=0.84) == [True, True, False, False]  # of the kept mass 0.95, 0.8 / 0.95 = 0.842


def test_a_token_that_was_taken_stays_in_the_set():
    logits = torch.tensor([[4.0, 3.0, 0.0]])
    shaped = TokenSampling(top_k=1).shape(logits, 0, 0, taken=torch.tensor([2]))
    assert (shaped > -math.inf).tolist() == [[True, False, True]]


def test_draws_follow_the_distribution_and_never_take_what_is_impossible():
    logits = torch.tensor([-math.inf, 0.2, -math.inf, 1.0, -math.inf]).expand(20_001, 5)
    noise = torch.linspace(0, 1 - 2**-24, 20_001)
    tokens, logprobs = sample_tokens(logits, noise)
    share = (tokens == 3).float().mean().item()
    assert set(tokens.tolist()) == {1, 3}
    assert share == pytest.approx(1 / (1 + math.exp(-0.8)), abs=2e-4)
    assert logprobs[tokens == 3][0].item() == pytest.approx(-math.log(1 + math.exp(-0.8)), abs=1e-6)


def test_every_token_of_a_long_tail_can_be_drawn():
    """1,000 tokens share a mass of 1e-6 behind one likely token; each is met by a level in the middle of its mass."""
    tail, size = 1e-6, 1_000
    probabilities = torch.tensor([1 - tail] + [tail / size] * size, dtype=torch.float64)
    levels = (1 - tail) + tail * (torch.arange(size, dtype=torch.float64) + 0.5) / size
    # float32 log-probabilities put the tail's border off by some 6e-8 of the whole, so give it exactly: in float64.
    tokens, _ = sample_tokens(probabilities.log().expand(size, -1), levels)
    assert tokens.tolist() == list(range(1, size + 1))


def test_uniform_numbers_have_the_steps_of_float64():
    numbers = uniform(1_000, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert numbers.dtype == torch.float64
    assert (numbers.float().double() != numbers).float().mean() > 0.99


def test_logits_that_are_no_numbers_are_told():
    with pytest.raises(FloatingPointError, match="expected finite logits"):
        sample_tokens(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"min_new_tokens": -1}, {"allowed_tokens": ()}]
)
def test_impossible_sampling_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TokenSampling(**options)


def test_an_id_that_would_count_from_the_end_is_refused():
    with pytest.raises(ValueError, match="allowed_tokens: expected a token or more, each >= 0"):
        TokenSampling(allowed_tokens=(3, -1))


def test_a_critic_that_begins_as_another_model_values_states_as_its_head_does(model):
    policy = CausalLMPolicy(model, critic="separate")
    other = copy.deepcopy(model.base_model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    weight, generator = torch.randn(1, 24), torch.Generator().manual_seed(3)
    start_critic(policy, weight, -0.5, other)
    prompts, actions = ragged()
    values = policy.completion_values(prompts, actions)
    for row, (prompt, action) in enumerate(zip(prompts, actions, strict=True)):
        prompt, action = prompt[prompt != PAD], action[action != PAD]
        for t in range(len(action)):
            hidden = other(input_ids=torch.cat([prompt, action[:t]])[None]).last_hidden_state[0, -1]
            assert values[row, t].item() == pytest.approx(float(hidden.detach() @ weight[0]) - 0.5, abs=1e-4)
    with torch.no_grad():  # a copy: what happens to the other model concerns the critic no more
        other.get_input_embeddings().weight.normal_(generator=generator)
    torch.testing.assert_close(policy.completion_values(prompts, actions), values, rtol=0, atol=0)


def test_a_critic_begins_as_nothing_that_does_not_fit(model):
    weight = torch.ones(1, 24)
    for critic in ("shared", "none"):
        with pytest.raises(ValueError, match=f"own weights, received '{critic}'"):
            start_critic(CausalLMPolicy(copy.deepcopy(model), critic=critic), weight, 0.0, model.base_model)
    policy = CausalLMPolicy(model, critic="separate")
    with pytest.raises(ValueError, match=r"weight: expected \(1, 24\), received \(1, 25\)"):
        start_critic(policy, torch.ones(1, 25), 0.0, model.base_model)
    with pytest.raises(ValueError, match="trunk: expected the shape"):
        start_critic(policy, weight, 0.0, nn.Linear(2, 2))


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=0),
        RwkvConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2, eos_token_id=0),
    ],
    ids=["mamba", "rwkv"],
)
def test_a_model_without_keys_and_values_is_refused_at_the_door(config):
    with pytest.raises(ValueError, match=r"key-value cache .*, received (Mamba|Rwkv)ForCausalLM"):
        CausalLMPolicy(AutoModelForCausalLM.from_config(config))
