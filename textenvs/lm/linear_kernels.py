"""Faster CPU kernels for the layers of a transformers model, equal to the originals up to rounding.

On a CPU with AVX-512 that is not Intel's, float32 linear layers use oneDNN, whose products are 5-50% faster than
torch's default on the AMD CPUs measured; MKL is as fast on Intel's CPUs, or with AVX2 only. On a CPU not faster in
half precision, layers multiply in float32 and round the result: ten times as fast as torch without instructions for
it, twice as fast on an Intel CPU with bfloat16 instructions but without AMX. GPT-2's GELU takes one kernel, not eight.
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
"""With fewer rows a product costs less than the dispatch."""
HALF = (torch.bfloat16, torch.float16)
"""Dtypes of half precision."""
INTEL = "GenuineIntel"
"""``vendor_id`` of Intel's CPUs."""


def speed_up(model: nn.Module) -> Callable[[], None]:
    """Change `model`'s layers in place; parameters, their names and saved files do not change.

    Returns:
        A function that restores the layers.
    """
    changed: list[tuple[nn.Module, str, Any]] = []
    module: Any
    for module in list(model.modules()):
        if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module):
            # On the instance, by a partial, so that a deep copy of the layer uses its own weights.
            module.forward = partial(_forward, module)
            changed.append((module, "forward", None))
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):  # 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
                setattr(module, name, nn.GELU(approximate="tanh"))
                changed.append((module, name, child))

    def undo() -> None:
        for module, name, original in changed:
            delattr(module, name) if original is None else setattr(module, name, original)

    return undo


def cache_keyword(model: nn.Module) -> str:
    """Keyword of the key-value cache in `model`'s forward pass: "cache"; "past_key_values" before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _forward(layer: nn.Linear | Conv1D, x: Tensor) -> Tensor:
    """A linear layer's forward pass, ``x [..., in]`` to ``[..., out]``, with another kernel where that is faster."""
    original: Callable[..., Tensor] = type(layer).forward
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return original(layer, x)
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype in HALF and not half_is_faster(dtype):
        with torch.autocast("cpu", enabled=False):
            bias = None if layer.bias is None else layer.bias.float()
            return linear(x.float(), weight.float(), bias).to(dtype)
    if not (dtype == x.dtype == weight.dtype == torch.float32 and _many_rows(x) and onednn_is_faster()):
        return original(layer, x)
    flat = x.reshape(-1, x.shape[-1])
    return affine(flat, weight, layer.bias).view(*x.shape[:-1], weight.shape[0])


def _many_rows(x: Tensor) -> bool:
    return x.numel() >= FEWEST_ROWS * x.shape[-1]


@cache
def onednn_is_faster() -> bool:
    """True if oneDNN, which uses AVX-512 on every vendor's CPU, multiplies float32 faster than torch's default."""
    if torch.backends.mkl.is_available() and cpu_info("vendor_id") == INTEL:
        return False
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def cpu_info(name: str, path: Path = Path("/proc/cpuinfo")) -> str | None:
    """The first value of ``name`` (e.g. "vendor_id" or "flags") in ``/proc/cpuinfo``; None if there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), None)


@cache
def half_is_faster(dtype: torch.dtype) -> bool:
    """True if this CPU multiplies in ``dtype``, of half precision, at least as fast as in float32.

    Without instructions for it torch uses a slow loop. With bfloat16 instructions but without AMX, which a virtual
    machine may hide, an Intel CPU (Emerald Rapids) was measured at half its float32 rate.
    """
    check = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    if not (torch.backends.mkldnn.is_available() and bool(getattr(torch.ops.mkldnn, check)())):
        return False
    if dtype == torch.bfloat16 and cpu_info("vendor_id") == INTEL:
        return "amx_bf16" in (cpu_info("flags") or "").split()
    return True


def compute_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which products of ``dtype`` are computed: float32 on a CPU that is not faster in ``dtype``."""
    return torch.float32 if dtype in HALF and device.type == "cpu" and not half_is_faster(dtype) else dtype


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen weights of linear layers in ``dtype``, which autocast would round again at each reading.

    Where it rounds them before a product (not on a CPU that computes half types in float32), results are the same bit
    for bit. Norms, embeddings and what layers add up stay float32.
    """
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D) and id(module.weight) not in embedded:
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))


def autocast_off(device: torch.device) -> torch.autocast:
    """No autocast inside the context; torch has none to switch off on the meta device."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [N, in] weight^T + bias`` in float32 on a CPU, by oneDNN, with gradients; any strides."""
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        return _Affine.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return _product(x, weight, bias)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        # The same memory, but no view of anything: what an autograd function returned must not be one to be added to.
        return x.new_empty(0).set_(_product(x, weight, bias))  # type: ignore[call-overload]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        of_weight = None
        if to_weight:  # in the weight's memory layout; oneDNN would need both factors transposed
            of_weight = grad.t() @ x if weight.is_contiguous() else (x.t() @ grad).t()
        of_x = _product(grad, weight.t(), None) if to_x else None
        return of_x, of_weight, grad.sum(0) if to_bias else None


def multiply(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """``x [N, in]`` times ``weight [out, in]`` transposed, of any strides, by the fastest kernel; without gradients.

    The product is written to ``out [N, out]`` if it is given, and returned.
    """
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and _many_rows(x) and onednn_is_faster():
        found = _product(x, weight, None)
        return found if out is None else out.copy_(found)
    return torch.mm(x, weight.t(), out=out)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.shape[0]
    if more := padded_rows(rows) - rows:
        x = pad(x, (0, 0, 0, more))
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out[:rows] if more else out


def padded_rows(rows: int) -> int:
    """``rows`` rounded up to one of few numbers, by at most a sixteenth or 15: oneDNN compiles a kernel for each."""
    step = max(16, 2 ** (rows.bit_length() - 6))
    return -(-rows // step) * step
