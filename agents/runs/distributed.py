"""Several processes that train one policy, as `accelerate launch` or `torchrun` starts them, on one machine or many.

All do everything alike, and so stay alike, but for what is dear: each writes and scores its own share of the texts, and
takes the gradient of its own share of every minibatch. Texts are then handed round and gradients added up. So the
figures, the order of minibatches, what a controller decides and what a checkpoint holds are those of one process (a
test says so), and a run may go on with another number of processes. Every call here but `shard` waits for all others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agents.runs.watching import watched
from reward_models.gradients import is_shard

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long the others wait for one, which may be evaluating."""


class Processes:
    """This process, the one at ``index``, and those beside it, ``count`` in all. Of one, no other is ever waited
    for."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        if not 0 <= index < count:
            raise ValueError(f"index must lie in [0, {count}), received {index}")
        self.index, self.count = index, count
        self.operations: list[Callable[[], object]] = []
        """What all of them must do together, though each comes to it by itself, a number of times of its own."""
        self.at_rest: list[Callable[[], object]] = []
        """Called once all have come to the same place."""
        self._in_step = False

    @classmethod
    def launched(cls, device: str, dtype: str = "float32", *, sharded: bool = False) -> Processes:
        """Those that a launcher started this one with, connected by accelerate; this one alone if none did.

        Args:
            device: "cpu", or "cuda": each process then takes the GPU that the launcher means for it.
            dtype: of matrix products.
            sharded: weights are shared out among them, also if there is only one.

        Raises:
            ValueError: if there are several, and ``device`` is one GPU of them all, or if accelerate's configuration
                asks for what is not done here.
        """
        from accelerate import PartialState

        _refuse_unread(dtype, sharded)
        if sharded and os.environ.get("WORLD_SIZE", "1") == "1":
            print(f"--shard fsdp: one process, which holds all parts; start several by {START}", flush=True)
        if sharded and not dist.is_initialized():  # what rests on the CPU is added up there, so both backends
            alone: dict[str, Any] = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
            dist.init_process_group(timeout=PATIENCE, **({} if "RANK" in os.environ else alone))
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
        if state.num_processes > 1 and ":" in device:
            raise ValueError(f"{state.num_processes} processes cannot all be on {device}: pass {device.split(':')[0]}")
        return cls(state.process_index, state.num_processes)

    def together(self) -> AbstractContextManager[None]:
        """A context that ends this process within seconds after another one raised in it, or was killed."""
        return watched(self.index, self.count) if self.count > 1 else nullcontext()

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks for all: it evaluates, logs and saves."""
        return self.index == 0

    def shard(self, rows: int) -> slice:
        """This process's share of ``rows`` rows: contiguous, in the processes' order, of nearly equal length."""
        return slice(self.index * rows // self.count, (self.index + 1) * rows // self.count)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One process after the other, so that only one of them holds a whole model."""
        for turn in range(self.count):
            if turn == self.index:
                yield
            if self.count > 1:  # not by `all_gather`: their operations differ meanwhile
                dist.barrier(objects_group())

    def offer(self, operation: Callable[[], object]) -> int:
        """Register an operation of all, in the same order on each of them; returns its number."""
        self.operations.append(operation)
        return len(self.operations) - 1

    def call(self, number: int) -> Any:
        """Run an operation together with all others, who take part as soon as they wait for this one."""
        self.take_part(number)
        with self._undisturbed():
            return self.operations[number]()

    def take_part(self, wanted: int | None = None) -> None:
        """Run what others ask for until it is the turn of operation ``wanted``, or, None, until nobody asks.

        All agree on one operation at a time, so a process that has finished its share, and waits in any other call for
        the others, goes along with what these still have to do.
        """
        if self._in_step or self.count == 1:
            return
        mine = nothing = len(self.operations)
        if wanted is not None:
            mine = wanted
        while nothing:
            agreed = torch.tensor(mine)
            dist.all_reduce(agreed, dist.ReduceOp.MIN, group=objects_group())
            if int(agreed) == mine:
                return
            with self._undisturbed():
                self.operations[int(agreed)]()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        before, self._in_step = self._in_step, True
        try:
            yield
        finally:
            self._in_step = before

    def _meet(self, *, between: bool = True) -> None:
        self.take_part()
        for rest in self.at_rest if between else ():
            rest()

    def most(self, mine: int) -> int:
        """The largest of all numbers, where all must take equally many steps; ``mine`` where there is no such need."""
        return max(self.all_gather(mine)) if self.operations else mine

    def all_gather(self, mine: T, *, between: bool = True) -> list[T]:
        """What each process has, in their order, on all of them.

        ``between`` is False from a pass that builds a graph to its backward pass, where gathered weights have to stay.
        """
        self._meet(between=between)
        if self.count == 1:
            return [mine]
        found: list[T | None] = [None] * self.count
        dist.all_gather_object(found, _on_cpu(mine), group=objects_group())
        return found  # type: ignore[return-value]

    def broadcast(self, mine: T | None) -> T:
        """What the first process has, on all of them; what the others pass is ignored."""
        self._meet()
        held = [_on_cpu(mine)]
        if self.count > 1:
            dist.broadcast_object_list(held, src=0, group=objects_group())
        assert held[0] is not None
        return held[0]

    def any(self, mine: bool) -> bool:
        """Whether one of them says so."""
        return any(self.all_gather(mine))

    @torch.no_grad()
    def broadcast_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Give all of them the first process's values, in place, but for what is sharded."""
        if self.count > 1:
            self._meet()
            for tensor in (each for each in tensors if not is_shard(each)):
                dist.broadcast(tensor, src=0)

    @torch.no_grad()
    def all_reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make each gradient the sum of all processes', in place; one that has none counts as zeros.

        Parameters that are not trained now (``requires_grad`` False) are left out, and sharded ones, whose gradients
        the backward pass has added up.
        """
        trained = [each for each in parameters if each.requires_grad and not is_shard(each)]
        if self.count == 1 or not trained:
            return
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for kind in dict.fromkeys((parameter.device, parameter.dtype) for parameter in trained):
            gradients = [p.grad for p in trained if p.grad is not None and (p.device, p.dtype) == kind]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            sums = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(sums, gradients, strict=True)])


def _on_cpu(value: T) -> T:
    """``value`` with its tensors on the CPU: a pickled CUDA tensor would be read back onto its writer's device."""
    moved: T = pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, value)
    return moved


