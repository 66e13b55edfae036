"""vLLM's side of a weight update, through a folder or by broadcast: its plugin, which runs in the server's workers.

It stands alone, since the server's environment need not have this package: ``textenvs serve`` copies this file and
``group.py`` into a package beside an entry point (group ``vllm.general_plugins``) and puts it on the server's path.
"""

# mypy: disable-error-code="misc"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from agents.engines.group import Group, join


@dataclass
class InitInfo(WeightTransferInitInfo):
    """There is nothing to agree on."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Where the weights are."""

    path: str
    """A safetensors file in the checkpoint's names."""


class FolderTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads checkpoints layer by layer into the model that runs."""

    init_info_cls, update_info_cls = InitInfo, UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Put the layers into the state in which a checkpoint is loaded."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load a file; the base class would wait for an accelerator, which there may not be."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load the file."""
        with safe_open(update_info.path, framework="pt") as file:
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        """Process what was loaded, an output layer that shares the embedding's weights too.

        vLLM 0.32 processes shared weights for one of their layers; on CPUs the other would keep its packed copy.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead):
                    module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held."""


@dataclass
class GroupInfo(WeightTransferInitInfo):
    """How the workers join the trainer's group."""

    address: str
    port: int
    rank_offset: int
    """Rank of the first worker."""
    world_size: int
    timeout_s: float


@dataclass
class PackInfo(WeightTransferUpdateInfo):
    """What the next broadcast holds."""

    names: list[str]
    dtype: str
    shapes: list[list[int]]


class BroadcastTransfer(FolderTransfer):
    """Loads what the trainer broadcasts."""

    init_info_cls, update_info_cls = GroupInfo, PackInfo
    group: Group | None = None

    def init_transfer_engine(self, init_info: GroupInfo) -> None:
        """Join the trainer, who waits for all workers."""
        from vllm.utils.nccl import unpinned_nccl_env  # vLLM's own settings of NCCL are not the trainer's

        self.shutdown()
        parallel = self.parallel_config
        worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
        rank, size = init_info.rank_offset + worker, init_info.world_size
        with unpinned_nccl_env():
            self.group = join(
                init_info.address, init_info.port, rank, size, device=self.device, timeout_s=init_info.timeout_s
            )

    def receive_weights(self, update_info: PackInfo) -> None:
        """Load the tensors of one broadcast."""
        if self.group is None:
            raise RuntimeError("expected a worker that joined the trainer's group, received an update before")
        self.model.load_weights(self.group.receive(update_info.names, update_info.dtype, update_info.shapes))

    def shutdown(self) -> None:
        """Leave the group."""
        if self.group is not None:
            self.group.close()
            self.group = None


def register() -> None:
    """Make the backends known; vLLM calls this in each of its processes."""
    for name, backend in (("textenvs_folder", FolderTransfer), ("textenvs_broadcast", BroadcastTransfer)):
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, backend)
