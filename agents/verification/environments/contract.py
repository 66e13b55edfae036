"""Checks of a user's environment: contract, seeding, episode ends.

Copies and replays are made in ``env_subject``; checks of PPO in the environment are in ``learning``.
"""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from agents.control.environments import autoreset_mode
from agents.control.episodes import EpisodeStatistics
from agents.control.spaces import ObservationEncoder
from agents.verification.checks import Check, Checking, Part, about, at_most, not_applicable
from agents.verification.environments.learning import learning_checks
from agents.verification.environments.subject import NUM_STEPS, ByObservation, Subject, collected_steps

PLAYED = 200
"""Steps that single environments are played for."""
TOLERANCE = 1e-5
"""Of values and observations in float32, between one row and a batch."""


def env_checks(subject: Subject) -> list[Checking]:
    """All checks that apply, cheapest first."""
    parts: list[Part] = [("observation and action spaces are supported", supported)]
    if subject.is_scalar:
        parts += [
            ("gymnasium's check_env passes", gymnasium_check),
            ("reset and step keep their contract", contract),
            ("the same seed and actions give the same episode (S1)", reproducible),
        ]
    else:
        parts += [
            ("observations lie in their space, and all values are finite", contract),
            ("the same seed and actions give the same steps (S1)", reproducible),
        ]
    parts += [
        ("the observation at an end is not the next episode's first (A3)", last_observation),
        ("all autoreset modes give the same training data (A2)", modes_agree),
    ]
    if subject.is_scalar:
        parts.append(("training data equal those of single environments, step by step (A3, A4, A6)", replayed))
    return [*about(subject, parts), *learning_checks(subject)]


def supported(subject: Subject) -> Check:
    """The network can be built."""
    return Check("", "a policy", type(subject.agent(subject.vector()).policy).__name__, True)