@lru_cache
def objects_group() -> dist.ProcessGroup:
    """The group that pickles travel in, from memory to memory: NCCL would send a checkpoint through a GPU."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def is_sharded(module: nn.Module) -> bool:
    """Whether processes have shared ``module`` out among them, by `agents.lm.sharding`."""
    return any(is_shard(parameter) for parameter in module.parameters())


def alone(command: str) -> None:
    """Raise ValueError if a launcher started several processes of a ``command`` that has no use for them."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1":
        raise ValueError(f"{command}: expected one process, received {started} by a launcher, each would do all of it")


def _refuse_unread(dtype: str, sharded: bool) -> None:
    """Raise ValueError if `accelerate launch`, which says so in the environment, is to do more than start processes."""
    asked = [words for name, words in UNREAD.items() if os.environ.get(name, "false").lower() in ("true", "1")]
    if sharded and "FSDP" in asked:
        asked.remove("FSDP")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", {"float32": "no", "bfloat16": "bf16"}[dtype]):
        asked.append(f"mixed precision {precision} (here --dtype bfloat16 says so, received {dtype})")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        asked.append(f"torch.compile by dynamo {backend} (here --compile says so)")
    if asked:
        raise ValueError(
            f"accelerate: expected data-parallel processes and no more, received {', '.join(asked)}: every process "
            "holds the whole model, or with --shard fsdp its part; leave it out in `accelerate config`"
        )


START = "torchrun --nproc-per-node N --no-python textenvs COMMAND ..."
"""How several processes are started."""

UNREAD = {
    "ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}  # fmt: skip
"""What a launcher may ask for in vain, by the variable that it sets."""

ALONE = Processes()
"""One process, as usual."""
