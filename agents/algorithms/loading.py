"""Loads an agent without being told which algorithm trained it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from agents.agent import Agent
from agents.algorithms.comparing import GRPO, REINFORCE, RLOO
from agents.algorithms.ppo import PPO
from agents.algorithms.trpo import TRPO
from agents.control.environments import EnvLike
from agents.runs import checkpoint
from agents.runs.logging import MetricSink

ALGORITHMS: dict[str, type[Agent]] = {"ppo": PPO, "trpo": TRPO, "grpo": GRPO, "rloo": RLOO, "reinforce": REINFORCE}
"""By the name that a checkpoint gives."""


def load_agent(
    path: str | Path,
    env: EnvLike | None = None,
    *,
    policy: nn.Module | None = None,
    device: str | None = None,
    logger: MetricSink | None = None,
) -> Agent:
    """The agent saved at ``path``, of the class that saved it; arguments as in ``PPO.load``.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another version, or its algorithm is not known here.
    """
    state = checkpoint.load(path)
    name = state.get("algorithm")
    if name not in ALGORITHMS:
        raise checkpoint.CheckpointError(f"{path} is of the algorithm {name!r}; known are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name].from_state(state, env, policy=policy, device=device, logger=logger)