def gymnasium_check(subject: Subject) -> Check:
    """Run Gymnasium's own checker, which raises on failure."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_env(subject.single(limited=False).unwrapped, skip_render_check=True)
    note = f"passed, {len(said)} warnings" + (f": {_first_line(said[0].message)}" if said else "")
    return Check("", "no error", note, True)


def contract(subject: Subject) -> list[Check]:
    """Observations in their space; finite numbers; of a single environment, also flags that are flags."""
    env: Any = subject.single(limited=False) if subject.is_scalar else subject.vector()
    disabled = AutoresetMode.DISABLED
    agent = subject.agent(SyncVectorEnv([lambda: env], autoreset_mode=disabled) if subject.is_scalar else env)
    outside, infinite, wrong = [], [], []
    seen, info = env.reset(seed=subject.seed)
    if not isinstance(info, dict):
        wrong.append(f"reset's info is a {type(info).__name__}")
    for step in range(PLAYED):
        if not env.observation_space.contains(seen):
            outside.append(f"step {step}: {_short(seen)}")
        if not _all_finite(seen):
            infinite.append(f"step {step}: observation {_short(seen)}")
        seen, reward, terminated, truncated, info = env.step(agent.predict(seen)[0])
        if not np.isfinite(reward).all():
            infinite.append(f"step {step}: reward {reward}")
        if not subject.is_scalar:
            seen = _reset_ended(env, seen, terminated | truncated)
            continue
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_)):
                wrong.append(f"{name} is a {type(flag).__name__}")
        if np.ndim(reward) or not isinstance(info, dict):
            wrong.append(f"step {step}: reward of shape {np.shape(reward)}, info {type(info).__name__}")
        if terminated or truncated:
            seen, info = env.reset()
    faults = {"observations lie in their space": outside, "observations and rewards are finite": infinite}
    if subject.is_scalar:
        faults["reset and step return the documented types"] = wrong
    return [
        Check(claim, f"0 of {PLAYED} steps", f"{len(found)}{f': {found[0]}' if found else ''}", not found)
        for claim, found in faults.items()
    ]


def reproducible(subject: Subject) -> Check:
    """Two copies, the same seed and actions."""
    make = partial(SyncVectorEnv, [subject.single], autoreset_mode=AutoresetMode.DISABLED)
    one, other = (make() if subject.is_scalar else subject.vector() for _ in range(2))
    encode, agent = ObservationEncoder(one.single_observation_space), subject.agent(subject.vector())
    seen, twin = (envs.reset(seed=subject.seed)[0] for envs in (one, other))
    worst, first = _gap(encode(seen), encode(twin)), ""
    for step in range(PLAYED):
        actions, _ = agent.predict(seen)
        (seen, *rest), (twin, *others) = one.step(actions), other.step(actions)
        gap = max(_gap(encode(seen), encode(twin)), *map(_gap, rest[:3], others[:3]))
        if gap != 0 and not first:
            first = f", first at step {step}"
        ended = np.logical_or.reduce([*rest[1:3], *others[1:3]])
        seen, twin = _reset_ended(one, seen, ended), _reset_ended(other, twin, ended)
        worst = max(worst, gap, _gap(encode(seen), encode(twin)))
    return at_most("", worst, 0.0, first)


def last_observation(subject: Subject) -> Check:
    """A vector environment returns the last observation, not the reset one; an environment never resets itself."""
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
            picked = [encode.single(info["final_obs"][i])[0] for i in np.flatnonzero(ended)]
        else:
            picked = list(encode(seen)[ended].copy())
            disabled = mode is AutoresetMode.DISABLED
            seen = _reset_ended(envs, seen, ended) if disabled else envs.step(agent.predict(seen)[0])[0]
        ends += int(ended.sum())
        same += sum(bool((x == y).all()) for x, y in zip(picked, encode(seen)[ended], strict=True))
    if ends == 0:
        return not_applicable("", f"no episode ended within {3 * NUM_STEPS} steps")
    if (low == high).all():
        return not_applicable("", "every observation is the same")
    return Check("", f"fewer than {ends} of {ends}", f"{same} of {ends} are", same < ends)


def replayed(subject: Subject) -> list[Check]:
    """A training rollout against single environments with the same seeds and actions."""
    envs, other = subject.vector(), []
    encode = ObservationEncoder(envs.single_observation_space)
    firsts = [encode.single(subject.single().reset(seed=subject.seed + row)[0]) for row in range(envs.num_envs)]
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
    differing = abs(len(counted) - len(found.episodes)) + sum(
        abs(a[0] - b[0]) > 1e-4 * max(1, abs(b[0])) or a[1] != b[1]
        for a, b in zip(counted, sorted(found.episodes), strict=False)
    )
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
    streams = {}
    for mode in AutoresetMode:
        try:
            envs = subject.recorded(mode)[0] if subject.is_scalar else subject.vector(mode)
        except TypeError as error:
            return not_applicable("", f"only one mode is supported: {_first_line(error)}")
        agent = subject.agent(envs)
        streams[mode] = collected_steps(agent.collector, ByObservation(agent.policy), 2)  # type: ignore[arg-type]
    worst, compared = 0.0, 0
    for rows in streams.values():
        for mine, theirs in zip(rows, streams[AutoresetMode.SAME_STEP], strict=True):
            common = min(len(mine), len(theirs))
            compared += common
            gap = np.abs(np.array(mine[:common]) - np.array(theirs[:common])).max()
            worst = float(np.maximum(worst, gap))
    return at_most("", worst, TOLERANCE, f" over {compared} steps")


def _reset_ended(envs: VectorEnv, seen: Any, ended: np.ndarray) -> Any:
    """The observations to go on with: of a vector environment that never resets itself, with ended rows reset."""
    if autoreset_mode(envs) is not AutoresetMode.DISABLED or not ended.any():
        return seen
    return envs.reset(options={"reset_mask": ended})[0]


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference; NaN equals NaN, and is infinitely far from any number."""
    gaps = np.abs(np.subtract(one, other, dtype=float))
    return float(np.where(np.isnan(one) & np.isnan(other), 0.0, np.nan_to_num(gaps, nan=np.inf, posinf=np.inf)).max())


def _all_finite(observation: Any) -> bool:
    if isinstance(observation, dict):
        return _all_finite(tuple(observation.values()))
    if isinstance(observation, (tuple, list)):
        return all(_all_finite(part) for part in observation)
    return bool(np.isfinite(observation).all())


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:80]


def _first_line(error: Any) -> str:
    return " ".join(re.sub("\x1b\\[[0-9;]*m", "", str(error)).split())[:120]
