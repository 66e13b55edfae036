"""An agent that tunes a language model by PPO, GRPO, RLOO or REINFORCE, which differ in ``TextAgentConfig`` only.

    rollout ─► advantages: GAE with a critic, or a text's return relative to other texts' ─► update: one loss, one loop

Rollouts come from ``agents.text.collector``; the training loop is in ``agents.agent``.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.agent import Agent
from agents.functional.group_advantages import flat_groups, group_advantages, leave_one_out_advantages
from agents.functional.masked import fill_masked, masked_mean, whiten
from agents.functional.schedules import value_at
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.sharding import Shards
from agents.rollout import Batch, Rollout
from agents.runs import checkpoint
from agents.runs.checkpoint import CheckpointError
from agents.runs.distributed import ALONE, is_sharded
from agents.runs.logging import MetricSink
from agents.text.advantages import critic_advantages, group_turn_advantages, turn_rewards_to_go
from agents.text.branches import branched, check_branches
from agents.text.collector import TextCollector
from agents.text.config import GROUP_ALGORITHMS, TextAgentConfig
from agents.text.objective import REDUCTIONS, WithExactKL, text_objective
from agents.text.stepwise import TextPolicy
from agents.update import Objective, frozen, update
from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.tokens.rows import PAD, as_token_ids

METRICS: dict[str, str] = {
    "train/kl_loss": "mean KL to the reference by kl_estimator, nats per token; times rollout/beta in the loss",
    "train/flat_groups": "share of groups whose texts all have the same return, [0, 1]: their advantages are 0",
    "train/baseline": "subtracted from the returns by REINFORCE, reward units",
    "time/tokens_per_second": "response tokens of this iteration / its seconds, rollout and update",
}
"""Every metric this agent adds to those of ``agents.runs.logging`` and ``agents.text.rollout_metrics``."""

EARLY_UPDATES, EARLY_NATS = 5, 5.0
"""In so many updates the policy is expected to move by less than so many nats per sequence."""


class TextAgent(Agent):
    """Trains a policy on whole texts.

    Args:
        config: see ``TextAgentConfig``.
        policy: a causal LM or another policy over rows of tokens; with a critic if and only if the algorithm uses one.
        collector: source of rollouts; None for an agent that only predicts.
        reference: the policy to which ``kl_estimator="full"`` measures the exact KL; None otherwise.
        logger, objective, verbose: as in ``Agent``.

    Raises:
        ValueError: if collector and configuration differ in group size or in where the KL is charged; if the policy has
            a critic that is not used, or lacks one; if the plain policy gradient would take several steps a batch.
    """

    algorithm = "text"
    config_type = TextAgentConfig
    collector: TextCollector | None

    def __init__(
        self,
        config: TextAgentConfig,
        policy: TextPolicy,
        collector: TextCollector | None = None,
        *,
        reference: CausalLMPolicy | None = None,
        logger: MetricSink | None = None,
        objective: Objective | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(config, policy, collector, logger=logger, objective=objective, verbose=verbose)
        self.reference = reference
        self.processes = ALONE if collector is None else collector.processes
        """The processes that train the policy together."""
        self.processes.broadcast_in_place(self.policy.state_dict().values())
        self.shards = Shards(self.policy, self.processes, self.state_dict) if is_sharded(self.policy) else None
        """What is done together with the other processes; None unless the policy is sharded."""
        self._advantage_metrics: dict[str, float] = {}
        self._warned = False
        self.moving_baseline: float | None = None
        """Running average of the returns, reward units; None before the first rollout."""
        self.newest: tuple[Rollout, Batch] | None = None
        """The newest rollout and its training batch, for inspection; None before the first."""
        self.monitors: dict[str, Any] | None = None
        """State of `agents.evaluation.monitoring.Monitors`, kept in checkpoints; None without it."""
        check_parts(self.config, self.policy, collector, reference)

    def _learning_parts(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        config = self.config
        return self.policy, torch.optim.AdamW(
            trained, lr=value_at(config.learning_rate, 0.0), betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps, weight_decay=config.weight_decay, fused=True,
        )  # fmt: skip

    def iterate(self) -> None:
        """One rollout and its update; also logs tokens per second, and warns of a start that runs away.

        Raises:
            RewardError, DialogueError, EngineError: a scorer, an environment or an engine failed; the agent is as
                before the call, so that training can be saved and go on. So it is after Ctrl-C in a rollout.
        """
        assert self.collector is not None
        before = self.collector.state_dict()
        try:
            super().iterate()
        except BaseException:
            self.collector.load_state_dict(before)
            raise
        moved = self.metrics.get("rollout/kl_per_sequence", 0.0)
        if 1 < self.updates <= EARLY_UPDATES and moved > EARLY_NATS and not self._warned:
            self._warned = True
            warnings.warn(
                f"after {self.updates - 1} updates the policy is {moved:.1f} nats per sequence from the reference: "
                f"learning_rate {value_at(self.config.learning_rate, 0.0):g} is probably too high for this model",
                stacklevel=2,
            )
        texts_per_second = self.metrics["time/steps_per_second"]
        self.metrics["time/tokens_per_second"] = texts_per_second * self.metrics["rollout/length_mean"]

    def predict(
        self, observation: object, state: object = None, episode_start: object = None, deterministic: bool = False
    ) -> tuple[NDArray[np.int64], object]:
        """One token for one observation or a batch of them, as in Stable-Baselines3: ``[L]`` or ``[B, L]`` token ids
        right-padded with -1, as the token environments give them; ``deterministic``: the most likely one instead of a
        sample."""
        rows = torch.from_numpy(as_token_ids(observation, self.policy.vocab_size)).to(self.policy.device)
        batch = rows[None] if rows.dim() == 1 else rows
        tokens, _ = self.policy.act(batch, deterministic=deterministic, generator=self.predict_generator)
        actions = tokens.cpu().numpy()
        return (actions[0] if rows.dim() == 1 else actions), state

    def compute_advantages(self, rollout: Rollout) -> Batch:
        """Advantages by GAE with the critic, or by comparing the returns of whole texts."""
        batch = self._by_critic(rollout) if self.config.uses_critic else self._by_comparison(rollout)
        self.newest = rollout, batch
        return batch

    def _by_critic(self, rollout: Rollout) -> Batch:
        config, rewards = self.config, rollout.rewards
        if config.whiten_rewards:
            rewards = whiten(rewards, rollout.mask, shift_mean=config.whiten_shift_mean)
        advantages = critic_advantages(rollout, rewards, config.lam, config)
        targets = None
        if config.critic_lam is not None:
            targets = critic_advantages(rollout, rewards, config.critic_lam, config) + rollout.values
        batch = rollout.to_batch(advantages, targets)
        if config.branches:
            beta = 0.0 if self.collector is None else self.collector.beta
            how: Any = {"beta": beta, "generator": self.generator, "processes": self.processes}
            batch = branched(batch, rollout, config, self.policy, self.reference, **how)
        return batch

    def _by_comparison(self, rollout: Rollout) -> Batch:
        if bool((rollout.ended & ~rollout.terminated).any()):
            raise ValueError(
                f"expected terminated texts for {self.config.algorithm}, which has no critic, received truncated ones"
            )
        config, mask = self.config, rollout.mask
        returns = fill_masked(rollout.rewards, mask).sum(1)
        if config.algorithm in GROUP_ALGORITHMS:
            flat = flat_groups(returns, config.group_size)
            self._advantage_metrics["train/flat_groups"] = float(flat.float().mean())
        if config.algorithm == "grpo":
            advantages = group_advantages(returns, config.group_size, normalize_std=config.normalize_std)
        elif config.algorithm == "rloo":
            advantages = leave_one_out_advantages(returns, config.group_size)
        else:
            return rollout.to_batch(self._less_baseline(rollout, returns), torch.zeros_like(rollout.rewards))
        spread = fill_masked(advantages[:, None].expand_as(rollout.rewards), mask)
        if config.credit != "token":
            by_turn = group_turn_advantages(rollout, config)
            spread = by_turn if config.credit == "turn" else spread + config.state_weight * by_turn
        return rollout.to_batch(spread, torch.zeros_like(rollout.rewards))

    def _less_baseline(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """REINFORCE's advantages ``[B, T]``: returns of the text, or rewards to go, minus the baseline."""
        config, mask = self.config, rollout.mask
        if config.credit == "turn":
            credit = turn_rewards_to_go(rollout, config)
            mean = float(masked_mean(credit, mask))
        elif config.reward_to_go:
            credit = critic_advantages(rollout, rollout.rewards, 1.0, config)  # values are 0 without a critic
            mean = float(masked_mean(credit, mask))
        else:
            credit, mean = returns[:, None].expand_as(rollout.rewards), float(returns.mean())
        earlier = mean if self.moving_baseline is None else self.moving_baseline
        baseline = {"none": 0.0, "batch": mean, "moving": earlier}[config.baseline]
        self.moving_baseline = config.baseline_decay * earlier + (1.0 - config.baseline_decay) * mean
        self._advantage_metrics["train/baseline"] = baseline
        return fill_masked(credit - baseline, mask)

    def update(self, batch: Batch) -> dict[str, float]:
        """Minimize the loss that the configuration describes; returns metrics, as ``agents.update.update`` does."""
        config = self.config
        if config.microbatch_tokens is not None:
            longest = int(((batch.observations != PAD).sum(1) + (batch.actions != PAD).sum(1)).max())
            rows = config.microbatch_rows(longest)
            config = replace(config, microbatch_size=rows, microbatch_tokens=None)
        if config.branches:  # which have been normalized
            config = replace(config, normalize_advantages="none")
        rate = value_at(config.learning_rate, self.progress) * config.warmup(self.updates)
        clip = value_at(config.clip, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        reference = self.reference if config.kl_in != "reward" and config.kl_estimator == "full" else None
        beta = 0.0 if self.collector is None else self.collector.beta
        with frozen(self.policy.actor_parameters() if self.updates < config.critic_warmup else []):
            metrics = update(
                self.policy if reference is None else WithExactKL(self.policy, reference),
                self.optimizer,
                batch,
                config,
                clip=clip,
                clip_high=config.clip_high,
                generator=self.generator,
                objective=self.objective or text_objective(config, clip=clip, beta=beta),
                reduction=REDUCTIONS[config.average][1],
                processes=self.processes,
            )
        return {**metrics, **self._advantage_metrics, "train/learning_rate": rate, "train/clip": clip}

    def state_dict(self) -> dict[str, Any]:
        """As in ``Agent``, with the name of the algorithm, the running baseline and the monitors' state."""
        own = {"algorithm": self.config.algorithm, "moving_baseline": self.moving_baseline, "monitors": self.monitors}
        return {**super().state_dict(), **own}

    def save(self, path: str | Path) -> Path:
        """As in ``Agent``; what is sharded all processes save, which do so while they wait for the main one."""
        return super().save(path) if self.shards is None else self.shards.save(path)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As in ``Agent``, from a run of any number of processes."""
        super().load_state_dict(checkpoint.filled(state, None if self.shards is None else self.shards.mesh))
        self.moving_baseline = state["moving_baseline"]
        self.monitors = state.get("monitors")

    @classmethod
    def _refuse_other(cls, state: dict[str, Any]) -> None:
        if state["algorithm"] != state["config"].get("algorithm"):
            raise CheckpointError(f"expected a checkpoint of a text agent, received one of {state['algorithm']!r}")


def check_parts(
    config: TextAgentConfig, policy: TextPolicy, collector: TextCollector | None, reference: CausalLMPolicy | None
) -> None:
    """Raise ValueError unless policy, collector and reference are what ``config`` needs, and fit one another."""
    if policy.has_critic != config.uses_critic:
        expected = "a policy with a critic" if config.uses_critic else 'a policy without a critic (critic="none")'
        raise ValueError(f"policy: expected {expected} for {config.algorithm}, received the opposite")
    exact = config.kl_in != "reward" and config.kl_estimator == "full"
    if (exact or config.branches) and reference is None:
        needed = 'kl_estimator "full"' if exact else "branches"
        raise ValueError(f"reference: expected a policy for {needed}, received None")
    if config.branches:
        check_branches(policy, None if collector is None else collector.base)
    if collector is None:
        return
    collector.check_fits(policy)
    for name, place in (("group_size", "environment"), ("dynamic_sampling", "collector")):
        expected, received = getattr(config, name), getattr(collector, name)
        if expected != received:
            raise ValueError(f"{name}: expected {expected} in the {place}, as configured, received {received}")
    if (config.credit != "token" or config.gamma_turn != 1) and not isinstance(collector.base, DialogueVectorEnv):
        raise ValueError(
            f'credit "{config.credit}", gamma_turn {config.gamma_turn}: expected an environment of dialogues, received '
            f"a {type(collector.base).__name__}, whose texts are of one turn"
        )
    if not config.uses_critic and collector.base.budget == "truncate":
        raise ValueError(
            f'budget: expected "terminate" for {config.algorithm}, which has no critic, received "truncate"'
        )
    rows = collector.base.num_envs
    if config.policy_loss == "plain" and (config.minibatch_size or rows) < rows:
        raise ValueError(
            f"minibatch_size: expected {rows} or more, since the plain policy gradient holds for one step a batch, "
            f"received {config.minibatch_size} (microbatch_size bounds the memory)"
        )
    charges, expects = collector.charges_kl, config.kl_in != "loss"
    if charges is None and config.kl_in != "reward":
        raise ValueError(f'kl_in "{config.kl_in}": expected an environment with KLShaping, received one without')
    if charges is not None and charges != expects:
        twice = 'charge the KL twice: build KLShaping with charge=False, or pass kl_in="both"'
        never = "never charge the KL: build KLShaping with charge=True"
        raise ValueError(f'kl_in "{config.kl_in}" would {twice if charges else never}')
