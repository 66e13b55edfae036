"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347): how an agent updates from a batch."""

from __future__ import annotations

from typing import Any

import torch

from agents.config import PPOConfig
from agents.control.agent import ControlAgent
from agents.control.fast_mlp import FastMLP, is_fast
from agents.functional.schedules import value_at
from agents.rollout import Batch
from agents.update import update


class ControlPPO(ControlAgent):
    """An agent trained with PPO; arguments are ``ControlAgent``'s, settings are ``PPOConfig``'s."""

    algorithm = "ppo"
    config_type = PPOConfig

    def _learning_parts(self) -> tuple[Any, torch.optim.Optimizer]:
        config = self.config
        plain_loss = config.value_clip is None and config.microbatch_size is None and self.objective is None
        learner: Any = FastMLP(self.policy) if plain_loss and is_fast(self.policy) else self.policy
        fast = isinstance(learner, FastMLP)
        trained: Any = [learner.flat] if fast else [p for p in self.policy.parameters() if p.requires_grad]
        rate = value_at(config.learning_rate, 0.0)
        return learner, torch.optim.Adam(trained, lr=rate, eps=config.adam_eps, fused=True)

    def update(self, batch: Batch) -> dict[str, float]:
        """A few epochs of clipped updates; metrics as in ``agents.update.update``."""
        if isinstance(self.learner, FastMLP):
            self.learner.check()
        rate, clip = value_at(self.config.learning_rate, self.progress), value_at(self.config.clip, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        how: dict[str, Any] = {"clip": clip, "generator": self.generator, "objective": self.objective}
        figures = update(self.learner, self.optimizer, batch, self.config, **how)
        return {**figures, "train/learning_rate": rate, "train/clip": clip}
