"""A game of several turns whose best play is known: guess a number, and hear whether it is higher or lower."""

from __future__ import annotations

import math
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

    Args:
        most: the largest number.
        bit_reward: also paid for each bit that a guess tells about the number, reward units, on average over the
            numbers that are left, so that luck is no noise. Before the average it is a potential, which leaves the best
            play as it is (Ng et al. 1999, "Policy invariance under reward transformations", theorem 1).
    """

    def __init__(self, most: int = 16, bit_reward: float = 0.0) -> None:
        self.most, self.bit_reward = most, bit_reward
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
        least, most = self.left
        if guess == self.number:
            answer, self.left = "right", [guess, guess]
        elif not 1 <= guess <= self.most:
            answer = f"say a number from 1 to {self.most} :"
        elif guess < self.number:
            answer, self.left = "higher :", [max(least, guess + 1), most]
        else:
            answer, self.left = "lower :", [least, min(most, guess - 1)]
        left = most - least + 1
        parts = (guess - least, 1, most - guess) if least <= guess <= most else ()
        bits = sum(part / left * math.log2(left / part) for part in parts if part)
        right = guess == self.number
        return answer, self.bit_reward * bits - 0.1 * (not right), right, False, {"state": tuple(self.left)}
