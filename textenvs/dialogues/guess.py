"""A game of several turns whose best play is known: guess a number, and hear whether it is higher or lower."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces


class GuessTheNumber(gym.Env[str, str]):
    """A number from 1 to ``most``, all equally likely; each wrong guess costs 0.1, and the right one ends the game.

    | Observation | Text: the question, then "higher", "lower" or "say a number from 1 to ..."              |
    | Action      | Text: a number                                                                             |
    | Reward      | -0.1 for a guess that is wrong or no number, 0 for the right one                            |
    | Termination | the number is guessed                                                                      |
    | Truncation  | never                                                                                      |
    | Info        | state: the least and most that the number can still be                                     |

    Halving what is left wins after 54 / 16 = 3.375 guesses on average with 16 numbers.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self.observation_space, self.action_space = spaces.Text(64), spaces.Text(64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Think of a number."""
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(1, self.most + 1))
        self.left = [1, self.most]
        return f"guess a number from 1 to {self.most} :", {"state": tuple(self.left)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer a guess."""
        guess = int(action) if action.strip().isdecimal() else 0
        if guess == self.number:
            return "right", 0.0, True, False, {"state": (guess, guess)}
        if not 1 <= guess <= self.most:
            answer = f"say a number from 1 to {self.most} :"
        elif guess < self.number:
            answer, self.left[0] = "higher :", max(self.left[0], guess + 1)
        else:
            answer, self.left[1] = "lower :", min(self.left[1], guess - 1)
        return answer, -0.1, False, False, {"state": tuple(self.left)}
