"""Checks of the text path: scores and KL penalties count once, step path = batch path, masked values are ignored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from agents.config import UpdateConfig
from agents.functional.advantages import generalized_advantages
from agents.rollout import Batch, Rollout
from agents.text.collector import TextCollector
from agents.update import update
from agents.verification.checks import Check, Checking, Part, about, at_most, flat_grad, near, relative_error
from agents.verification.models.policy import BUDGET, ROWS, TOLERANCE, Model
from textenvs import KLShaping, PreferenceReward, TokenVectorEnv
from textenvs.tokens.rows import PAD

BETA = 0.3
"""Reward units per nat."""


class Evens:
    """A score defined for any vocabulary: 1 plus the number of even tokens."""

    @staticmethod
    def score_tokens(prompts: np.ndarray, completions: np.ndarray) -> np.ndarray:
        """``[N]`` reward units."""
        return 1.0 + ((completions % 2 == 0) & (completions != PAD)).sum(1)


def text_checks(model: Model) -> list[Checking]:
    """All checks of a model in the text environments."""
    parts: list[Part] = [
        ("the score lands on one action, and rewards sum to score - beta KL (T4)", terminal_score),
        ("step path = batch path", stepping),
        ("KL of the initial policy against itself is 0 (T13)", kl_at_start),
        ("the first minibatch has ratio 1 (P2)", ratio_one),
        ("at ratio 1 the gradient is the policy gradient's (P3)", gradient),
        ("masked values change nothing (T6)", garbage),
    ]
    return about(model, parts)


def environment(model: Model, **options: Any) -> KLShaping:
    """Texts scored by ``Evens``, with a KL penalty against the untrained model."""
    prompts = [[int(token) for token in row if token != PAD] for row in model.prompts]
    options |= {"eos_token_id": model.eos_token_id, "vocab_size": model.policy.vocab_size}
    envs = TokenVectorEnv(ROWS, prompts=prompts, max_new_tokens=BUDGET, shuffle=False, **options)
    return KLShaping(PreferenceReward(envs, Evens()), model.reference, BETA)


def example_rows(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts, completions that end by end-of-text or by budget, and arbitrary log-probs of the sampling policy."""
    completions = model.completions.numpy().copy()
    generator = np.random.default_rng(0)
    for row in completions:
        if model.eos_token_id is None or model.eos_token_id not in row:
            row[row == PAD] = 1 if model.eos_token_id != 1 else 2
    return model.prompts.numpy(), completions, -generator.uniform(0.1, 5.0, completions.shape).astype(np.float32)


def terminal_score(model: Model) -> list[Check]:
    """Rows ended by end-of-text and by budget."""
    rows = environment(model).play(*example_rows(model))
    assert rows.kl is not None
    paid = rows.rewards + np.float32(BETA) * rows.kl
    last = rows.mask.sum(1) - 1
    once = np.zeros_like(paid)
    once[np.arange(ROWS), last] = Evens.score_tokens(rows.prompts, rows.completions)
    total = rows.rewards.sum(1) - (once.sum(1) - BETA * rows.kl.sum(1))
    ends = zip(*np.unique(rows.stop_reason, return_counts=True), strict=True)
    note = f"; {', '.join(f'{number} by {end}' for end, number in ends)}"
    return [
        at_most("the score lands on the last action, once (T4)", float(np.abs(paid - once).max()), TOLERANCE, note),
        at_most("a row's rewards sum to score - beta KL (T4)", float(np.abs(total).max()), TOLERANCE),
    ]


def stepping(model: Model) -> list[Check]:
    """One token at a time, with caches, against whole rows in one pass."""
    prompts, completions, logprobs = example_rows(model)
    rows = environment(model).play(prompts, completions, logprobs)
    envs = environment(model, autoreset_mode="NextStep")
    envs.reset(seed=0)
    alive, worst, flags = np.ones(ROWS, bool), 0.0, 0
    for t in range(BUDGET):
        envs.unwrapped.hand_logprobs(np.where(alive, logprobs[:, t], -1.0))  # type: ignore[attr-defined]
        chosen = np.where(alive, completions[:, t], 1)
        _, rewards, terminated, truncated, _ = envs.step(chosen)
        worst = float(np.max([worst, *np.abs(rewards - rows.rewards[:, t])[alive]]))
        over = np.ones(ROWS, bool) if t == BUDGET - 1 else completions[:, t + 1] == PAD
        flags += int(((terminated | truncated) != over)[alive].sum())
        alive &= ~(terminated | truncated)
        if not alive.any():
            break
    return [
        at_most("step path = batch path: rewards", worst, TOLERANCE),
        at_most("step path = batch path: episode ends that differ", flags, 0),
    ]


