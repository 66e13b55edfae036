"""Checks of a user's environment: contract, seeding, episode ends.

Copies and replays are made in ``env_subject``; checks of PPO in the environment are in ``learning``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents.control.environments import autoreset_mode
from agents.control.episodes import EpisodeStatistics
from agents.control.spaces import ObservationEncoder
from agents.verification.checks import Check, Checking, at_most, not_applicable
from agents.verification.env_subject import NUM_STEPS, ByObservation, Subject, collected_steps
from agents.verification.learning import learning_checks

PLAYED = 200
"""Steps that single environments are played for."""
TOLERANCE = 1e-5
"""Of values and observations in float32, between one row and a batch."""


def env_checks(subject: Subject) -> list[Checking]:
    """All checks that apply, cheapest first."""
    parts: list[tuple[str, Callable[[Subject], Check | Sequence[Check]]]] = [
        ("observation and action spaces are supported", supported),
        ("the observation at an end is not the next episode's first (A3)", last_observation),
        ("all autoreset modes give the same training data (A2)", modes_agree),
    ]
    if subject.is_scalar:
        parts[1:1] = [
            ("gymnasium's check_env passes", gymnasium_check),
            ("reset and step keep their contract", contract),
            ("the same seed and actions give the same episode (S1)", reproducible),
        ]
        parts.append(("training data equal those of single environments, step by step (A3, A4, A6)", replayed))
    else:
        parts[1:1] = [
            ("observations lie in their space, and all values are finite", vector_contract),
            ("the same seed and actions give the same steps (S1)", vector_reproducible),
        ]
    parts += learning_checks(subject)
    return [(claim, partial(check, subject)) for claim, check in parts]


def supported(subject: Subject) -> Check:
    """The network can be built."""
    agent = subject.agent(subject.vector())
    return Check("observation and action spaces are supported", "a policy", type(agent.policy).__name__, True)


def gymnasium_check(subject: Subject) -> Check:
    """Run Gymnasium's own checker, which raises on failure."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_env(subject.single(limited=False).unwrapped, skip_render_check=True)
    note = f"passed, {len(said)} warnings" + (f": {_first_line(said[0].message)}" if said else "")
    return Check("gymnasium's check_env passes", "no error", note, True)


def contract(subject: Subject) -> list[Check]:
    """Observations in their space; finite numbers; flags that are flags."""
    env = subject.single(limited=False)
    agent = subject.agent(SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED))
    outside, infinite, wrong = [], [], []
    reward: Any
    seen, info = env.reset(seed=subject.seed)
    if not isinstance(info, dict):
        wrong.append(f"reset's info is a {type(info).__name__}")
    for step in range(PLAYED):
        if not env.observation_space.contains(seen):
            outside.append(f"step {step}: {_short(seen)}")
        if not _all_finite(seen):
            infinite.append(f"step {step}: observation {_short(seen)}")
        action, _ = agent.predict(seen)
        seen, reward, terminated, truncated, info = env.step(action)
        if not np.isfinite(reward):
            infinite.append(f"step {step}: reward {reward}")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_)):
                wrong.append(f"{name} is a {type(flag).__name__}")
        if np.ndim(reward) or not isinstance(info, dict):
            wrong.append(f"step {step}: reward of shape {np.shape(reward)}, info {type(info).__name__}")
        if terminated or truncated:
            seen, info = env.reset()
    return [
        _none("observations lie in their space", outside),
        _none("observations and rewards are finite", infinite),
        _none("reset and step return the documented types", wrong),
    ]


def vector_contract(subject: Subject) -> list[Check]:
    """The same for an id that has only a vector environment."""
    envs = subject.vector()
    encode = ObservationEncoder(envs.single_observation_space)
    agent = subject.agent(envs)
    outside, infinite = [], []
    seen, _ = envs.reset(seed=subject.seed)
    for step in range(PLAYED):
        if not envs.observation_space.contains(seen):
            outside.append(f"step {step}: {_short(seen)}")
        if not np.isfinite(encode(seen)).all():
            infinite.append(f"step {step}: observation")
        seen, reward, terminated, truncated, _ = envs.step(agent.predict(seen)[0])
        if not np.isfinite(reward).all():
            infinite.append(f"step {step}: reward {reward}")
        if autoreset_mode(envs) is AutoresetMode.DISABLED and (terminated | truncated).any():
            seen, _ = envs.reset(options={"reset_mask": terminated | truncated})
    return [_none("observations lie in their space", outside), _none("observations and rewards are finite", infinite)]


