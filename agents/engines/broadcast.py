"""The trainer's side of weights by broadcast: its group with a server's workers, and what it sends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from functools import partial
from itertools import chain
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from agents.engines.group import Group, own_address
from agents.engines.protocol import EngineError

PACK_BYTES = 64 * 2**20
"""Most bytes of tensors that go in one broadcast; a larger tensor goes alone."""
Named = tuple[str, Tensor]
T = TypeVar("T")


class Broadcast:
    """Sends weights to the workers of a server started by ``textenvs serve --transfer broadcast``.

    The group is joined at the first update and kept until something fails, as it does when the server was started anew.
    A copy of the weights stays in the host's memory, for a server that needs them again while the policy moves on.

    Args:
        url: of the server.
        post: sends a request to the server: path and body, or path and ``get=True``; EngineError without an answer.
        timeout_s: seconds that a worker may take to join, and for each request and broadcast.
    """

    def __init__(self, url: str, post: Callable[..., dict[str, Any]], timeout_s: float) -> None:
        self.url, self._post, self._timeout_s = url, post, timeout_s
        self._device = torch.device("cpu")
        self._copy: dict[str, Tensor] = {}
        self._new: Iterator[Named] | None = None
        self._group: Group | None = None

    def take(self, named_tensors: Iterable[Named]) -> bool:
        """Whether there are tensors to send from now on; each is asked for when its turn comes."""
        tensors = iter(named_tensors)
        first = next(tensors, None)
        if first is None:
            return False
        self._device, self._copy = first[1].device, {}
        self._new = self._copied(chain([first], tensors))
        return True

    def join(self) -> None:
        """Form the group, unless there is one; EngineError if a worker does not join in time."""
        if self._group is not None:
            return
        answer = self._post("/get_world_size", get=True)
        if not isinstance(answer.get("world_size"), int):
            raise EngineError(f"{self.url}/get_world_size: expected the number of workers, received {answer}")
        size, limit, server = 1 + answer["world_size"], self._timeout_s, urlsplit(self.url)
        try:
            port = server.port or (443 if server.scheme == "https" else 80)
            address = own_address(str(server.hostname), port, limit)
        except OSError as fault:
            raise EngineError(f"{self.url}: no answer: {fault}") from fault
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=limit))
        about = {"address": address, "port": store.port, "rank_offset": 1, "world_size": size, "timeout_s": limit}
        form = partial(Group, store, 0, size, address=address, device=self._device, timeout_s=limit)
        self._group = self._during("/init_weight_transfer_engine", {"init_info": about}, form)

    def send(self) -> None:
        """Send all tensors to a server whose update has begun; EngineError if it fails, and the group is dropped."""
        tensors, self._new = self._new or iter(self._copy.items()), None
        try:
            for pack in _packs(tensors):
                self._send(pack)
        finally:
            for _ in tensors:  # the copy is whole even so, and other processes have lent their parts
                pass

    def drop(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.close()
            self._group = None

    def _copied(self, tensors: Iterable[Named]) -> Iterator[Named]:
        for name, tensor in tensors:
            self._copy[name] = tensor.detach().to("cpu", copy=True)
            yield name, tensor.detach()

    def _send(self, pack: list[Named]) -> None:
        group = self._group
        if group is None:
            raise EngineError(f"{self.url}: expected a group with its workers, received none")
        about = {
            "names": [name for name, _ in pack],
            "dtype": str(pack[0][1].dtype).removeprefix("torch."),
            "shapes": [list(tensor.shape) for _, tensor in pack],
        }
        self._during("/update_weights", {"update_info": about}, partial(group.send, [tensor for _, tensor in pack]))

    def _during(self, path: str, body: dict[str, Any], work: Callable[[], T]) -> T:
        """What ``work`` returns in a thread, while a request is open that the server's workers answer by their part."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as fault:
                done.set_exception(fault)

        Thread(target=run, daemon=True).start()  # one that is stuck holds up nothing
        try:
            self._post(path, body)
            return done.result(self._timeout_s)
        except (EngineError, ValueError):
            self.drop()
            raise
        except (RuntimeError, OSError, FutureTimeout) as fault:
            self.drop()
            raise EngineError(f"{self.url}{path}: the broadcast failed: {str(fault) or 'timed out'}") from fault


def _packs(tensors: Iterable[Named]) -> Iterator[list[Named]]:
    """``tensors`` in order, those of one dtype together while they are at most ``PACK_BYTES``."""
    pack: list[Named] = []
    size = 0
    for name, tensor in tensors:
        if pack and (tensor.dtype != pack[0][1].dtype or size + tensor.nbytes > PACK_BYTES):
            yield pack
            pack, size = [], 0
        pack.append((name, tensor))
        size += tensor.nbytes
    if pack:
        yield pack
