"""The layers of a transformers model in faster kernels, equal to the originals up to rounding.

On a CPU with AVX-512 that is not Intel's, linear layers in float32 go to oneDNN, whose products are a twentieth to a
half faster than torch's own choice on the AMD CPUs this was measured on; Intel's MKL is as fast on its own CPUs, and
where there is AVX2 only. On a CPU that is no faster in a half type, layers in that type multiply in float32 and round
the result: ten times as fast as torch's product of half numbers where there are no instructions for them, twice as fast
on an Intel CPU that has some for bfloat16 but not AMX. GPT-2's GELU takes one kernel instead of eight.
Other devices are left as they are.
No model is known here, layers only; attention is in `textenvs.lm.packed_attention`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

FEWEST_ROWS = 16
"""Below, a product costs less than the choice of its kernel."""
HALF = (torch.bfloat16, torch.float16)
"""Types of two bytes."""
INTEL = "GenuineIntel"
"""What Intel's CPUs call their maker."""


def speed_up(model: nn.Module) -> Callable[[], None]:
    """Change `model`'s layers in place; parameters, their names and what is saved stay as they are.

    Returns:
        What undoes it.
    """
    changed: list[tuple[nn.Module, str, Any]] = []
    for module in list(model.modules()):
        if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module):
            # On the instance, and by a partial: a deep copy of the layer then computes with its own weights.
            module.forward = partial(_Forward(type(module).forward), module)  # type: ignore[method-assign]
            changed.append((module, "forward", None))
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):  # 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
                setattr(module, name, nn.GELU(approximate="tanh"))
                changed.append((module, name, child))

    def undo() -> None:
        for module, name, original in changed:
            delattr(module, name) if original is None else setattr(module, name, original)

    return undo


def cache_keyword(model: Any) -> str:
    """What `model`'s forward pass calls its key-value cache: "cache", or "past_key_values" before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class _Forward:
    """A linear layer's forward pass, by another kernel where that is faster."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.original(layer, x)  # type: ignore[no-any-return]
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype in HALF and not half_pays(dtype):
            return _in_float32(x, weight, layer.bias).to(dtype)
        if not (dtype == x.dtype == weight.dtype == torch.float32 and _many_rows(x) and onednn_is_faster()):
            return self.original(layer, x)  # type: ignore[no-any-return]
        flat = x.reshape(-1, x.shape[-1])
        return affine(flat, weight, layer.bias).view(*x.shape[:-1], weight.shape[0])


def _many_rows(x: Tensor) -> bool:
    return x.numel() >= FEWEST_ROWS * x.shape[-1]


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than torch's own choice on this CPU: it uses AVX-512 on any maker's."""
    if torch.backends.mkl.is_available() and cpu_says("vendor_id") == INTEL:
        return False
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def cpu_says(what: str, told: Path = Path("/proc/cpuinfo")) -> str | None:
    """What this machine's CPU says of itself, "vendor_id" or "flags" for instance; None where the system does not tell.

    Args:
        what: the name before the colon.
        told: where; the first such line counts.
    """
    try:
        lines = told.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == what), None)


@cache
def half_pays(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies in ``dtype``, a half type, as fast as in float32.

    Without instructions for it torch takes a slow loop. With AVX-512's for bfloat16 but without AMX, which a virtual
    machine may hide, an Intel CPU (Emerald Rapids) was measured at half its rate in float32.
    """
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    if not (torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, asked)())):
        return False
    if dtype == torch.bfloat16 and cpu_says("vendor_id") == INTEL:
        return "amx_bf16" in (cpu_says("flags") or "").split()
    return True


def compute_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type to multiply in where ``dtype`` is asked for: float32 on a CPU that is no faster in it."""
    return torch.float32 if dtype in HALF and device.type == "cpu" and not half_pays(dtype) else dtype


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return linear(x.float(), weight.float(), None if bias is None else bias.float())


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias`` in float32 on a CPU, by oneDNN, with gradients.

    Args:
        x: ``[N, in]``.
        weight: ``[out, in]``, of any strides.
        bias: ``[out]``, or None.
    """
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        return _Affine.apply(x, weight, bias)  # type: ignore[no-any-return]
    return _product(x, weight, bias)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None):  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        of_weight = None
        if to_weight:
            # Not by oneDNN, for which both factors would have to be turned round. As the weight lies in memory.
            of_weight = grad.t() @ x if weight.is_contiguous() else (x.t() @ grad).t()
        of_x = _product(grad, weight.t(), None) if to_x else None
        return of_x, of_weight, grad.sum(0) if to_bias else None


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """``x [N, in]`` times ``weight [out, in]`` transposed, of any strides, by the fastest kernel; without gradients."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and _many_rows(x) and onednn_is_faster():
        return _product(x, weight, None)
    return x @ weight.t()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.shape[0]
    more = padded_rows(rows) - rows
    if more:
        x = pad(x, (0, 0, 0, more))
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out[:rows] if more else out


def padded_rows(rows: int) -> int:
    """The next of a few numbers of rows, at most a sixteenth more or 15.

    oneDNN makes a kernel for every new number, which takes as long as the product itself, and keeps a thousand.
    """
    step = max(16, 2 ** (rows.bit_length() - 6))
    return -(-rows // step) * step
