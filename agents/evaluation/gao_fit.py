"""Gao et al.'s curves of reward over the distance from the initial policy, fitted to runs. Pure numpy.

The distance is d = sqrt(KL), with the KL per sequence, nats, to the initial policy; a gain is a mean score minus the
initial one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"best_of_n": lambda d: d, "rl": np.log}
"""R(d) = d (alpha - beta curve(d))."""
MEASURES = ("score", "judge")
Points = dict[str, np.ndarray]
"""Columns of a table of points; a column that was not measured is absent."""


@dataclass(frozen=True, kw_only=True)
class GaoFit:
    """A curve of Gao et al. 2022 (arXiv:2210.10760), section 3.2, fitted by least squares.

    R_bon(d) = d (alpha - beta d)        R_rl(d) = d (alpha - beta log d)
    """

    curve: str  # "best_of_n" or "rl"
    alpha: float  # reward units per sqrt(nat)
    beta: float  # curvature, reward units per nat, or per sqrt(nat)
    error: float  # root mean square residual, reward units

    @classmethod
    def of(cls, curve: str, kl: np.ndarray, gain: np.ndarray) -> GaoFit:
        """Fit points ``kl [M]`` nats, ``gain [M]`` reward units; points with KL 0 are ignored.

        Raises:
            ValueError: for an unknown curve, or fewer than two points of different KL above 0.
        """
        if curve not in CURVES:
            raise ValueError(f"curve: expected one of {', '.join(CURVES)}, received {curve!r}")
        away = kl > 0
        d, gain = np.sqrt(kl[away]), gain[away]
        if len(np.unique(d)) < 2:
            raise ValueError(f"expected two points of different KL above 0, received {kl.tolist()}")
        terms = np.stack([d, -d * CURVES[curve](d)], axis=1)
        (alpha, beta), *_ = np.linalg.lstsq(terms, gain, rcond=None)
        left = gain - terms @ np.array([alpha, beta])
        return cls(curve=curve, alpha=float(alpha), beta=float(beta), error=float(np.sqrt((left**2).mean())))

    def __call__(self, kl: np.ndarray) -> np.ndarray:
        """Gain at ``kl``, nats; 0 at 0."""
        d = np.sqrt(np.asarray(kl, dtype=np.float64))
        inside = np.where(d > 0, d, 1.0)
        return np.where(d > 0, d * (self.alpha - self.beta * CURVES[self.curve](inside)), 0.0)

    @property
    def peak_kl(self) -> float | None:
        """KL at the maximum of the curve, nats; None if there is none.

        R_bon' = alpha - 2 beta d = 0              d = alpha / (2 beta)
        R_rl'  = alpha - beta (log d + 1) = 0      d = exp(alpha / beta - 1)
        """
        if self.beta <= 0 or (self.curve == "best_of_n" and self.alpha <= 0):
            return None
        if self.curve == "best_of_n":
            return (self.alpha / (2 * self.beta)) ** 2
        exponent = 2 * (self.alpha / self.beta - 1)
        return math.exp(exponent) if exponent < 700 else None

    def reaches(self, share: float, largest: float) -> float | None:
        """Smallest KL with ``share``, (0, 1], of the highest gain up to ``largest`` nats; None if there is no gain."""
        grid = np.linspace(0.0, largest, 4001)
        gains = self(grid)
        return None if gains.max() <= 0 else float(grid[np.argmax(gains >= share * gains.max())])


@dataclass(frozen=True, kw_only=True, eq=False)
class Trail:
    """Points of a run, or of best-of-n, as gains over the starting model."""

    name: str
    """Of the run's folder, or of best-of-n."""
    points: Points
    gains: dict[str, np.ndarray]
    """Of `MEASURES`, those that were measured: ``[M]`` reward units."""
    fits: dict[str, GaoFit]
    """Gao et al.'s curve for each."""

    @classmethod
    def of(cls, name: str, curve: str, points: Points, start: dict[str, float]) -> Trail:
        """The gains of ``points`` over what the starting model has, ``start``, and their fits."""
        gains = {measure: points[measure] - start[measure] for measure in MEASURES if measure in points}
        fits = {measure: GaoFit.of(curve, points["kl_per_sequence"], gain) for measure, gain in gains.items()}
        return cls(name=name, points=points, gains=gains, fits=fits)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "points": {name: values.tolist() for name, values in self.points.items()},
            "gains": {name: values.tolist() for name, values in self.gains.items()},
            "fits": {name: asdict(fit) | {"peak_kl": fit.peak_kl} for name, fit in self.fits.items()},
        }


def at_budget(kl: np.ndarray, values: np.ndarray, budget: float) -> float | None:
    """The value where a run's KL is last within ``budget`` nats: its end, or where it finally crosses the budget.

    ``kl [M]`` nats and ``values [M]`` are in the order of training; between two points the value is linear in d =
    sqrt(KL). A maximum over noisy points would be biased upwards. None if all points are beyond the budget.
    """
    within = np.flatnonzero(kl <= budget)
    if not len(within):
        return None
    last = int(within[-1])
    if last == len(kl) - 1:
        return float(values[last])
    d = np.sqrt(np.maximum(kl[last : last + 2], 0.0))
    share = (math.sqrt(budget) - d[0]) / (d[1] - d[0])
    return float((1 - share) * values[last] + share * values[last + 1])
