"""One trunk for four models: adapters on and off, what is trained, what is kept (trap T13; absolute and rotary)."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.lora import POLICY, REFERENCE, VALUE, AdaptedTrunk, LoraOptions, RoleTrunk
from agents.runs import checkpoint
from textenvs.lm.linear_kernels import speed_up
from textenvs.lm.packed_forward import RECOMPUTED, can_pack

V, EOS = 29, 0
IDS = dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS, vocab_size=V, initializer_range=0.3)


def base_model(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_positions=40, n_embd=24, n_layer=2, n_head=4, **IDS)).eval()
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=40, **IDS,
        )
    ).eval()  # fmt: skip


@pytest.fixture(params=["gpt2", "llama"])
def kind(request):
    return request.param


def disturb(trunk, role, seed=1):
    """What training would do: B is 0 at the start, and then it is not."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trunk.parameters(role):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def adapted(kind, *, trained=True, critic="adapter", **options):
    trunk = AdaptedTrunk(base_model(kind), LoraOptions(rank=3, alpha=6), value=critic == "adapter")
    policy = CausalLMPolicy(trunk.model, critic=critic, adapters=trunk, **options)
    if trained:
        for i, role in enumerate(trunk.trained):
            disturb(trunk, role, i)
        torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(5))
    return policy, trunk


def reference_of(trunk):
    return CausalLMPolicy(trunk.model, adapters=trunk, role=trunk.reference)


def rows(num=7):
    generator = torch.Generator().manual_seed(0)
    prompts, actions = (torch.randint(1, V, (num, n), generator=generator) for n in (4, 6))
    for i in range(num):
        prompts[i, 1 + i % 4 :] = -1
        actions[i, 1 + (3 * i) % 6 :] = -1
    return prompts, actions


