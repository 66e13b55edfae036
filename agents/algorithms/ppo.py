"""One PPO for both worlds: the environment decides between small networks over steps and a language model over
texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym

from agents.agent import Agent
from agents.algorithms.text import TextAlgorithm
from agents.algorithms.token_environments import is_token_environment
from agents.control.agent import MLP_POLICY
from agents.control.ppo import ControlPPO
from agents.runs import checkpoint

Self = TypeVar("Self", bound="PPO")


class PPO(Agent):
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) on whatever ``env`` is.

    For a token environment (``textenvs/...``) the policy is a causal LM that writes whole texts, with a critic, and
    ``learn`` counts texts: see ``agents.algorithms.text.TextAlgorithm``. For any other environment the policy is a pair
    of small networks and ``learn`` counts transitions: see ``agents.control.agent.ControlAgent``.

    Args:
        env: an id, an ``Env`` or a ``VectorEnv``.
        config: ``PPOConfig`` for control tasks, ``TextAgentConfig`` for text; None: the defaults or the preset.
        policy: a module; for text also a model, its directory or name. ``"MlpPolicy"`` asks for small networks, also on
            token ids.
        settings: fields of the configuration as keywords, and ``logger``.

    Raises:
        ValueError: for an environment or settings that do not fit.
    """

    def __new__(cls, env: Any = None, config: Any = None, policy: Any = None, **settings: Any) -> PPO:
        """Choose the class for the environment."""
        if isinstance(env, str) and env.endswith("Policy") and env not in gym.registry:
            raise ValueError(f"the environment comes first: PPO(env, policy={env!r}), or PPO(env) for the default")
        if cls is not PPO:
            return super().__new__(cls)
        text = is_token_environment(env) and policy != MLP_POLICY
        return super().__new__(_TextPPO if text else _ControlPPO)

    @classmethod
    def load(cls: type[Self], path: str | Path, env: Any = None, **arguments: Any) -> Self:
        """Load the agent saved at ``path``, for control or text; training goes on bit for bit.

        Args:
            path: what ``save`` wrote.
            env: to go on in; None takes the id it was trained on, if it was given by id. Without either, an agent for
                control predicts only.
            arguments: ``policy`` where it was handed over as an object, ``device``, ``logger``.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another version or algorithm.
        """
        return cls.from_state(checkpoint.load(path), env, **arguments)

    @classmethod
    def from_state(cls: type[Self], state: dict[str, Any], env: Any = None, **arguments: Any) -> Self:
        """Build the agent that ``state_dict`` gave ``state`` of; arguments and errors as in ``load``."""
        kind: Any = cls if cls is not PPO else _TextPPO if "text" in state else _ControlPPO
        return kind.from_state(state, env, **arguments)


class _ControlPPO(ControlPPO, PPO):
    """PPO over steps."""

    load = PPO.load


class _TextPPO(TextAlgorithm, PPO):
    """PPO over texts."""

    name = "ppo"
    load = PPO.load
