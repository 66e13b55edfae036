"""One PPO for both worlds: the environment decides between small networks over steps and a language model over
texts."""

from __future__ import annotations

from typing import Any, TypeVar

import gymnasium as gym

from agents.agent import Agent, EnvLike
from agents.algorithms.text import TextAlgorithm
from agents.algorithms.token_environments import is_token_environment
from agents.control.agent import MLP_POLICY
from agents.control.ppo import ControlPPO

Self = TypeVar("Self", bound="PPO")


class PPO(Agent):
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) on whatever ``env`` is.

    For a token environment (``textenvs/...``) the policy is a causal LM that writes whole texts, with a critic, which
    starts as the environment's reward model if that is of the policy's shape (``agents.text.presets.REWARD_CRITIC``),
    and ``learn`` counts texts: see ``agents.algorithms.text.TextAlgorithm``. For any other environment the policy is a
    pair of small networks and ``learn`` counts transitions: see ``agents.control.agent.ControlAgent``.

    Args:
        env: an id, an ``Env`` or a ``VectorEnv``.
        config: ``PPOConfig`` for control tasks, ``TextAgentConfig`` for text; None: the defaults or the preset.
        policy: a module; for text also a model, its directory or name. ``"MlpPolicy"`` asks for small networks, also on
            token ids, as does a module that keeps no rows.
        settings: fields of the configuration as keywords; ``logger``, ``objective`` and ``verbose`` as in
            ``agents.agent.Agent``; for text also ``preset`` and fields of ``agents.algorithms.options.TextOptions``.

    Raises:
        ValueError: for an environment or settings that do not fit.
    """

    algorithm = "ppo"

    def __new__(cls, env: EnvLike | None = None, config: object = None, policy: object = None, **settings: Any) -> PPO:
        """Choose the class for the environment."""
        if isinstance(env, str) and env.endswith("Policy") and env not in gym.registry:
            raise ValueError(f"the environment comes first: PPO(env, policy={env!r}), or PPO(env) for the default")
        if cls is not PPO:
            return super().__new__(cls)
        steps = policy == MLP_POLICY or getattr(policy, "keeps_rows", True) is False  # acts on single observations
        text = is_token_environment(env) and not steps
        return super().__new__(_TextPPO if text else _ControlPPO)

    @classmethod
    def from_state(cls: type[Self], state: dict[str, Any], env: EnvLike | None = None, **arguments: Any) -> Self:
        """Build the agent that ``state_dict`` gave ``state`` of; arguments and errors as in ``load``."""
        kind: Any = _TextPPO if "text" in state else _ControlPPO
        agent: Self = kind.from_state(state, env, **arguments)
        return agent


class _ControlPPO(ControlPPO, PPO):  # type: ignore[misc]  # from_state takes named keywords only
    """PPO over steps."""


class _TextPPO(TextAlgorithm, PPO):  # type: ignore[misc]
    """PPO over texts."""

    name = "ppo"
