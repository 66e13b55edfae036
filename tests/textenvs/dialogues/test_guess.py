"""Guessing a number: what a guess is paid for."""

import math

import pytest

from textenvs.dialogues.guess import GuessTheNumber


def rewards_of(guesses: list[int], number: int) -> float:
    """What the last of ``guesses`` is paid for its bits alone, where ``number`` was thought of."""
    env = GuessTheNumber(16, bit_reward=1.0)
    env.reset(seed=0)
    env.number = number
    paid = [env.step(str(guess))[1] + 0.1 * (guess != number) for guess in guesses]
    return paid[-1]


def test_a_guess_is_paid_the_mean_bits_that_it_tells_over_the_numbers_that_are_left():
    # After 8 and "higher" 9 to 16 are left, 8 numbers; 11 leaves 2, 1 or 5 of them.
    dropped = [math.log2(8 / 2)] * 2 + [math.log2(8 / 1)] + [math.log2(8 / 5)] * 5
    for number in range(9, 17):
        assert rewards_of([8, 11], number) == pytest.approx(sum(dropped) / 8)


def test_a_guess_that_tells_nothing_is_paid_no_bits():
    for guess in (3, 8, 17):
        assert rewards_of([8, guess], 12) == pytest.approx(0.0)


def test_all_bits_of_a_number_are_paid_on_average_by_halving():
    total = 0.0
    for number in range(1, 17):
        env = GuessTheNumber(16, bit_reward=1.0)
        env.reset(seed=0)
        env.number, ended = number, False
        while not ended:
            least, most = env.left
            guess = (least + most) // 2
            _, reward, ended, _, _ = env.step(str(guess))
            total += reward + 0.1 * (not ended)
    assert total / 16 == pytest.approx(math.log2(16))