def reproducible(subject: Subject) -> Check:
    """Two copies, the same seed and actions."""
    one, other = subject.single(), subject.single()
    encode, agent = ObservationEncoder(one.observation_space), subject.agent(subject.vector())
    starts = [env.reset(seed=subject.seed)[0] for env in (one, other)]
    worst, seen, first = _gap(encode, *starts), starts[0], ""
    for step in range(PLAYED):
        action, _ = agent.predict(seen)
        a, b = one.step(action), other.step(action)
        gap = max(_gap(encode, a[0], b[0]), abs(float(a[1]) - float(b[1])), float(a[2] != b[2]), float(a[3] != b[3]))
        if gap != 0 and not first:
            first = f", first at step {step}"
        worst, seen = float(np.maximum(worst, gap)), a[0]
        if a[2] or a[3] or b[2] or b[3]:
            seen, again = one.reset()[0], other.reset()[0]
            worst = float(np.maximum(worst, _gap(encode, seen, again)))
    return at_most("the same seed and actions give the same episode (S1)", worst, 0.0, first)


def vector_reproducible(subject: Subject) -> Check:
    """The same for an id that has only a vector environment."""
    one, other = subject.vector(), subject.vector()
    encode, agent = ObservationEncoder(one.single_observation_space), subject.agent(subject.vector())
    starts = [encode(envs.reset(seed=subject.seed)[0]) for envs in (one, other)]
    worst, seen = float(np.abs(starts[0] - starts[1]).max()), one.reset(seed=subject.seed)[0]
    other.reset(seed=subject.seed)
    for _ in range(PLAYED):
        actions, _ = agent.predict(seen)
        a, b = one.step(actions), other.step(actions)
        gaps = [
            np.abs(encode(a[0]) - encode(b[0])),
            *(np.abs(np.subtract(x, y, dtype=float)) for x, y in zip(a[1:4], b[1:4], strict=True)),
        ]
        worst, seen = float(np.max([worst, *(gap.max() for gap in gaps)])), a[0]
        ended = a[2] | a[3]
        if autoreset_mode(one) is AutoresetMode.DISABLED and ended.any():
            seen, _ = one.reset(options={"reset_mask": ended})
            other.reset(options={"reset_mask": ended})
    return at_most("the same seed and actions give the same steps (S1)", worst, 0.0)


def last_observation(subject: Subject) -> Check:
    """A vector environment returns the last observation, not the reset one; an environment never resets itself."""
    claim = "the observation at an end is not the next episode's first (A3)"
    envs = subject.vector()
    mode = autoreset_mode(envs)
    encode, agent = ObservationEncoder(envs.single_observation_space), subject.agent(envs)
    seen, _ = envs.reset(seed=subject.seed)
    ends, same = 0, 0
    low = high = encode(seen)[0]
    for _ in range(3 * NUM_STEPS):
        seen, _, terminated, truncated, info = envs.step(agent.predict(seen)[0])
        ended = terminated | truncated
        low, high = np.minimum(low, encode(seen).min(0)), np.maximum(high, encode(seen).max(0))
        if not ended.any():
            continue
        if mode is AutoresetMode.SAME_STEP:
            finals = info["final_obs"]
            picked = [encode.single(finals[i])[0] for i in np.flatnonzero(ended)]
            fresh = encode(seen)[ended]
        else:
            picked = list(encode(seen)[ended].copy())
            options = {"reset_mask": ended} if mode is AutoresetMode.DISABLED else None
            seen = envs.reset(options=options)[0] if options else envs.step(agent.predict(seen)[0])[0]
            fresh = encode(seen)[ended]
        ends += int(ended.sum())
        same += sum(bool((x == y).all()) for x, y in zip(picked, fresh, strict=True))
    if ends == 0:
        return not_applicable(claim, f"no episode ended within {3 * NUM_STEPS} steps")
    if (low == high).all():
        return not_applicable(claim, "every observation is the same")
    return Check(claim, f"fewer than {ends} of {ends}", f"{same} of {ends} are", same < ends)


