"""How the price of the KL moves while a language model is trained: towards a target, or down a straight line."""

from __future__ import annotations

from typing import Protocol


class KLController(Protocol):
    """What moves the price of the KL; without a state of its own, since the environment keeps the price."""

    start: float | None
    """Price of the first rollout, reward units per nat; None: the environment's."""

    def updated(self, beta: float, kl: float, episodes: int) -> float:
        """The next price, after ``episodes`` sequences at ``beta`` whose mean KL was ``kl`` nats."""


class AdaptiveKL:
    """Moves the price so that the mean KL per sequence goes to a target.

        e = clip(KL / target - 1, -0.2, 0.2),    beta <- beta (1 + e n / horizon),    n episodes since the last update

    Source: Ziegler et al. 2019, section 2.2 (arXiv:1909.08593), whose horizon is 1 / K_beta = 10 updates.

    Args:
        target: nats per sequence, > 0.
        horizon: episodes, > 0: at an error of 0.2, beta changes by a factor e within five horizons.
    """

    start: float | None = None

    def __init__(self, *, target: float, horizon: float) -> None:
        if not target > 0 or not horizon > 0:
            raise ValueError(f"target and horizon must be > 0, got target {target}, horizon {horizon}")
        self.target, self.horizon = float(target), float(horizon)

    def updated(self, beta: float, kl: float, episodes: int) -> float:
        """The next beta, after ``episodes`` sequences whose mean KL was ``kl`` nats.

        Raises:
            ValueError: if so many episodes at a time could turn the price to 0 or below it, or if it is 0: a price that
                is multiplied stays there.
        """
        if not 0.2 * episodes < self.horizon:
            raise ValueError(
                f"horizon must exceed a fifth of the {episodes} episodes of an update, got {self.horizon:g}: the price "
                "could fall to 0 or below it"
            )
        if not beta > 0:
            raise ValueError(f"the price is multiplied, and from {beta:g} it never moves: begin with one above 0")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return beta * (1.0 + error * episodes / self.horizon)


class AnnealedKL:
    """Moves the price in a straight line from one value to another, and leaves it there.

        beta <- beta + (end - start) n / horizon, not beyond end,    n episodes since the last update

    At a high price the best policy is near the reference, and all kinds of good text still have their share; as the
    price falls, the policy follows the best one. At a low price from the start, a policy gradient settles on the kind
    that it finds first, and the others are not drawn any more (``scripts.exact_gap`` shows it). As deterministic
    annealing does: Rose 1998, Proceedings of the IEEE 86(11), section II.

    Args:
        start: price of the first rollout, reward units per nat, >= 0.
        end: price from ``horizon`` episodes on, >= 0.
        horizon: episodes, > 0.
    """

    def __init__(self, *, start: float, end: float, horizon: float) -> None:
        if not (start >= 0 and end >= 0):
            raise ValueError(f"prices must be >= 0, got start {start}, end {end}")
        if not horizon > 0:
            raise ValueError(f"horizon must be > 0 episodes, got {horizon}")
        self.start: float | None = float(start)
        self._step = (end - start) / horizon
        self.end = float(end)

    def updated(self, beta: float, kl: float, episodes: int) -> float:
        """The next beta; ``kl`` does not matter."""
        moved = beta + self._step * episodes
        return min(moved, self.end) if self._step > 0 else max(moved, self.end)
