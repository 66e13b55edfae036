"""Faster kernels give what the layers themselves give, forward and backward, whatever the shapes."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from textenvs.lm import linear_kernels as kernels
from textenvs.lm.linear_kernels import FEWEST_ROWS, affine, cpu_info, multiply, padded_rows, speed_up

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
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[request.param])).eval()


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


@pytest.mark.parametrize("rows", [33, 64])
def test_a_model_may_add_to_the_product_in_place(rows):
    """Llama 4's experts do; 33 rows are padded for the kernel."""
    x, weight = torch.randn(rows, 3), torch.randn(4, 3, requires_grad=True)
    out = affine(x, weight, None)
    out.add_(1.0)
    torch.testing.assert_close(out, x @ weight.t() + 1.0)
    out.view(1, rows, 4).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 3))


def test_padding_is_small_and_leaves_few_different_numbers_of_rows():
    padded = [padded_rows(rows) for rows in range(1, 5000)]
    for rows, more in enumerate(padded, start=1):
        assert rows <= more <= max(rows + 15, rows * 17 / 16)
    assert len(set(padded)) < 200


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("rows", [3, FEWEST_ROWS, 33])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_without_gradients_by_either_kernel(rows, transposed, onednn, monkeypatch):
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: onednn)
    x, weight = torch.randn(rows, 12), torch.randn(12, 7).t() if transposed else torch.randn(7, 12)
    exact = x.double() @ weight.double().t()
    torch.testing.assert_close(multiply(x, weight).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(multiply(x.double(), weight.double()), exact)


def test_onednn_is_left_alone_on_intels_own_cpus_and_where_it_has_nothing_to_gain(monkeypatch, tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 17\n")
    assert cpu_info("vendor_id", told) == "GenuineIntel"
    assert cpu_info("model", told) == "17"
    assert cpu_info("flags", told) is None
    assert cpu_info("vendor_id", tmp_path / "no such file") is None
    found = {}
    for maker in ("GenuineIntel", "AuthenticAMD", None):
        for instructions in ("AVX512", "AVX2"):
            monkeypatch.setattr(kernels, "cpu_info", lambda what, maker=maker: {"vendor_id": maker}[what])
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda told=instructions: told)
            monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
            found[maker, instructions] = kernels.onednn_is_faster.__wrapped__()
    faster = torch.backends.mkldnn.is_available()
    assert [key for key, value in found.items() if value] == (
        [("AuthenticAMD", "AVX512"), (None, "AVX512")] if faster else []
    )


@pytest.mark.parametrize(
    ("instructions", "maker", "flags", "bfloat16"),
    [
        (False, "AuthenticAMD", "avx2", False),
        (True, "AuthenticAMD", "avx512_bf16", True),
        (True, "GenuineIntel", "avx512_bf16", False),
        (True, "GenuineIntel", "avx512_bf16 amx_tile amx_bf16", True),
        (True, "GenuineIntel", None, False),
        (True, None, None, True),
    ],
)
def test_a_half_type_pays_where_the_cpu_is_faster_in_it(instructions, maker, flags, bfloat16, monkeypatch):
    monkeypatch.setattr(kernels, "cpu_info", {"vendor_id": maker, "flags": flags}.get)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for asked in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, asked, lambda: instructions)
    assert kernels.half_is_faster.__wrapped__(torch.bfloat16) is bfloat16
    assert kernels.half_is_faster.__wrapped__(torch.float16) is instructions


def assert_same_gradients(model, original):
    """But for rounding: entries are float32 sums of some hundred terms, taken in another order.

    A term can be as large as the largest entry, also where the sum is next to 0, so errors are units of that entry:
    1.2e-7 of it each, and 1e-5 is 80 of them. Where a whole gradient is 0 (a query's that meets one key) it is made of
    terms that cancel, as large as other parameters' gradients: 8 units of the largest of all. A token that is left out
    or counted twice costs a whole term.
    """
    expected = {name: parameter.grad for name, parameter in original.named_parameters()}
    largest = {name: float(gradient.abs().max()) for name, gradient in expected.items()}
    for name, parameter in model.named_parameters():
        atol = 1e-5 * largest[name] + 1e-6 * max(largest.values())
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0.0, atol=atol)


@pytest.mark.parametrize("onednn", [False, True])
def test_a_sped_up_model_computes_the_same_and_so_do_its_gradients(model, onednn, monkeypatch):
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: onednn)
    tokens = torch.randint(0, 50, (4, 17), generator=torch.Generator().manual_seed(0))
    original = copy.deepcopy(model)
    speed_up(model)
    names = dict(original.named_parameters())
    assert names.keys() == dict(model.named_parameters()).keys()
    losses = [one(input_ids=tokens, labels=tokens).loss for one in (original, model)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    assert_same_gradients(model, original)


def test_gpt2s_gelu_in_one_kernel_is_the_same_function():
    x = torch.linspace(-6, 6, 101)
    by_definition = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["gpt2"]))
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


LAYERS = {"linear": nn.Linear(5, 3), "conv1d": Conv1D(3, 5)}


@pytest.mark.parametrize("name", list(LAYERS))
def test_half_types_go_their_usual_way_where_they_pay(name, monkeypatch):
    monkeypatch.setattr(kernels, "half_is_faster", lambda dtype: True)
    x, half = torch.randn(20, 5).bfloat16(), copy.deepcopy(LAYERS[name]).bfloat16()
    usual = half(x)
    wrapped = nn.Sequential(half)
    speed_up(wrapped)
    assert torch.equal(wrapped(x), usual)
    speed_up(wrapped)  # again: nothing is wrapped twice
    assert torch.equal(wrapped(x), usual)


@pytest.mark.parametrize("dtype", kernels.HALF)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_half_types_are_multiplied_in_float32_where_they_do_not_pay(name, autocast, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "half_is_faster", lambda dtype: False)
    layer = copy.deepcopy(LAYERS[name]).to(torch.float32 if autocast else dtype)
    x = torch.randn(20, 5, dtype=torch.float32 if autocast else dtype, requires_grad=True)
    exact = copy.deepcopy(layer).double()
    x_exact = x.detach().double().requires_grad_()
    wrapped = nn.Sequential(layer)
    speed_up(wrapped)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = wrapped(x)
    expected = exact(x_exact)
    assert out.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=unit, atol=1e-6)  # rounded once, and never before
    out.double().sum().backward()
    expected.sum().backward()
    for ours, theirs in ((layer.weight.grad, exact.weight.grad), (x.grad, x_exact.grad)):
        torch.testing.assert_close(ours.double(), theirs, rtol=unit, atol=1e-6)
