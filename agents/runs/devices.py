"""Whether a `--device` can be had: asked at the door, before anything is loaded or written."""

from __future__ import annotations

import torch


def check_device(name: str) -> None:
    """Refuse a device, as torch writes it (cpu, cuda, cuda:1, mps, ...), that torch or the machine does not have.

    Raises:
        ValueError: naming the device and what to pass instead.
    """
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
