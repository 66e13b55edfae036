"""PPO for control tasks and language models: ``PPO(env, PPOConfig(...))``, ``learn``, ``predict``, ``save``, ``load``.

Importing the package is light; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "PPO": "agents.algorithms.ppo",
    "PPOConfig": "agents.config",
    "TRPO": "agents.algorithms.trpo",
    "TRPOConfig": "agents.config",
    "GRPO": "agents.algorithms.comparing",
    "RLOO": "agents.algorithms.comparing",
    "REINFORCE": "agents.algorithms.comparing",
    "TextAgentConfig": "agents.text.config",
    "CausalLMPolicy": "agents.lm.causal_lm",
    "load_agent": "agents.algorithms.loading",
    "MLPPolicy": "agents.control.mlp",
    "Rollout": "agents.rollout",
    "Batch": "agents.rollout",
    "StepCollector": "agents.control.collector",
    "Linear": "agents.functional.schedules",
    "evaluate": "agents.control.evaluation",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
