"""A process group of a trainer and a server's workers, beside whatever groups either has: NCCL on GPUs, else gloo.

Rank 0 is the trainer. Both sides use this file, so like ``transfer.py`` it stands alone: ``textenvs serve`` copies it.
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore

BLOCKING = {
    "TORCH_NCCL_BLOCKING_WAIT": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}
"""With these a collective of NCCL that fails or is late raises; by default it ends the process."""


class Group:
    """Ranks that receive what rank 0 sends; all construct it at a time.

    NCCL carries it if each rank has a CUDA device of its own, which it does not share with another; else gloo does, and
    tensors pass through the host.

    Args:
        store: where all meet.
        address: of this rank, for the others.
        device: of this rank's weights.
        timeout_s: seconds that the others may take to join, and each broadcast.

    Raises:
        RuntimeError: if they take longer.
    """

    def __init__(
        self, store: Store, rank: int, size: int, *, address: str, device: torch.device, timeout_s: float
    ) -> None:
        store.set(f"device/{rank}", _unique_name(device))
        devices = [store.get(f"device/{each}").decode() for each in range(size)]
        on_gpus = "cpu" not in devices and len(set(devices)) == size
        self.device = device if on_gpus else torch.device("cpu")
        make = _nccl if on_gpus else _gloo
        self._group = make(PrefixStore("weights", store), rank, size, address, timedelta(seconds=timeout_s))
        self._store = store
        self.broadcast(torch.zeros(1, device=self.device))  # NCCL connects with the first one

    def broadcast(self, flat: Tensor) -> None:
        """Send ``flat [N]`` on ``device`` from rank 0, or fill it; RuntimeError if it fails, and the group closes."""
        try:
            self._group.broadcast(flat.view(torch.uint8), root=0).wait()
        except RuntimeError:
            self.close()
            raise

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Broadcast ``tensors`` of one dtype at once; for rank 0."""
        flat = [each.reshape(-1).to(self.device) for each in tensors]
        self.broadcast(flat[0] if len(flat) == 1 else torch.cat(flat))

    def receive(
        self, names: Sequence[str], dtype: str, shapes: Sequence[Sequence[int]]
    ) -> Iterator[tuple[str, Tensor]]:
        """What rank 0 sends at once, by name."""
        sizes = [prod(shape) for shape in shapes]
        flat = torch.empty(sum(sizes), dtype=getattr(torch, dtype), device=self.device)
        self.broadcast(flat)
        for name, part, shape in zip(names, flat.split(sizes), shapes, strict=True):
            yield name, part.view(tuple(shape))

    def close(self) -> None:
        """End the connections, also under a broadcast in another thread."""
        with suppress(RuntimeError):
            self._group.abort()


def join(address: str, port: int, rank: int, size: int, *, device: torch.device, timeout_s: float) -> Group:
    """The group of a worker, whose trainer keeps the store at ``address`` and ``port``; RuntimeError as in `Group`."""
    store = TCPStore(address, port, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))
    own = own_address(address, port, timeout_s)
    return Group(store, rank, size, address=own, device=device, timeout_s=timeout_s)


def own_address(host: str, port: int, timeout_s: float) -> str:
    """This machine's address, as ``host`` sees it; OSError if nothing listens there."""
    with socket.create_connection((host, port), timeout=timeout_s) as probe:
        return str(probe.getsockname()[0])


def _unique_name(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"


def _gloo(store: Store, rank: int, size: int, address: str, timeout: timedelta) -> Any:
    options = ProcessGroupGloo._Options()
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timeout
    return ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, address: str, timeout: timedelta) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    before = {name: os.environ.get(name) for name in BLOCKING}
    os.environ.update(BLOCKING)
    try:
        return ProcessGroupNCCL(store, rank, size, options)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
