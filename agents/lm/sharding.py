"""A language model shared out among processes layer by layer, by torch's FSDP2: weights, gradients, optimizer states.

Each process holds its part of every weight in float32 and gathers one layer at a time, so all have to make each pass
through a trunk together. Passes that build a graph are equally many in all of them, by ``agents.update``. Of others,
in rollouts and evaluations, each has a number of its own: it asks for each, and those who have nothing to do there
gather along (``Processes.take_part``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decoder import Generation
from agents.lm.saving import named_weights
from agents.runs import checkpoint
from agents.runs.distributed import Processes
from reward_models.gradients import is_shard, whole
from reward_models.lora import AdapterBackbone
from reward_models.model import RewardModel
from textenvs.lm.packed_forward import layers_of, trunk_of

WHOLE = "has_whole_weights"
"""Attribute of a trunk all of whose layers are gathered."""


def mesh_of(processes: Processes, device: str) -> DeviceMesh:
    """The processes in a row, on ``device``; all call it."""
    return init_device_mesh(torch.device(device).type, (processes.count,))


def shard(policies: Sequence[CausalLMPolicy], processes: Processes, mesh: DeviceMesh, *, offload: bool = False) -> None:
    """Shard the models of ``policies`` in place: on every process the same, and before there is an optimizer.

    Nothing is sent, and only a layer at a time is whole on the mesh's device. The first policy learns; some may share a
    model. With ``offload`` weights, gradients and optimizer states rest in the CPU's memory.

    Raises:
        ValueError: for a model whose layers cannot be told apart, or that is compiled.
    """
    # What a layer returns is a view in some models; nothing here writes into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for policy in policies:
        heads: list[nn.Module] = [policy.output_layer]
        if policy.has_critic:
            value_head = [policy.value_head]
            if policy.critic_trunk is not None:
                _shard(policy.critic_trunk, value_head, policy.autocast, mesh, processes, offload)
            else:
                heads += value_head
        _shard(policy.trunk, heads, policy.autocast, mesh, processes, offload)


def shard_reward_model(
    model: RewardModel, processes: Processes, mesh: DeviceMesh, autocast: torch.dtype | None
) -> None:
    """Shard ``model``, whose layers will multiply in ``autocast``, as ``shard`` does."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    trunk, heads = model.backbone, [model.head]
    if isinstance(trunk, AdapterBackbone):
        language_model: Any = trunk.peft_model.get_base_model()
        trunk = trunk_of(language_model)
        heads.append(language_model.get_output_embeddings())  # unused, but it may be the embeddings
    _shard(trunk, heads, autocast, mesh, processes, offload=False)


def _shard(
    trunk: Any,
    heads: Sequence[nn.Module],
    autocast: torch.dtype | None,
    mesh: DeviceMesh,
    processes: Processes,
    offload: bool,
) -> None:
    """Shard ``trunk`` by layers; ``heads`` are gathered with its embeddings, which one of them may share."""
    if isinstance(trunk, FSDPModule):
        return
    layers: list[Any] = layers_of(trunk)  # which `fully_shard` makes modules of FSDP
    if len(layers) != trunk.config.num_hidden_layers:
        raise ValueError(
            f"shard: expected {trunk.config.num_hidden_layers} layers that can be told apart, received {len(layers)} "
            f"in {type(trunk).__name__}"
        )
    rest: OffloadPolicy = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offload else OffloadPolicy()
    # Autocast's products, with weights rounded before they are sent and not after; what comes out stays as it is.
    low = MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=low, offload_policy=rest)
    for number, head in enumerate(heads):  # one group with what the trunk itself holds
        trunk.add_module(f"head_{number}", head)
    fully_shard(trunk, mesh=mesh, reshard_after_forward=False, mp_policy=whole, offload_policy=rest)
    for number in range(len(heads)):
        del trunk._modules[f"head_{number}"]
    for module in (trunk, *layers):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    number = processes.offer(partial(_gather_along, trunk, layers))

    def ask(*_: object) -> None:
        if not hasattr(trunk, WHOLE):
            processes.take_part(None if torch.is_grad_enabled() else number)

    def need_gradient(module: nn.Module, inputs: object, output: Any) -> None:
        # The backward pass reaches the heads' group through these states, also where only a head is trained.
        if torch.is_grad_enabled() and not output.last_hidden_state.requires_grad:
            output.last_hidden_state.requires_grad_(True)

    trunk.register_forward_pre_hook(ask, prepend=True)
    trunk.register_forward_hook(need_gradient, prepend=True)
    processes.at_rest.append(trunk.reshard)


def _gather_along(trunk: FSDPModule, layers: Sequence[FSDPModule]) -> None:
    """What a forward pass gathers, in its order; the trunk's own weights stay, for the heads."""
    trunk.unshard()
    for layer in layers:
        layer.unshard()
        layer.reshard()


