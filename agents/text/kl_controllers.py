"""How the KL coefficient changes while a language model is trained: towards a target KL, or along a straight line."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class KLController(Protocol):
    """Adapts the KL coefficient beta; stateless, since the environment stores beta."""

    start: float | None
    """beta of the first rollout, reward units per nat; None: the environment's."""

    def updated(self, beta: float, kl: float, episodes: int) -> float:
        """The next beta, after ``episodes`` sequences at ``beta`` whose mean KL was ``kl`` nats."""


class AdaptiveKL:
    """Adapts beta such that the mean KL per sequence approaches a target.

        e = clip(KL / target - 1, -0.2, 0.2),    beta <- beta (1 + e n / horizon),    n episodes since the last update

    Source: Ziegler et al. 2019, section 2.2 (arXiv:1909.08593), whose horizon is 1 / K_beta = 10 updates.

    Args:
        target: nats per sequence, > 0.
        horizon: episodes, > 0: at an error of 0.2, beta changes by a factor e within five horizons.
    """

    start: float | None = None

    def __init__(self, *, target: float, horizon: float) -> None:
        if not target > 0 or not horizon > 0:
            raise ValueError(f"expected target and horizon > 0, received target {target}, horizon {horizon}")
        self.target, self.horizon = float(target), float(horizon)

    def updated(self, beta: float, kl: float, episodes: int) -> float:
        """The next beta, after ``episodes`` sequences whose mean KL was ``kl`` nats.

        Raises:
            ValueError: if ``episodes`` is a fifth of the horizon or more (beta could become 0 or negative), or beta is
                0, which no factor changes.
        """
        if not 0.2 * episodes < self.horizon:
            raise ValueError(
                f"horizon: expected more than a fifth of the {episodes} episodes of an update, received "
                f"{self.horizon:g}: beta could become 0 or negative"
            )
        if not beta > 0:
            raise ValueError(f"beta: expected a number > 0, since it is only multiplied, received {beta:g}")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return beta * (1.0 + error * episodes / self.horizon)


class AnnealedKL:
    """Moves beta along a straight line from ``start`` to ``end`` and keeps it there.

        beta <- beta + (end - start) n / horizon, not beyond end,    n episodes since the last update

    With a high beta the optimal policy is close to the reference and covers every mode of good text; as beta falls, the
    policy follows the optimum. With a low beta from the start, a policy gradient collapses to the first mode it finds
    (``scripts.exact_gap`` shows it). This is deterministic annealing: Rose 1998, Proceedings of the IEEE 86(11),
    section II.

    Args:
        start: beta of the first rollout, reward units per nat, >= 0.
        end: beta from ``horizon`` episodes on, >= 0.
        horizon: episodes, > 0.
    """

    def __init__(self, *, start: float, end: float, horizon: float) -> None:
        if not (start >= 0 and end >= 0 and horizon > 0):
            raise ValueError(
                f"expected start, end >= 0 and horizon > 0, received start {start}, end {end}, horizon {horizon}"
            )
        self.start: float | None = float(start)
        self._step = (end - start) / horizon
        self.end = float(end)

    def updated(self, beta: float, kl: float, episodes: int) -> float:
        """The next beta; ``kl`` is ignored."""
        moved = beta + self._step * episodes
        return min(moved, self.end) if self._step > 0 else max(moved, self.end)
