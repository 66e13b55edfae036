"""A faster path that is wrong, since transformers changed inside, is left off with one warning; results stay right."""

import copy
import inspect
import warnings
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel, GPT2Config, LlamaConfig
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from agents.lm.causal_lm import CausalLMPolicy
from textenvs.lm import linear_kernels, packed_attention, packed_forward
from textenvs.lm.fast_paths import accelerate, tolerance
from textenvs.lm.packed_attention import OURS, SDPA
from textenvs.lm.packed_forward import can_pack

SPECIAL = dict(vocab_size=31, bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.2)
CONFIGS = {
    "gpt2": GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=2, **SPECIAL),
    "llama": LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=16, **SPECIAL,
    ),
}  # fmt: skip
PROMPTS, ACTIONS = torch.tensor([[3, 4, -1], [5, 6, 7]]), torch.tensor([[8, 9, 10, 0], [11, 0, -1, -1]])


@pytest.fixture(params=list(CONFIGS))
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[request.param])).eval()


def plainly(model):
    """Log-probabilities ``[2, 4]`` of the rows by transformers alone."""
    found = torch.zeros(2, 4)
    for i, (prompt, action) in enumerate(zip(PROMPTS, ACTIONS, strict=True)):
        prompt, action = prompt[prompt >= 0], action[action >= 0]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, action])[None], use_cache=False).logits[0]
        found[i, : len(action)] = torch.log_softmax(logits[len(prompt) - 1 : -1], -1).gather(1, action[:, None])[:, 0]
    return found


def check(policy, expected):
    torch.testing.assert_close(policy.evaluate(PROMPTS, ACTIONS).logprobs, expected, atol=1e-5, rtol=1e-5)


def test_a_sound_model_is_accelerated_without_a_word(model):
    expected = plainly(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = CausalLMPolicy(model)
    assert can_pack(model.base_model)
    check(policy, expected)


def attention_that_swaps(*inputs, **options):
    """As if heads and positions were handed over the other way round."""
    return packed_attention._attention(*inputs, **options)[0].flip(1), None


def attention_of_another_signature(module, states, **options):
    raise TypeError("attention takes states now")


@pytest.mark.parametrize("broken", [attention_that_swaps, attention_of_another_signature])
def test_attention_that_is_called_otherwise_is_left_off(model, broken, monkeypatch):
    expected, register = plainly(model), packed_attention.AttentionInterface.register
    monkeypatch.setattr(packed_attention.AttentionInterface, "register", lambda name, _: register(name, broken))
    with pytest.warns(UserWarning, match="without faster layers and attention: (Arithmetic|Type)Error") as told:
        policy = CausalLMPolicy(model)
    assert len(told) == 1
    assert model.config._attn_implementation == SDPA
    assert all("forward" not in vars(module) for module in model.modules())
    check(policy, expected)


def test_positions_that_are_no_longer_taken_leave_packing_off(model, monkeypatch):
    expected, trunk = plainly(model), type(model.base_model)
    forward = trunk.forward

    def deaf(self, input_ids=None, position_ids=None, **options):
        return forward(self, input_ids=input_ids, **options)

    deaf.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(trunk, "forward", deaf)
    absolute = model.config.model_type == "gpt2"  # cannot decode rows of different lengths then, and is refused
    refusal = pytest.raises(ValueError, match="states with a key-value cache") if absolute else nullcontext()
    with pytest.warns(UserWarning, match="without rows without padding: (Arithmetic|Index)Error") as told, refusal:
        policy = CausalLMPolicy(model)
    assert len(told) == 1
    assert not can_pack(model.base_model)
    assert model.config._attn_implementation == OURS
    if not absolute:
        check(policy, expected)


def test_keywords_that_are_no_longer_handed_to_attention_leave_packing_off(model, monkeypatch):
    expected = plainly(model)
    module = modeling_gpt2 if model.config.model_type == "gpt2" else modeling_llama
    layer = module.GPT2Attention if model.config.model_type == "gpt2" else module.LlamaAttention
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, *args, row_layout=None, **o: forward(self, *args, **o))
    policy = CausalLMPolicy(model)
    assert not can_pack(model.base_model)
    check(policy, expected)


def test_linear_layers_that_changed_are_left_as_they_are(model, monkeypatch):
    expected = plainly(model)
    monkeypatch.setattr(linear_kernels, "_forward", lambda layer, x: type(layer).forward(layer, x) * 1.01)
    with pytest.warns(UserWarning, match="ArithmeticError"):
        check(CausalLMPolicy(model), expected)


def test_the_attention_of_a_model_is_asked_for_at_each_pass(model):
    twin = copy.deepcopy(model)
    policy, expected = CausalLMPolicy(model), plainly(twin)
    check(policy, expected)
    for kind in ("eager", SDPA):
        model.set_attn_implementation(kind)
        assert not can_pack(model.base_model)
        check(policy, expected)
    model.set_attn_implementation(OURS)
    assert can_pack(model.base_model)
    check(policy, expected)


def test_a_layer_below_the_configuration_that_attends_otherwise_is_an_error(model):
    policy = CausalLMPolicy(model)
    layer = model.base_model.h[1].attn if hasattr(model.base_model, "h") else model.base_model.layers[1].self_attn
    layer.config = copy.deepcopy(layer.config)
    layer.config._attn_implementation = SDPA
    with pytest.raises(RuntimeError, match="expected 2 attention layers"):
        policy.evaluate(PROMPTS, ACTIONS)


def test_an_encoder_is_tried_too():
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                 intermediate_size=24, max_position_embeddings=16)).eval()  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerate(model)
    assert not packed_forward.can_pack(model)


def test_half_of_the_digits_are_allowed_to_rounding():
    assert tolerance(torch.zeros(1), 12) == pytest.approx(2.0**-11.5)
    assert tolerance(torch.zeros(1, dtype=torch.bfloat16), 32) == pytest.approx(2.0**-7 * 512**0.5)
