"""An agent that tunes a language model: PPO, GRPO, RLOO or REINFORCE, told apart by ``TextAgentConfig`` alone.

    rollout ─► judge: GAE with a critic, or a text's return beside other texts' ─► improve: one loss, one optimizer loop

How texts come about is ``agents.text.collector``'s; what surrounds both methods below is ``agents.agent``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent
from agents.functional.advantages import generalized_advantages
from agents.functional.group_advantages import flat_groups, group_advantages, leave_one_out_advantages
from agents.functional.masked import fill_masked, masked_mean, whiten
from agents.functional.schedules import value_at
from agents.rollout import Batch, Rollout
from agents.runs.checkpoint import CheckpointError
from agents.runs.distributed import ALONE
from agents.runs.logging import MetricSink
from agents.text.config import GROUP_ALGORITHMS, TextAgentConfig
from agents.text.objective import REDUCTIONS, AgainstReference, text_objective
from agents.update import update

METRICS: dict[str, str] = {
    "train/kl_loss": "mean KL to the reference by kl_estimator, nats per token; times rollout/beta in the loss",
    "train/flat_groups": "share of groups whose texts all have the same return, [0, 1]: they teach nothing",
    "train/baseline": "what REINFORCE subtracted from the returns, reward units",
    "time/tokens_per_second": "response tokens of this iteration / its seconds, rollout and update",
}
"""Every figure this agent adds to those of ``agents.runs.logging`` and ``agents.text.collector``."""


class TextAgent(Agent):
    """Learns from whole texts.

    Args:
        config: see ``TextAgentConfig``.
        policy: a causal LM, or what speaks like one; with a critic if and only if the algorithm has one.
        collector: an ``agents.text.collector.TextCollector``.
        reference: a policy that the exact KL of ``kl_estimator="full"`` is measured against; None otherwise.
        logger: as in ``Agent``.

    Raises:
        ValueError: if collector and configuration disagree about groups or about who charges the KL; if the policy has
            a critic that nobody asks, or lacks one; if the plain policy gradient would take several steps a batch.
    """

    algorithm = "text"
    config_type = TextAgentConfig

    def __init__(
        self,
        config: TextAgentConfig,
        policy: Any,
        collector: Any = None,
        *,
        reference: Any = None,
        logger: MetricSink | None = None,
    ) -> None:
        super().__init__(config, policy, collector, logger=logger)
        self.reference = reference
        self.processes = getattr(collector, "processes", ALONE)
        """That train the policy together; the collector's."""
        self.processes.broadcast_in_place(self.policy.state_dict().values())
        self._judgment: dict[str, float] = {}
        self.moving_baseline: float | None = None
        """Running average of the returns, reward units, before the newest rollout; None before the first."""
        self.newest: tuple[Rollout, Batch] | None = None
        """What was written last and how it was judged, to look at; None before the first rollout."""
        _check(self.config, self.policy, collector, reference)

    def _learning_parts(self) -> tuple[Any, torch.optim.Optimizer]:
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        rate = value_at(self.config.learning_rate, 0.0)
        return self.policy, torch.optim.Adam(trained, lr=rate, eps=self.config.adam_eps, fused=True)

    def iterate(self) -> None:
        """As every agent's, and the tokens it went through a second."""
        super().iterate()
        texts_per_second = self.metrics["time/steps_per_second"]
        self.metrics["time/tokens_per_second"] = texts_per_second * self.metrics["rollout/length_mean"]

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """One token for one observation or a batch of them; see ``Agent.predict``.

        Args:
            observation: token ids right-padded with -1, ``[L]`` or ``[B, L]``, as the token environments give them.
            state: passed through.
            episode_start: ignored.
            deterministic: the likeliest token instead of a sample.
        """
        rows = torch.as_tensor(np.asarray(observation), dtype=torch.int64, device=self.policy.device)
        batch = rows[None] if rows.dim() == 1 else rows
        tokens, _ = self.policy.act(batch, deterministic=deterministic, generator=self.predict_generator)
        actions = tokens.cpu().numpy()
        return (actions[0] if rows.dim() == 1 else actions), state

    def compute_advantages(self, rollout: Rollout) -> Batch:
        """Advantages: by GAE and the critic, or by comparing the returns of whole texts."""
        batch = self._by_critic(rollout) if self.config.uses_critic else self._by_comparison(rollout)
        self.newest = rollout, batch
        return batch

    def _by_critic(self, rollout: Rollout) -> Batch:
        config, rewards = self.config, rollout.rewards
        if config.whiten_rewards:
            rewards = whiten(rewards, rollout.mask, shift_mean=config.whiten_shift_mean)
        advantages = self._gae(rollout, rewards, config.lam)
        if config.critic_lam is None:
            return rollout.to_batch(advantages)
        return rollout.to_batch(advantages, self._gae(rollout, rewards, config.critic_lam) + rollout.values)

    def _gae(self, rollout: Rollout, rewards: Tensor, lam: float) -> Tensor:
        values, next_values, terminated = rollout.values, rollout.next_values, rollout.terminated
        return generalized_advantages(
            rewards, values, next_values, terminated, rollout.ended, gamma=self.config.gamma, lam=lam, mask=rollout.mask
        )

    def _by_comparison(self, rollout: Rollout) -> Batch:
        if bool((rollout.ended & ~rollout.terminated).any()):
            raise ValueError(f"{self.config.algorithm} has no critic to bootstrap from: a budget must not truncate")
        config, mask = self.config, rollout.mask
        returns = fill_masked(rollout.rewards, mask).sum(1)
        if config.algorithm in GROUP_ALGORITHMS:
            self._judgment["train/flat_groups"] = flat_groups(returns, config.group_size)
        if config.algorithm == "grpo":
            advantages = group_advantages(returns, config.group_size, normalize_std=config.normalize_std)
        elif config.algorithm == "rloo":
            advantages = leave_one_out_advantages(returns, config.group_size)
        else:
            return rollout.to_batch(self._less_baseline(rollout, returns), torch.zeros_like(rollout.rewards))
        spread = fill_masked(advantages[:, None].expand_as(rollout.rewards), mask)
        return rollout.to_batch(spread, torch.zeros_like(rollout.rewards))

    def _less_baseline(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """REINFORCE's advantages ``[B, T]``: returns, of the text or from the token on, less one number."""
        config, mask = self.config, rollout.mask
        if config.reward_to_go:
            credit = self._gae(rollout, rollout.rewards, 1.0)  # of a critic that says 0 everywhere
            mean = float(masked_mean(credit, mask))
        else:
            credit, mean = returns[:, None].expand_as(rollout.rewards), float(returns.mean())
        earlier = mean if self.moving_baseline is None else self.moving_baseline
        baseline = {"none": 0.0, "batch": mean, "moving": earlier}[config.baseline]
        self.moving_baseline = config.baseline_decay * earlier + (1.0 - config.baseline_decay) * mean
        self._judgment["train/baseline"] = baseline
        return fill_masked(credit - baseline, mask)

    def update(self, batch: Batch) -> dict[str, float]:
        """A few passes of the loss that the configuration describes; figures as in ``agents.update.update``."""
        config = self.config
        rate, clip = value_at(config.learning_rate, self.progress), value_at(config.clip, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        exact = config.kl_in != "reward" and config.kl_estimator == "full"
        with frozen(self.policy.actor_parameters() if self.updates < config.critic_warmup else []):
            figures = update(
                AgainstReference(self.policy, self.reference) if exact else self.policy,
                self.optimizer,
                batch,
                config,
                clip=clip,
                clip_high=config.clip_high,
                generator=self.generator,
                objective=text_objective(config, clip=clip, beta=getattr(self.collector, "beta", 0.0)),
                reduction=REDUCTIONS[config.average][1],
                processes=self.processes,
            )
        return {**figures, **self._judgment, "train/learning_rate": rate, "train/clip": clip}

    def state_dict(self) -> dict[str, Any]:
        """As every agent's, under the algorithm's own name and with the running baseline."""
        return {
            **super().state_dict(),
            "algorithm": self.config.algorithm,
            "moving_baseline": self.moving_baseline,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As every agent's."""
        super().load_state_dict(state)
        self.moving_baseline = state["moving_baseline"]

    @classmethod
    def _refuse_other(cls, state: dict[str, Any]) -> None:
        if state["algorithm"] != state["config"].get("algorithm"):
            raise CheckpointError(f"the checkpoint is of {state['algorithm']!r}, and not of an agent for text")


@contextmanager
def frozen(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """No gradient reaches ``parameters`` inside the block, so that an optimizer step leaves them as they are."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _check(config: TextAgentConfig, policy: Any, collector: Any, reference: Any) -> None:
    if policy.has_critic != config.uses_critic:
        raise ValueError(
            f"{config.algorithm} {'needs' if config.uses_critic else 'has no use for'} a critic: "
            f"give the policy {'one' if config.uses_critic else 'critic=' + repr('none')}"
        )
    if config.kl_in != "reward" and config.kl_estimator == "full" and reference is None:
        raise ValueError('kl_estimator "full" needs the reference itself: pass reference=')
    if collector is None:
        return
    if collector.group_size != config.group_size:
        raise ValueError(
            f"the environment draws each prompt {collector.group_size} times in a row, the algorithm expects "
            f"{config.group_size}: give both the same group_size"
        )
    rows = collector.base.num_envs
    if config.policy_loss == "plain" and (config.minibatch_size or rows) < rows:
        raise ValueError(
            f"the plain policy gradient holds for one step a batch: minibatch_size must be {rows} or more, received "
            f"{config.minibatch_size} (microbatch_size bounds the memory)"
        )
    charged, expected = collector.charges_kl, config.kl_in != "loss"
    if charged is None and config.kl_in != "reward":
        raise ValueError(f'kl_in "{config.kl_in}" needs an environment with KLShaping')
    if charged is not None and charged != expected:
        twice = "charge the KL twice; ask for it with kl_in=" + repr("both") + ", or build KLShaping with charge=False"
        never = "never charge the KL: build KLShaping with charge=True"
        raise ValueError(f'kl_in "{config.kl_in}" would {twice if charged else never}')
