"""A reward model that several processes fit together: each encodes its share of a batch's texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from agents.lm.loading import autocast_of
from agents.lm.sharding import mesh_of, shard_reward_model
from agents.recipes.commands.reward_model import TrainRewardModelConfig
from agents.runs.distributed import Processes
from reward_models.ensemble import new_members
from reward_models.model import RewardModel
from reward_models.training import OneWorker


class SharedRewards:
    """Rewards of texts that ``processes`` share, as `reward_models.training.Workers`; all have the same texts."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    def rewards(self, model: RewardModel, rows: Sequence[list[int]], chunk_size: int) -> Tensor:
        """Rewards ``[N]`` of all ``rows``, with the gradient of this process's own.

        The loss compares texts of all processes, so its gradient in the weights is the sum of theirs.
        """
        count, learns = self.processes.count, torch.is_grad_enabled()
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        mine = order[self.processes.index :: count]
        own = OneWorker().rewards(model, [rows[i] for i in mine], chunk_size) if mine else torch.empty(0)
        passes = [math.ceil(len(order[index::count]) / chunk_size) for index in range(count)]
        idle = None
        if learns and passes[self.processes.index] < passes[0]:  # keeps step with other processes
            idle = 0.0 * model.raw(*model.pad(rows[:1])).sum()
        shares = self.processes.all_gather(own.detach(), between=not learns)
        found = torch.empty(len(rows), device=model.device)
        for index, share in enumerate(shares):
            found[order[index::count]] = share.to(found.device)
        if mine and learns:
            found = found.index_copy(0, torch.tensor(mine, device=found.device), own)
        return found if idle is None else found + idle

    def add_gradients(self, model: RewardModel) -> None:
        """Make the model's gradients the sum of all processes'."""
        self.processes.all_reduce_gradients(list(model.parameters()))


def build_members(
    config: TrainRewardModelConfig, model: str, processes: Processes
) -> Iterator[tuple[int, RewardModel]]:
    """Unfitted reward models on ``model``, sharded if ``config`` says so; see `reward_models.ensemble.new_members`."""
    sharded = config.shard != "none"
    device = "cpu" if sharded else config.device
    made = new_members(model, config.members, seed=config.seed, lora_rank=config.lora_rank, device=device)
    if sharded:
        mesh = mesh_of(processes, config.device)
        with processes.in_turn():  # of whole models on the CPU only the parts go to the device
            seed, member = next(made)
            shard_reward_model(member, processes, mesh, autocast_of(config.training.dtype, config.device))
        yield seed, member
    yield from made