def test_policy_equals_the_merged_weights(kind):
    policy, trunk = adapted(kind)
    merged = CausalLMPolicy(trunk.merged())
    judged, plain = policy.evaluate(*rows()), merged.evaluate(*rows())
    # Two float32 products and a sum, or one: log-probs near 10 differ in their last places.
    torch.testing.assert_close(judged.logprobs, plain.logprobs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(judged.logprobs, reference_of(trunk).evaluate(*rows()).logprobs, atol=1e-2)
    assert not any("lora" in name for name in merged.model.state_dict())
    again = policy.evaluate(*rows())
    assert torch.equal(judged.logprobs, again.logprobs)  # merging was done on a copy


def test_adapters_off_is_the_base_model_bit_for_bit(kind):
    _, trunk = adapted(kind)
    ours, plain = reference_of(trunk).evaluate(*rows()), CausalLMPolicy(base_model(kind)).evaluate(*rows())
    assert torch.equal(ours.logprobs, plain.logprobs)
    for name, weight in base_model(kind).state_dict().items():
        inside = {key.replace(".base_layer", ""): value for key, value in trunk.model.state_dict().items()}
        assert torch.equal(inside[name], weight), name


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_kl_at_the_start_is_exactly_zero(kind, autocast):
    policy, trunk = adapted(kind, trained=False, autocast=autocast)
    reference = CausalLMPolicy(trunk.model, adapters=trunk, role=trunk.reference, autocast=autocast)
    assert torch.equal(policy.evaluate(*rows()).logprobs, reference.evaluate(*rows()).logprobs)


def test_the_role_comes_back_after_an_exception(kind):
    policy, trunk = adapted(kind)
    before = policy.evaluate(*rows()).logprobs
    with trunk.role(None):
        assert trunk.active is None
        with pytest.raises(ZeroDivisionError), trunk.role(VALUE):
            raise ZeroDivisionError
        assert trunk.active is None
    assert trunk.active == POLICY
    assert torch.equal(policy.evaluate(*rows()).logprobs, before)
    with pytest.raises(ValueError, match="empty"):
        policy.evaluate(torch.full((1, 2), -1), torch.ones(1, 2, dtype=torch.long))
    assert trunk.active == POLICY
    with pytest.raises(ValueError, match="'judge'"), trunk.role("judge"):
        pass


def test_values_come_from_the_trunk_under_the_values_own_adapter(kind):
    policy, trunk = adapted(kind)
    prompts, actions = rows()
    judged = policy.evaluate(prompts, actions)
    tokens = torch.cat([prompts[3][prompts[3] >= 0], actions[3][actions[3] >= 0]])[None, :-1]
    with trunk.role(VALUE):
        hidden = trunk.model(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0]
    expected = policy.value_head(hidden)[-int((actions[3] >= 0).sum()) :, 0]
    torch.testing.assert_close(judged.values[3][actions[3] >= 0], expected, atol=1e-5, rtol=1e-5)
    disturb(trunk, POLICY, 9)
    assert torch.equal(policy.evaluate(prompts, actions).values, judged.values)


@pytest.mark.parametrize("critic", ["shared", "adapter"])
def test_decoding_with_adapters_is_what_a_full_forward_pass_says(kind, critic):
    policy, trunk = adapted(kind, critic=critic)
    prompts, _ = rows(12)
    for writer in (policy, reference_of(trunk)):
        written = generate(writer, prompts, max_new_tokens=16, generator=torch.Generator().manual_seed(0))
        judged = writer.evaluate(prompts, written.completions)
        torch.testing.assert_close(written.logprobs, judged.logprobs, atol=3e-5, rtol=1e-5)
        torch.testing.assert_close(written.values, judged.values, atol=1e-4, rtol=1e-4)
        assert trunk.active == POLICY


def gradients(policy):
    policy.zero_grad()
    judged = policy.evaluate(*rows())
    (judged.logprobs.sum() + judged.values.sum()).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_only_adapters_and_head_are_trained_and_kept(kind, tmp_path):
    policy, _ = adapted(kind)
    found = gradients(policy)
    assert set(found) == {name for name, p in policy.named_parameters() if p.requires_grad} == set(policy.state_dict())
    assert all(".lora_" in name or name.startswith("value_head.") for name in found)
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    trained = [*policy.actor_parameters(), *policy.critic_parameters()]
    assert {id(p) for p in trained} == {id(p) for p in policy.parameters() if p.requires_grad}
    path = checkpoint.save(tmp_path / "agent.safetensors", {"policy": dict(policy.state_dict())})
    assert checkpoint.load(path)["policy"].keys() == found.keys()
    other, _ = adapted(kind, trained=False)
    other.load_state_dict(checkpoint.load(path)["policy"])
    assert torch.equal(other.evaluate(*rows()).values, policy.evaluate(*rows()).values)
    shared, _ = adapted(kind, critic="shared")
    with pytest.raises(RuntimeError, match="expected the keys of adapters"):
        shared.load_state_dict(policy.state_dict())


def test_gradients_are_the_merged_models_own_through_the_chain_rule(kind):
    policy, trunk = adapted(kind)
    found = gradients(policy)
    merged = CausalLMPolicy(trunk.merged().requires_grad_(True))
    merged.evaluate(*rows()).logprobs.sum().backward()
    module = "transformer.h.1.mlp.c_fc" if kind == "gpt2" else "model.layers.1.mlp.up_proj"
    of_weight = merged.model.get_submodule(module).weight.grad
    of_weight = of_weight.T if kind == "gpt2" else of_weight  # Conv1D keeps [in, out]
    a = trunk.model.get_submodule(module).lora_A[POLICY].weight
    expected = 2.0 * of_weight @ a.T  # W = W0 + (alpha / rank) B A, so dL/dB = (alpha / rank) dL/dW A^T
    torch.testing.assert_close(found[f"model.{module}.lora_B.{POLICY}.weight"], expected, atol=1e-4, rtol=1e-4)


def test_recomputed_layers_give_the_same_gradient_under_the_role_that_was_on(kind):
    expected = gradients(adapted(kind)[0])
    policy, trunk = adapted(kind, recompute=True)
    assert can_pack(trunk.model.base_model)  # which is found out by a pass of its own
    calls = []
    layer = next(module for module in trunk.model.modules() if hasattr(module, RECOMPUTED))
    inner = next(iter(layer.children()))
    inner.register_forward_hook(lambda *_: calls.append(trunk.active))
    got = gradients(policy)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert sorted(calls) == sorted([POLICY, VALUE] * 2)  # once forward, once more backward
    assert not any(module.training for module in policy.modules())
    written = generate(policy, rows()[0], max_new_tokens=5, deterministic=True)
    plain = generate(adapted(kind)[0], rows()[0], max_new_tokens=5, deterministic=True)
    assert written.completions.tolist() == plain.completions.tolist()


def test_a_starting_adapter_is_the_reference_and_a_copy_of_it_is_trained(kind, tmp_path):
    _, first = adapted(kind)
    expected = CausalLMPolicy(first.merged()).evaluate(*rows()).logprobs
    first.save(tmp_path / "start")
    trunk = AdaptedTrunk(base_model(kind), start=tmp_path / "start")
    policy, reference = CausalLMPolicy(trunk.model, critic="adapter", adapters=trunk), reference_of(trunk)
    assert trunk.reference == REFERENCE
    assert torch.equal(policy.evaluate(*rows()).logprobs, reference.evaluate(*rows()).logprobs)
    torch.testing.assert_close(reference.evaluate(*rows()).logprobs, expected, atol=1e-5, rtol=1e-5)
    frozen = [p.clone() for p in trunk.parameters(REFERENCE)]
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    gradients(policy)
    optimizer.step()
    assert all(torch.equal(p, was) for p, was in zip(trunk.parameters(REFERENCE), frozen, strict=True))
    torch.testing.assert_close(reference.evaluate(*rows()).logprobs, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(policy.evaluate(*rows()).logprobs, expected, atol=1e-3)
    assert not any(REFERENCE in name for name in policy.state_dict())


def test_what_is_saved_loads_in_peft_and_in_transformers(kind, tmp_path):
    policy, trunk = adapted(kind)
    trunk.save(tmp_path / "adapter")
    trunk.merged().save_pretrained(tmp_path / "model")
    base_model(kind).save_pretrained(tmp_path / "base")
    tokens = torch.tensor([[3, 5, 7, 2]])
    ours = policy.model(input_ids=tokens).logits
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(by_peft.eval()(input_ids=tokens).logits, ours, atol=1e-5, rtol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(plain(input_ids=tokens).logits, ours, atol=1e-4, rtol=1e-5)


def test_a_frozen_role_is_played_by_a_loaded_adapter(kind, tmp_path):
    _, other = adapted(kind)
    other.save(tmp_path / "reward")
    _, trunk = adapted(kind, trained=False)
    trunk.load(tmp_path / "reward", "reward")
    backbone = RoleTrunk(trunk, "reward")
    assert list(backbone.parameters()) == []
    tokens = torch.tensor([[3, 5, 7, 2]])
    got = backbone(tokens, torch.ones_like(tokens)).last_hidden_state
    with other.role(POLICY):
        expected = other.model.base_model(input_ids=tokens).last_hidden_state
    assert torch.equal(got, expected)
    assert trunk.active == POLICY
    assert {name for name, p in trunk.model.named_parameters() if p.requires_grad and "reward" in name} == set()
    with pytest.raises(ValueError, match="which is trained"):
        trunk.load(tmp_path / "reward", POLICY)


def test_a_loaded_adapter_works_also_where_the_policy_has_none(tmp_path):
    def saved(targets, name):
        config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=True)
        model = get_peft_model(base_model("gpt2"), config)
        for parameter in (p for name, p in model.named_parameters() if ".lora_" in name):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
        model.save_pretrained(str(tmp_path / name))
        return tmp_path / name

    trunk = AdaptedTrunk(base_model("gpt2"), start=saved(["c_attn"], "start"))
    tokens = torch.tensor([[3, 4, 5]])
    policys = trunk.model(input_ids=tokens).logits
    trunk.load(saved("all-linear", "reward"), "reward")
    assert torch.equal(trunk.model(input_ids=tokens).logits, policys)
    alone = PeftModel.from_pretrained(base_model("gpt2"), str(tmp_path / "reward")).eval()
    speed_up(alone)  # as the trunk is: so equal means to the bit
    with trunk.role("reward"):
        assert torch.equal(trunk.model(input_ids=tokens).logits, alone(input_ids=tokens).logits)


def test_a_bfloat16_trunk_keeps_float32_adapters_log_probs_and_values(kind):
    trunk = AdaptedTrunk(base_model(kind).to(torch.bfloat16), LoraOptions(rank=3))
    policy = CausalLMPolicy(trunk.model, critic="adapter", adapters=trunk, autocast=torch.bfloat16)
    torch.nn.init.normal_(policy.value_head.weight)
    judged = policy.evaluate(*rows())
    assert judged.logprobs.dtype == judged.values.dtype == judged.entropy.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in policy.parameters() if p.requires_grad)
    assert all(gradient.isfinite().all() for gradient in gradients(policy).values())
    plain = CausalLMPolicy(base_model(kind)).evaluate(*rows())
    # bfloat16 has 8 bits: logits near 4 are off by 1/64 each.
    torch.testing.assert_close(judged.logprobs, plain.logprobs, atol=0.3, rtol=0)
    merged = trunk.merged()
    assert merged.dtype == torch.float32


def test_the_same_seed_makes_the_same_adapters_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    one = AdaptedTrunk(base_model("gpt2"), LoraOptions(seed=4))
    torch.manual_seed(8)
    state = torch.get_rng_state()
    model = base_model("gpt2")
    state = torch.get_rng_state()
    two = AdaptedTrunk(model, LoraOptions(seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(POLICY), two.parameters(POLICY), strict=True))
    assert not torch.equal(one.parameters(POLICY)[0], AdaptedTrunk(base_model("gpt2")).parameters(POLICY)[0])


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="rank"):
        LoraOptions(rank=0)
    with pytest.raises(ValueError, match="alpha"):
        LoraOptions(alpha=0.0)
    with pytest.raises(ValueError, match="expected an adapter"):
        AdaptedTrunk(base_model("gpt2"), start=tmp_path)
    AdaptedTrunk(base_model("llama")).save(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"llama: expected an adapter of .*, received one of"):
        AdaptedTrunk(base_model("gpt2"), start=tmp_path / "llama")
    with pytest.raises(ValueError, match="expected adapters with one for the value"):
        CausalLMPolicy(base_model("gpt2"), critic="adapter")
    trunk = AdaptedTrunk(base_model("gpt2"), value=False)
    with pytest.raises(ValueError, match="one for the value"):
        CausalLMPolicy(trunk.model, critic="adapter", adapters=trunk)


