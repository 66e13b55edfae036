"""Faster kernels give what the layers themselves give, forward and backward, whatever the shapes."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from textenvs.kernels import FEWEST_ROWS, FLOAT32_SDPA, affine, attend_in_float32, padded_rows, speed_up

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=50, n_positions=40, n_embd=24, n_layer=2, n_head=4, initializer_range=0.2),
    "llama": LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=40, initializer_range=0.2,
    ),
}  # fmt: skip


@pytest.fixture(params=list(CONFIGS))
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()


@pytest.mark.parametrize("rows", [FEWEST_ROWS, 33, 64, 1008])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_affine_and_its_gradients_equal_float64(rows, transposed, bias):
    torch.manual_seed(rows)
    parts = [torch.randn(rows, 12), torch.randn(12, 7) if transposed else torch.randn(7, 12)]
    parts += [torch.randn(7)] if bias else []
    weights = torch.randn(rows, 7)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = [part.to(dtype, copy=True).requires_grad_() for part in parts]
        x, weight = leaves[0], leaves[1].t() if transposed else leaves[1]
        offset = leaves[2] if bias else None
        out = affine(x, weight, offset) if dtype == torch.float32 else x @ weight.t() + (leaves[2] if bias else 0)
        (out * weights.to(dtype)).sum().backward()
        gradients.append([out, *(leaf.grad for leaf in leaves)])
    for ours, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient_and_passes_it_on():
    x, weight = torch.randn(20, 3, requires_grad=True), torch.randn(4, 3)
    affine(x, weight, None).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(20, 3))
    assert weight.grad is None


def test_padding_is_small_and_leaves_few_different_numbers_of_rows():
    padded = [padded_rows(rows) for rows in range(1, 5000)]
    for rows, more in enumerate(padded, start=1):
        assert rows <= more <= max(rows + 15, rows * 17 / 16)
    assert len(set(padded)) < 200


def test_a_sped_up_model_computes_the_same_and_so_do_its_gradients(model):
    tokens = torch.randint(0, 50, (4, 17), generator=torch.Generator().manual_seed(0))
    original = copy.deepcopy(model)
    speed_up(model)
    names = dict(original.named_parameters())
    assert names.keys() == dict(model.named_parameters()).keys()
    losses = [one(input_ids=tokens, labels=tokens).loss for one in (original, model)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, names[name].grad, rtol=1e-4, atol=1e-6)


def test_gpt2s_gelu_in_one_kernel_is_the_same_function():
    x = torch.linspace(-6, 6, 101)
    by_definition = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"])
    speed_up(model)
    torch.testing.assert_close(model.transformer.h[0].mlp.act(x), by_definition, atol=1e-6, rtol=1e-5)


def test_a_deep_copy_computes_with_weights_of_its_own(model):
    speed_up(model)
    tokens = torch.arange(20)[None]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = twin(input_ids=tokens).logits
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(twin(input_ids=tokens).logits, before, rtol=0, atol=0)
        assert model(input_ids=tokens).logits.abs().max() == 0


def test_other_types_go_their_usual_way():
    for layer, x in ((nn.Linear(5, 3), torch.randn(20, 5)), (Conv1D(3, 5), torch.randn(20, 5))):
        half = copy.deepcopy(layer).bfloat16()
        usual = half(x.bfloat16())
        wrapped = nn.Sequential(half)
        speed_up(wrapped)
        assert torch.equal(wrapped(x.bfloat16()), usual)
        speed_up(wrapped)  # again: nothing is wrapped twice
        assert torch.equal(wrapped(x.bfloat16()), usual)


def test_attention_in_float32_rounds_once_at_the_end(model):
    attend_in_float32(model)
    attention = ALL_ATTENTION_FUNCTIONS[FLOAT32_SDPA]
    layer = next(module for module in model.modules() if hasattr(module, "is_causal"))
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(3, 4, 12, 6, generator=generator).bfloat16() for _ in range(3))
    if hasattr(layer, "num_key_value_groups"):  # two heads share their keys and values
        key, value = key[:, :2], value[:, :2]
    seen = torch.ones(12, 12, dtype=torch.bool).tril()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attention(layer, query, key, value, seen, scaling=0.4)
    keys, values = (part.float().repeat_interleave(4 // part.shape[1], dim=1) for part in (key, value))
    scores = (0.4 * query.float() @ keys.mT).masked_fill(~seen, -torch.inf)
    exact = (scores.softmax(-1) @ values).transpose(1, 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-5)  # half a unit in the last of 8 bits


def test_attention_in_float32_leaves_a_float32_model_bit_for_bit_as_it_was(model):
    tokens = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=tokens).logits
    attend_in_float32(model)
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_what_is_saved_does_not_name_our_attention(model, tmp_path):
    attend_in_float32(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
