"""Trust region policy optimization (Schulman et al. 2015, arXiv:1502.05477): how an agent updates from a batch.

One step of the policy for each batch, as far as the KL allows (``agents.functional.trust_region``), then several
passes of plain regression for the critic.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agents.config import TRPOConfig
from agents.control.agent import ControlAgent
from agents.control.fast_mlp import FastMLP, is_fast
from agents.functional import losses
from agents.functional.masked import explained_variance, whiten
from agents.functional.schedules import value_at
from agents.functional.trust_region import flatten, hessian_product, line_search, natural_step
from agents.rollout import Batch
from agents.update import minibatches


class ControlTRPO(ControlAgent):
    """TRPO over steps; arguments are ``ControlAgent``'s, settings are ``TRPOConfig``'s.

    Raises:
        ValueError: also for a policy without ``outputs``, ``head`` and ``critic``, as ``MLPPolicy`` has them.
    """

    algorithm = "trpo"
    config_type = TRPOConfig

    def _learning_parts(self) -> tuple[Any, torch.optim.Optimizer]:
        policy = self.policy
        if self.objective is not None:
            raise ValueError("objective: expected None, as TRPO has its own surrogate; PPO takes a loss of yours")
        missing = [name for name in ("outputs", "head", "critic") if not hasattr(policy, name)]
        if missing:
            raise ValueError(
                f"TRPO measures the KL between whole distributions and needs an MLPPolicy, or one with its `outputs`, "
                f"`head` and `critic`; received {type(policy).__name__} without {', '.join(missing)}"
            )
        learner = FastMLP(policy) if is_fast(policy) else policy  # the fast form acts; derivatives are autograd's here
        critic = [p for p in policy.critic.parameters() if p.requires_grad]
        valued = {id(p) for p in policy.critic.parameters()}
        self.actor_parameters = [p for p in policy.parameters() if p.requires_grad and id(p) not in valued]
        rate = value_at(self.config.learning_rate, 0.0)
        return learner, torch.optim.Adam(critic, lr=rate, eps=self.config.adam_eps, fused=True)

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of the policy within its trust region, then regression of the critic.

        Raises:
            ValueError: if the batch has no step that counts.
            FloatingPointError: if the gradient or the critic's loss is not finite any more.
        """
        explained = float(explained_variance(batch.old_values, batch.returns, batch.mask))
        if self.config.normalize_advantages == "batch":
            batch = replace(batch, advantages=whiten(batch.advantages, batch.mask))
        batch = batch.single_steps()
        figures = {**self._improve_policy(batch), **self._fit_critic(batch)}
        return {**figures, "train/explained_variance": explained}

    def _improve_policy(self, batch: Batch) -> dict[str, float]:
        config, head, parameters = self.config, self.policy.head, self.actor_parameters
        outputs = self.policy.outputs(batch.observations)
        present = head.distribution(outputs)
        old = tuple(part.detach().clone() for part in present)
        surrogate, entropy = self._surrogate(outputs, batch)
        gradient = flatten(torch.autograd.grad(surrogate, parameters, retain_graph=True, materialize_grads=True))
        if not bool(torch.isfinite(gradient).all()):
            raise FloatingPointError("the gradient of TRPO's surrogate is not finite")
        product = hessian_product(head.kl(old, present).mean(), parameters)
        step, residual = natural_step(
            product, gradient, target_kl=config.target_kl, steps=config.cg_steps, damping=config.cg_damping
        )
        start, before = flatten(parameters).detach(), float(surrogate.detach())
        gain = kl = 0.0

        @torch.no_grad()
        def measure(point: Tensor) -> tuple[float, float]:
            nonlocal gain, kl
            self._put(point)
            outputs = self.policy.outputs(batch.observations)
            gain = float(self._surrogate(outputs, batch)[0]) - before
            kl = float(head.kl(old, head.distribution(outputs)).mean())
            return gain, kl

        limits = {"target_kl": config.target_kl, "shrink": config.line_search_shrink}
        point, tries = line_search(measure, start, step, tries=config.line_search_steps, **limits)
        self._put(point)
        return {
            "train/surrogate_gain": gain if tries else 0.0,
            "train/kl": kl if tries else 0.0,
            "train/line_search_tries": float(tries),
            "train/cg_residual": residual,
            "train/entropy": float(entropy),
        }

    def _surrogate(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The surrogate objective and the mean entropy (nats); ``batch`` has no masked steps left."""
        logprobs, entropy = self.policy.head.evaluate(outputs, batch.actions)
        return -losses.surrogate_loss(logprobs, batch.old_logprobs, batch.advantages, None), entropy.detach().mean()

    @torch.no_grad()
    def _put(self, point: Tensor) -> None:
        """Make ``point`` ``[P]`` the actor's parameters, in place: the fast form keeps views of them."""
        sizes = [parameter.numel() for parameter in self.actor_parameters]
        for parameter, part in zip(self.actor_parameters, point.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))

    def _fit_critic(self, batch: Batch) -> dict[str, float]:
        config, rate = self.config, value_at(self.config.learning_rate, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seen = []
        for _ in range(config.critic_epochs):
            for part in minibatches(batch, config.critic_minibatch_size, self.generator):
                self.optimizer.zero_grad()
                loss = losses.value_loss(self.policy.values(part.observations), part.returns, None)
                loss.backward()
                self.optimizer.step()
                seen.append(loss.detach())
        mean = float(torch.stack(seen).mean())
        if not math.isfinite(mean):
            raise FloatingPointError(f"the critic's loss is not finite: {mean}")
        return {"train/value_loss": mean, "train/learning_rate": rate}
