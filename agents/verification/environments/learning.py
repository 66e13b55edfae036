"""Checks of PPO in a user's environment: training data, statistics, seeds, resuming."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from agents.algorithms.ppo import PPO
from agents.control.spaces import ObservationEncoder
from agents.verification.checks import Check, Checking, Part, about, at_most, near, not_applicable
from agents.verification.environments.subject import NUM_ENVS, NUM_STEPS, Subject


def learning_checks(subject: Subject) -> list[Checking]:
    """All checks that apply."""
    parts: list[Part] = [
        ("learning rate 0: every minibatch of every epoch has ratio 1 (P2)", ratio_one),
        ("every transition is used exactly once an epoch (P7)", used_once),
        ("forbidden actions have probability 0 and are never taken (P11)", masks),
        ("same seed, same parameters after two updates (S1)", same_parameters),
        ("a resumed run = an uninterrupted one, bit for bit (S2)", resumed),
    ]
    if subject.is_scalar:
        parts += [
            ("only real steps are trained on (A1)", counted),
            ("the environment receives the clipped action, the log-prob is of the unclipped one (P9)", clipped),
            ("running statistics equal those of all observations (N1)", statistics),
        ]
    return about(subject, parts)


def ratio_one(subject: Subject) -> list[Check]:
    """The whole update with learning rate 0."""
    agent = subject.agent(subject.vector(), learning_rate=0.0, clip=1e-3)
    rollout, _ = agent.collector.collect(agent.learner)  # type: ignore[union-attr]
    metrics = agent.update(agent.compute_advantages(rollout))
    with torch.no_grad():
        now = agent.policy.evaluate(rollout.observations, rollout.actions, rollout.mask)
        ratio = (now.logprobs - rollout.logprobs)[rollout.mask].exp()
    claim = "learning rate 0: every minibatch of every epoch has ratio 1 (P2)"
    return [
        at_most(f"{claim}: largest |ratio - 1|", float((ratio - 1).abs().max()), 1e-4),
        at_most("approximate KL at learning rate 0, nats", metrics["train/approx_kl"], 1e-8),
        at_most("clip fraction at learning rate 0 and clip 0.001", metrics["train/clip_fraction"], 0.0),
    ]


def used_once(subject: Subject) -> Check:
    """Count how often one update evaluates each transition."""
    agent = subject.agent(subject.vector())
    seen: Counter[bytes] = Counter()
    method = "ppo_gradient" if hasattr(agent.learner, "ppo_gradient") else "evaluate"
    original = getattr(agent.learner, method)

    def note(observations: torch.Tensor, actions: torch.Tensor) -> None:
        flat = torch.cat([observations.reshape(len(actions), -1), actions.reshape(len(actions), -1)], 1)
        seen.update(row.numpy().tobytes() for row in flat)

    def spying(first: Any, *rest: Any) -> Any:
        note(*((first.observations, first.actions) if method == "ppo_gradient" else (first, rest[0])))
        return original(first, *rest)

    batch = agent.compute_advantages(agent.collector.collect(agent.learner)[0])  # type: ignore[union-attr]
    setattr(agent.learner, method, spying)
    agent.update(batch)
    used, seen = seen, Counter()
    batch = batch.single_steps()
    note(batch.observations, batch.actions)
    wrong = sum(abs(used[row] - 3 * number) for row, number in (seen | used).items() for number in [seen[row]])
    return at_most("", wrong, 0, f" uses off, of {3 * batch.num_rows}")


def counted(subject: Subject) -> list[Check]:
    """Rows of the batch against the number of environment steps."""
    checks = []
    for mode in AutoresetMode:
        envs, recorders = subject.recorded(mode)
        agent = subject.agent(envs)
        rollout, _ = agent.collector.collect(agent.learner)  # type: ignore[union-attr]
        rows = agent.compute_advantages(rollout).single_steps().num_rows
        real = sum(len(one.actions) for one in recorders)
        checks.append(near(f"only real steps are trained on, {mode.value} (A1)", rows, real, 0))
    return checks


def clipped(subject: Subject) -> list[Check]:
    """Actions outside the box are clipped before the environment steps."""
    claim = "the environment receives the clipped action (P9)"
    space = subject.spaces[1]
    if not isinstance(space, spaces.Box):
        return [not_applicable(claim, "actions are not a Box")]
    envs, recorders = subject.recorded()
    agent = subject.agent(envs, log_std=1.0)
    rollout, _ = agent.collector.collect(agent.learner)  # type: ignore[union-attr]
    gaps, outside = [], 0
    for row, recorder in enumerate(recorders):
        stored = rollout.actions[row].numpy().reshape(-1, *space.shape)
        kept = np.clip(stored, space.low, space.high)
        outside += int((kept != stored).any(tuple(range(1, kept.ndim))).sum())
        gaps.append(np.abs(np.array(recorder.actions) - kept).max())
    with torch.no_grad():
        now = agent.policy.evaluate(rollout.observations, rollout.actions, rollout.mask).logprobs
    note = f"; {outside} of {rollout.num_steps} were outside the box"
    return [
        at_most(claim, float(np.max(gaps)), 1e-6, note),
        at_most("the log-prob is that of the unclipped action (P9)", float((now - rollout.logprobs).abs().max()), 1e-4),
    ]


def masks(subject: Subject) -> Check:
    """Only for observations with an action mask."""
    agent = subject.agent(subject.vector())
    size = agent.collector.encode.mask_size  # type: ignore[union-attr]
    if size == 0:
        return not_applicable("", "observations have no action_mask")
    rollout, _ = agent.collector.collect(agent.learner)  # type: ignore[union-attr]
    seen, actions = rollout.observations[rollout.mask], rollout.actions[rollout.mask]
    forbidden = seen[:, -size:] <= 0
    with torch.no_grad():
        outputs = agent.policy.outputs(seen)
        entropy = agent.policy.evaluate(seen, actions, None).entropy
    parts = torch.cat([part.softmax(-1) for part in outputs.split(agent.policy.head.sizes, -1)], -1)
    starts = torch.tensor(np.cumsum([0, *agent.policy.head.sizes[:-1]]))
    taken = forbidden.gather(1, actions.reshape(len(actions), -1) + starts).sum()
    mass = parts[forbidden].max() if forbidden.any() else torch.zeros(())
    passed = bool(mass == 0 and taken == 0 and torch.isfinite(entropy).all())
    return Check("", "0; 0 taken", f"{float(mass):.3g}; {int(taken)} taken, of {int(forbidden.sum())}", passed)


def statistics(subject: Subject) -> Check:
    """Mean and variance of the normalizer against those of all observations acted on."""
    envs, recorders = subject.recorded()
    agent = subject.agent(envs, normalize_observations=True)
    for _ in range(2):
        agent.collector.collect(agent.learner)  # type: ignore[union-attr]
    normalizer = agent.collector.normalizer  # type: ignore[union-attr]
    encode, moments = ObservationEncoder(subject.spaces[0]), normalizer.moments
    stream = np.concatenate([encode.single(seen) for one in recorders for seen in one.acted_on]).astype(np.float64)
    stream = stream[:, : len(moments.mean)]
    scale = np.maximum(np.abs(stream).max(0), 1e-12)
    gaps = [np.abs(moments.mean - stream.mean(0)) / scale, np.abs(moments.variance - stream.var(0)) / scale**2]
    return at_most("", float(np.max(gaps)), 1e-10, f" of {len(stream)}")


def same_parameters(subject: Subject) -> Check:
    """Two runs of two updates."""
    hashes = [fingerprint(subject.agent(subject.vector()).learn(2 * NUM_ENVS * NUM_STEPS)) for _ in range(2)]
    return Check("", hashes[0], hashes[1], hashes[0] == hashes[1])


def resumed(subject: Subject) -> Check:
    """Four updates, and two saved, loaded into fresh environments, and two more."""
    total = 4 * NUM_ENVS * NUM_STEPS
    straight = fingerprint(subject.agent(subject.vector()).learn(total))
    broken = subject.agent(subject.vector()).learn(total, lambda agent: agent.updates < 2)
    with tempfile.TemporaryDirectory() as folder:
        path = broken.save(Path(folder) / "agent")
        again = subject.agent(subject.vector())
        try:
            again.restore(path)
        except (ValueError, RuntimeError) as error:
            return not_applicable("", f"its state cannot be saved: {str(error)[:160]}")
    again.learn()
    return Check("", straight, fingerprint(again), straight == fingerprint(again))


def fingerprint(agent: PPO) -> str:
    """A hash of the parameters and of the last loss."""
    digest = hashlib.sha256()
    for value in agent.policy.state_dict().values():
        digest.update(value.numpy().tobytes())
    digest.update(repr(agent.metrics["train/loss"]).encode())
    return digest.hexdigest()[:16]
