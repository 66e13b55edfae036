"""Loads an agent without being told which algorithm trained it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from agents import checkpoint
from agents.agent import Agent
from agents.environments import EnvLike
from agents.logging import MetricSink
from agents.ppo import PPO
from agents.trpo import TRPO

ALGORITHMS: dict[str, type[Agent]] = {kind.algorithm: kind for kind in (PPO, TRPO)}
"""By the name that a checkpoint gives."""


def load_agent(
    path: str | Path,
    env: EnvLike | None = None,
    *,
    policy: nn.Module | None = None,
    device: str | None = None,
    logger: MetricSink | None = None,
) -> Agent:
    """The agent saved at ``path``, of the class that saved it; arguments as in ``Agent.load``.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another version, or its algorithm is not known here.
    """
    state = checkpoint.load(path)
    name = state.get("algorithm")
    if name not in ALGORITHMS:
        raise checkpoint.CheckpointError(f"{path} is of the algorithm {name!r}; known are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name].from_state(state, env, policy=policy, device=device, logger=logger)