def kl_at_start(model: Model) -> Check:
    """The policy against a copy of itself, with the real collector."""
    collector = TextCollector(environment(model), seed=0)
    collector.collect(model.policy)
    assert collector.last is not None
    assert collector.last.kl is not None
    worst = float(np.abs(collector.last.kl).max())
    return at_most("KL of the initial policy against itself is 0, nats per token (T13)", worst, TOLERANCE)


def ratio_one(model: Model) -> list[Check]:
    """Log-probs logged while sampling against those of the update."""
    rollout = _rollout(model)
    with torch.no_grad():
        now = model.policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
    ratio = (now.logprobs - rollout.logprobs)[rollout.mask].exp()
    outside = float(((ratio - 1).abs() > 0.01).float().mean())
    return [
        at_most("text, first minibatch: largest |ratio - 1| (P2)", float((ratio - 1).abs().max()), TOLERANCE),
        at_most("text, first minibatch: share clipped at 0.01 (P2)", outside, 0.0),
    ]


def gradient(model: Model) -> Check:
    """PPO's against that of ``-mean(log pi A)``, relative to its norm."""
    batch = _batch(_rollout(model))
    ours, _ = _gradient(model, batch)
    model.policy.zero_grad()
    logprobs = model.policy.evaluate(batch.observations, batch.actions, batch.mask).logprobs
    (-(logprobs * batch.advantages)[batch.mask].mean()).backward()
    plain = flat_grad(model.policy.model)
    model.policy.zero_grad()
    return at_most("text: at ratio 1 PPO's gradient = policy gradient's (P3)", relative_error(ours, plain), 1e-3)


def garbage(model: Model) -> list[Check]:
    """1e6, infinity and NaN where the mask is False."""
    rollout = _rollout(model)
    if bool(rollout.mask.all()):  # no row ended early: mask the second half of one
        rollout.mask[0, BUDGET // 2 :] = False
        rollout.ended[0, BUDGET // 2 - 1] = True
    batch = _batch(rollout)
    clean, metrics = _gradient(model, batch)
    checks = []
    for poison in (1e6, float("inf"), float("nan")):
        names = ("rewards", "values", "next_values", "logprobs")
        poisoned = {name: getattr(rollout, name).masked_fill(~rollout.mask, poison) for name in names}
        dirty = _batch(replace(rollout, **poisoned))
        got, theirs = _gradient(model, dirty)
        advantages = float((dirty.advantages - batch.advantages).abs().max())
        gaps = [advantages, relative_error(got, clean), *(abs(metrics[name] - theirs[name]) for name in metrics)]
        checks.append(near(f"{poison:g} at masked steps changes nothing (T6)", float(np.max(gaps)), 0.0, 1e-6))
    return checks


def _rollout(model: Model) -> Rollout:
    return TextCollector(environment(model), seed=0).collect(model.policy)[0]


def _batch(r: Rollout) -> Batch:
    parts = (r.rewards, r.values, r.next_values, r.terminated, r.ended)
    return r.to_batch(generalized_advantages(*parts, gamma=1.0, lam=0.95, mask=r.mask))


def _gradient(model: Model, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient of one update over the whole batch, policy loss alone, with a learning rate of 0."""
    config = UpdateConfig(epochs=1, minibatch_size=ROWS, value_coef=0.0, normalize_advantages="none", max_grad_norm=1e9)
    optimizer = torch.optim.SGD(model.policy.parameters(), lr=0.0)
    metrics = update(model.policy, optimizer, batch, config, clip=0.2, generator=torch.Generator())
    return flat_grad(model.policy.model), metrics