def with_whole_weights(generate: Callable[..., Generation], processes: Processes) -> Callable[..., Generation]:
    """``generate`` with the policy's weights gathered once for all its passes, of which none then waits for others."""

    def gathered(policy: CausalLMPolicy, *arguments: Any, **options: Any) -> Generation:
        trunks = [trunk for trunk in (policy.trunk, policy.critic_trunk) if trunk is not None]
        layers = [each for trunk in trunks for each in trunk.modules() if isinstance(each, FSDPModule)]
        processes.all_gather(None)
        for layer in layers:
            layer.set_reshard_after_forward(False, recurse=False)
            layer.unshard()
        for trunk in trunks:
            setattr(trunk, WHOLE, True)
        try:
            return generate(policy, *arguments, **options)
        finally:
            for trunk in trunks:
                delattr(trunk, WHOLE)
            for layer in layers:
                layer.set_reshard_after_forward(layer not in trunks, recurse=False)
                layer.reshard()

    return gathered


class Shards:
    """A sharded policy's weights, for what all processes do together when the main one calls for it; ``state`` gives
    what a checkpoint holds of the agent."""

    def __init__(self, policy: CausalLMPolicy, processes: Processes, state: Callable[[], dict[str, Any]]) -> None:
        self._policy, self._processes, self._state, self._path = policy, processes, state, Path()
        weight: Any = policy.output_layer.weight
        self.mesh: DeviceMesh = weight.device_mesh
        self._saving, self._gathering = processes.offer(self._save), processes.offer(self._gather)

    def save(self, path: str | Path) -> Path:
        """Save a checkpoint; see ``agents.runs.checkpoint``."""
        self._path = Path(path)
        saved: Path = self._processes.call(self._saving)
        return saved

    def _save(self) -> Path:
        return checkpoint.save(self._processes.broadcast(self._path), self._state(), self._processes)

    def trained(self) -> dict[str, Tensor]:
        """The trained weights of the model by name, whole, on the CPU."""
        found: dict[str, Tensor] = self._processes.call(self._gathering)
        return found

    def _gather(self) -> dict[str, Tensor]:
        return _whole_state(self._policy.state_dict(), self._processes, "model.")


def gathered(state: Mapping[str, Tensor], processes: Processes, prefix: str = "") -> dict[str, Tensor] | None:
    """Weights of ``state`` whose names begin with ``prefix``, without it: whole, on the CPU, in the main process.

    All processes call it at the same place. None if nothing is sharded.
    """
    processes.all_gather(None)
    return _whole_state(state, processes, prefix) if any(map(is_shard, state.values())) else None


def _whole_state(state: Mapping[str, Tensor], processes: Processes, prefix: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    gathered_once: dict[int, Tensor | None] = {}  # by storage, which tied weights share
    for name, value in state.items():
        if name.startswith(prefix):
            local: Any = value.to_local() if is_shard(value) else value  # type: ignore[attr-defined]
            key = local.untyped_storage()._cdata
            if key not in gathered_once:
                tensor = whole(value)
                gathered_once[key] = tensor.cpu() if processes.is_main else None
            if (kept := gathered_once[key]) is not None:
                found[name.removeprefix(prefix)] = kept
    return found


def lent_weights(
    policies: Sequence[CausalLMPolicy], processes: Processes
) -> Callable[..., Iterable[tuple[str, Tensor]]]:
    """``agents.lm.saving.named_weights`` of sharded ``policies``, for the main process while all others wait for it.

    All call this at the same place. Weights are whole, and on the CPU.
    """

    def gather(policy: CausalLMPolicy, adapter_only: bool) -> dict[str, Tensor]:
        for rest in processes.at_rest:
            rest()
        found = {}
        for name, weight in named_weights(policy, adapter_only=adapter_only):
            if processes.is_main:
                found[name] = weight.cpu()
        return found

    numbers = {
        (id(policy), only): processes.offer(partial(gather, policy, only))
        for policy in policies
        for only in (False, True)
    }

    def weights_of(policy: CausalLMPolicy, *, adapter_only: bool = False) -> Iterable[tuple[str, Tensor]]:
        found: dict[str, Tensor] = processes.call(numbers[id(policy), adapter_only])
        return found.items()

    return weights_of


def part_bytes(tensors: Iterable[Tensor], processes: int) -> int:
    """Bytes that the first of ``processes`` will hold of distinct tensors; of parameters its part, the largest: of the
    first dimension's rows 1 / processes, rounded up."""
    distinct = {id(tensor): tensor for tensor in tensors}.values()
    return sum(
        (each[: -(-len(each) // processes)] if isinstance(each, nn.Parameter) else each).nbytes for each in distinct
    )


def gathered_bytes(policy: CausalLMPolicy, dtype: torch.dtype) -> int:
    """Bytes that are whole at a time in an update of ``policy`` once it is sharded: embeddings and heads with their
    gradients, two layers as ``dtype``, that of products, and the gradients of one."""
    trunks = [trunk for trunk in (policy.trunk, policy.critic_trunk) if trunk is not None]
    layers = [list(each.parameters()) for trunk in trunks for each in layers_of(trunk)]
    inside = {id(weight) for layer in layers for weight in layer}
    rest = [weight for weight in policy.parameters() if id(weight) not in inside]
    held = sum(weight.nbytes * (2 if weight.requires_grad else 1) for weight in rest)
    largest = max(sum(weight.numel() for weight in layer) for layer in layers)
    learned = max(sum(weight.numel() for weight in layer if weight.requires_grad) for layer in layers)
    return held + 2 * dtype.itemsize * largest + torch.float32.itemsize * learned
