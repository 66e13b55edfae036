"""Checks of a user's environment over strings, before it is wrapped as `textenvs/Dialogue-v0`."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.verification.checks import Check, Checking, about
from textenvs.dialogues.sub_environments import SubEnvironments, make_env

EPISODES, TURNS = 8, 12
WORDS = ("yes", "no", "1", "2", "8", "left", "open the door", "")
"""What is said, beside words that the environment itself wrote."""
Episode = list[tuple[str, Any, float, bool, bool]]
"""Of each turn: what was said, observation, reward, terminated, truncated."""


def speaks_text(env_id: str) -> bool:
    """Whether the environment of an id or a "module:Class" takes text, or declares no actions and begins with text."""
    try:
        env = make_env(env_id)
        env = getattr(env, "unwrapped", env)
        space = getattr(env, "action_space", None)
        return isinstance(space, spaces.Text) if space is not None else isinstance(env.reset(seed=0)[0], str)
    except Exception:  # what is wrong is said where it is checked
        return False


def dialogue_checks(env_id: str, seed: int) -> list[Checking]:
    """All checks, cheapest first."""
    make = partial(make_env, env_id)
    parts = [
        ("reset and step keep their contract: text, finite rewards, one kind of end", contract),
        ("the same seed and turns give the same dialogue (S1)", repeats),
        ("what random numbers others draw changes nothing (D9)", isolated),
        ("copies do not share state (D8)", separate),
        ("rewards are of the turn, not of the dialogue so far (D10)", not_cumulative),
    ]
    return about((make, seed), parts)


def contract(subject: tuple[Callable[[], Any], int]) -> Check:
    """Play; `SubEnvironments` raises with what was received."""
    episodes = [played(*subject, number) for number in range(EPISODES)]
    for episode in episodes:
        for _, observation, *_ in episode:
            if not isinstance(observation, str | list):
                return Check("", "text, or a list of turns", repr(observation)[:60], False)
    turns = [len(episode) for episode in episodes]
    return Check("", "no error", f"{EPISODES} dialogues of {min(turns)} to {max(turns)} turns", True)


def repeats(subject: tuple[Callable[[], Any], int]) -> Check:
    """In two environments of their own."""
    same = sum(played(*subject, number) == played(*subject, number) for number in range(EPISODES))
    return Check("", f"{EPISODES} of {EPISODES}", f"{same} of {EPISODES}", same == EPISODES)


def isolated(subject: tuple[Callable[[], Any], int]) -> Check:
    """Python's and numpy's global generators are left alone, and what they give does not matter."""
    found = []
    for number in range(EPISODES):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 (the one that others draw from)
        before = _global_states()
        first = played(*subject, 0)
        found.append((first, before == _global_states()))
    same = sum(first == found[0][0] for first, _ in found)
    quiet = sum(untouched for _, untouched in found)
    measured = f"{same} of {EPISODES} the same, {quiet} of {EPISODES} leave them alone"
    return Check("", f"{EPISODES} of {EPISODES}, both", measured, same == quiet == EPISODES)


def _global_states() -> tuple[Any, Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpy_state[1].tolist()


def separate(subject: tuple[Callable[[], Any], int]) -> Check:
    """Two played turn by turn beside each other are what each is alone."""
    make, seed = subject
    alone = [played(make, seed, number) for number in (0, 1)]
    together: list[Episode] = [[], []]
    draws = [np.random.default_rng([seed, number]) for number in (0, 1)]
    with closing(SubEnvironments(make, 2)) as envs:
        begun = [observation for observation, _ in envs.reset([0, 1], [seed, seed + 1])]
        for _ in range(TURNS):
            running = [i for i in (0, 1) if not (together[i] and (together[i][-1][3] or together[i][-1][4]))]
            said = [choose(draws[i], together[i][-1][1] if together[i] else begun[i]) for i in running]
            for i, words, reply in zip(running, said, envs.step(running, said), strict=True):
                together[i].append((words, *reply[:4]))
    same = together == alone
    return Check("", "the same", "the same" if same else "another dialogue", same)


def not_cumulative(subject: tuple[Callable[[], Any], int]) -> Check:
    """A score that only ever grows, turn by turn, is a sum: pay its differences."""
    rewards = [[reward for _, _, reward, *_ in played(*subject, number)] for number in range(EPISODES)]
    long = [paid for paid in rewards if len(paid) > 2 and len(set(paid)) > 2]
    grow = [paid for paid in long if all(a <= b for a, b in pairwise(paid))]
    if not long:
        return Check("", "-", "no dialogue with three different rewards", None)
    measured = f"rewards never fall in {len(grow)} of {len(long)} dialogues"
    return Check("", "they fall in some", measured, len(grow) < len(long) or len(long) < 2)


def played(make: Callable[[], Any], seed: int, number: int) -> Episode:
    """Dialogue ``number``, with turns drawn from its own generator."""
    draw, episode = np.random.default_rng([seed, number]), Episode()
    with closing(SubEnvironments(make, 1)) as envs:
        ((observation, _),) = envs.reset([0], [seed + number])
        while len(episode) < TURNS:
            said = choose(draw, observation)
            (reply,) = envs.step([0], [said])
            observation = reply.observation
            episode.append((said, *reply[:4]))
            if reply.terminated or reply.truncated:
                break
    return episode


def choose(draw: np.random.Generator, observation: Any) -> str:
    """Something to say: a word of the environment's, or one of `WORDS`."""
    own = observation.split() if isinstance(observation, str) else []
    return str(draw.choice([*WORDS, *own]))
