"""``verify --env`` of an environment over strings: a sound one passes, and each mistake fails its own check."""

import random

import gymnasium as gym
import pytest

from agents.verification.checks import run
from agents.verification.environments.dialogues import dialogue_checks, speaks_text
from textenvs.dialogues.guess import GuessTheNumber


class FromGlobals(GuessTheNumber):
    """Draws its number from Python's global generator."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.number = random.randint(1, self.most)
        return observation, info


class Shared(GuessTheNumber):
    """Counts the turns of all copies together."""

    turns = 0

    def reset(self, *, seed=None, options=None):
        Shared.turns = 0
        return super().reset(seed=seed)

    def step(self, action):
        Shared.turns += 1
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(Shared.turns % 3), terminated, truncated, info


class Cumulative(GuessTheNumber):
    """Pays the score so far."""

    def reset(self, *, seed=None, options=None):
        self.score = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.score += 1
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(self.score), terminated, truncated, info


class Both(GuessTheNumber):
    """Ends in both ways at once."""

    def step(self, action):
        observation, reward, *_, info = super().step(action)
        return observation, reward, True, True, info


CASES = {
    GuessTheNumber: set(),
    FromGlobals: {"the same seed", "what random", "copies do not"},
    Shared: {"copies do not"},
    Cumulative: {"rewards are of"},
    Both: {"reset and step", "the same seed", "what random", "copies do not", "rewards are of"},
}


@pytest.mark.parametrize("kind", CASES)
def test_each_mistake_fails_its_own_check(kind):
    name = f"test/{kind.__name__}-v0"
    gym.register(name, entry_point=kind)
    try:
        assert speaks_text(name)
        checks = run(dialogue_checks(name, seed=0))
        failed = {check.claim for check in checks if check.passed is False}
        assert {next(known for known in CASES[Both] if claim.startswith(known)) for claim in failed} == CASES[kind]
    finally:
        gym.registry.pop(name)


def test_a_class_is_played_by_module_and_name():
    name = f"{GuessTheNumber.__module__}:{GuessTheNumber.__name__}"
    assert speaks_text(name)
    assert {check.passed for check in run(dialogue_checks(name, seed=0)[:2])} == {True}


def test_other_environments_do_not_speak_text():
    assert not speaks_text("CartPole-v1")
    assert not speaks_text("textenvs/MovieReview-v0")
    assert not speaks_text("nowhere:None-v0")