@pytest.mark.parametrize("alpha", [6, 15])
def test_an_adapter_that_begins_as_another_changes_the_trunk_as_much_whatever_its_alpha(kind, alpha, tmp_path):
    other = AdaptedTrunk(base_model(kind), LoraOptions(rank=3, alpha=alpha), value=False)
    disturb(other, POLICY, 7)
    other.save(tmp_path / "adapter")
    _, trunk = adapted(kind)
    trunk.load(tmp_path / "adapter", "reward_0")
    trunk.copy_adapter("reward_0", VALUE)
    tokens = {"input_ids": torch.arange(1, 9)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    hidden = {role: RoleTrunk(trunk, role)(**tokens).last_hidden_state for role in (POLICY, VALUE, "reward_0")}
    torch.testing.assert_close(hidden[VALUE], hidden["reward_0"])
    assert not torch.allclose(hidden[POLICY], hidden["reward_0"], atol=1e-3)
    assert all(parameter.requires_grad for parameter in trunk.parameters(VALUE))
    assert trunk.active == POLICY


def test_an_adapter_of_another_rank_is_refused_by_both_ranks(kind, tmp_path):
    other = AdaptedTrunk(base_model(kind), LoraOptions(rank=2, alpha=6), value=False)
    other.save(tmp_path / "adapter")
    _, trunk = adapted(kind)
    trunk.load(tmp_path / "adapter", "reward_0")
    with pytest.raises(ValueError, match=r"ranks \{'reward_0': 2, 'value': 3\}"):
        trunk.copy_adapter("reward_0", VALUE)
