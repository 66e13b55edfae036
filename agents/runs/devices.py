"""Whether a `--device` can be had: asked at the door, before anything is loaded or written."""

from __future__ import annotations

import torch


def prepare_device(name: str, dtype: str) -> None:
    """`check_device`, and on CUDA let products that stay float32 use TF32, unless ``dtype`` asks for float32."""
    check_device(name)
    if torch.device(name).type == "cuda" and dtype != "float32":
        torch.set_float32_matmul_precision("high")


def check_device(name: str) -> None:
    """Raise ValueError, with what to pass instead, for a device (cpu, cuda, cuda:1, mps, ...) that torch or the machine
    lacks."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name}: torch knows no such device; pass cpu") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            lacking = "this torch has no CUDA" if torch.version.cuda is None else "there is no CUDA device to be had"
            raise ValueError(f"device {name}: {lacking}; pass cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device {name}: the last CUDA device is cuda:{torch.cuda.device_count() - 1}")
    try:
        torch.empty(1, device=device)
    except Exception as error:  # every backend that is missing has an error of its own
        raise ValueError(f"device {name}: this torch cannot use it; pass cpu") from error
