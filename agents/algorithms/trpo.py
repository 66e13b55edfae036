"""TRPO, which asks before it trains small networks on token ids."""

from __future__ import annotations

from typing import Any

from torch import nn

from agents.agent import EnvLike
from agents.algorithms.token_environments import is_token_environment
from agents.config import AgentConfig
from agents.control.agent import MLP_POLICY
from agents.control.trpo import ControlTRPO


class TRPO(ControlTRPO):
    """Trust region policy optimization (Schulman et al. 2015, arXiv:1502.05477) on control tasks.

    Args:
        env, config, settings: as in ``agents.control.agent.ControlAgent``; settings are ``TRPOConfig``'s.
        policy: as there; ``"MlpPolicy"`` asks for small networks, also on token ids.

    Raises:
        ValueError: for a token environment without a ``policy``; for a policy without ``outputs``, ``head`` and
            ``critic``, as ``MLPPolicy`` has them; and as ``ControlAgent``.
    """

    def __init__(
        self,
        env: EnvLike | None,
        config: AgentConfig | None = None,
        policy: nn.Module | str | None = None,
        **settings: Any,
    ) -> None:
        loaded = settings.get("spaces") is not None
        if policy is None and not loaded and is_token_environment(env):
            raise ValueError(
                f"env: expected a control task, as TRPO tunes no language model; received {env}: take PPO, or pass "
                f"policy={MLP_POLICY!r} for small networks on token ids"
            )
        super().__init__(env, config, policy, **settings)