def replayed(subject: Subject) -> list[Check]:
    """A training rollout against single environments with the same seeds and actions."""
    envs, other = subject.vector(), []
    encode = ObservationEncoder(envs.single_observation_space)
    firsts = [encode.single(subject.reset_single(row)) for row in range(envs.num_envs)]
    if not np.array_equal(encode(envs.reset(seed=subject.seed)[0]), np.concatenate(firsts)):
        why = "it seeds its rows differently; a SyncVectorEnv of single environments is compared instead"
        other.append(not_applicable("its vector environment equals single environments", why))
        envs = subject.recorded()[0]
    agent = subject.agent(envs, log_std=1.0)
    agent.collector.episodes = EpisodeStatistics(envs.num_envs, window=10**6)  # type: ignore[union-attr]
    policy = ByObservation(agent.policy)
    rollout, _ = agent.collector.collect(policy)  # type: ignore[union-attr]
    found = subject.replay(rollout, policy)
    form = "its single environments" if isinstance(envs, SyncVectorEnv) else "its vector environment"
    counted = sorted(agent.collector.episodes.finished)  # type: ignore[union-attr]
    own = sorted(episode for row in found.episodes for episode in row)[: len(counted)]
    differing = sum(
        abs(a[0] - b[0]) > 1e-4 * max(1, abs(b[0])) or a[1] != b[1] for a, b in zip(counted, own, strict=False)
    )
    differing += abs(len(counted) - sum(map(len, found.episodes)))
    claim = "V after a time limit is that of the last observation (A3, A4)"
    if found.truncations:
        bootstrap = at_most(claim, found.bootstrap, TOLERANCE, f" over {found.truncations} truncations")
    else:
        bootstrap = not_applicable(claim, f"no episode was truncated within {NUM_STEPS} steps")
    return [
        *other,
        at_most(f"{form}: observations equal single ones', step by step", found.observations, TOLERANCE),
        at_most("rewards equal single environments'", found.rewards, TOLERANCE),
        at_most("steps whose terminated or truncated flag differs", found.flags, 0),
        bootstrap,
        at_most("episodes whose return or length differs (A6)", differing, 0, f" of {len(counted)}"),
    ]


def modes_agree(subject: Subject) -> Check:
    """Deterministic actions, two rollouts a mode; NEXT_STEP collects fewer, as reset steps are masked."""
    claim = "all autoreset modes give the same training data (A2)"
    streams = {}
    for mode in AutoresetMode:
        try:
            envs = subject.recorded(mode)[0] if subject.is_scalar else subject.vector(mode)
        except TypeError as error:
            return not_applicable(claim, f"only one mode is supported: {_first_line(error)}")
        agent = subject.agent(envs)
        policy = ByObservation(agent.policy)
        streams[mode] = collected_steps(agent.collector, policy, 2)  # type: ignore[arg-type]
    first = streams[AutoresetMode.SAME_STEP]
    worst, compared = 0.0, 0
    for rows in streams.values():
        for mine, theirs in zip(rows, first, strict=True):
            common = min(len(mine), len(theirs))
            compared += common
            gap = np.abs(np.array(mine[:common]) - np.array(theirs[:common])).max()
            worst = float(np.maximum(worst, gap))
    return at_most(claim, worst, TOLERANCE, f" over {compared} steps")


def _none(claim: str, found: list[str]) -> Check:
    note = f": {found[0]}" if found else ""
    return Check(claim, f"0 of {PLAYED} steps", f"{len(found)}{note}", not found)


def _gap(encode: ObservationEncoder, one: Any, other: Any) -> float:
    return float(np.abs(encode.single(one) - encode.single(other)).max())


def _all_finite(observation: Any) -> bool:
    if isinstance(observation, dict):
        return all(_all_finite(part) for part in observation.values())
    if isinstance(observation, (tuple, list)):
        return all(_all_finite(part) for part in observation)
    return bool(np.isfinite(observation).all())


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:80]


def _first_line(error: Any) -> str:
    return " ".join(re.sub("\x1b\\[[0-9;]*m", "", str(error)).split())[:120]
