"""Intervals and the probability of improvement (Agarwal et al. 2021, arXiv:2108.13264). Pure numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
Interval = tuple[float, float]
Values = Sequence[float] | NDArray[np.float64]


def bootstrap(statistic: Callable[..., NDArray[np.float64]], *samples: Values) -> Interval:
    """The percentile bootstrap's 95% interval of ``statistic(*samples)`` (Efron 1979), each sample drawn by itself.

    ``statistic`` takes arrays ``[R, N]``, ``R`` resamples of each sample ``[N]``, and returns ``[R]``. NaN if a sample
    has fewer than two values, since the spread of one cannot be told.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if min(map(len, arrays)) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(SEED)
    drawn = [array[rng.integers(len(array), size=(RESAMPLES, len(array)))] for array in arrays]
    low, high = np.quantile(statistic(*drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(values: Values) -> Interval:
    """The bootstrap's 95% interval of the mean."""
    return bootstrap(lambda drawn: drawn.mean(axis=1), values)


def mean_band(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low and high ends of the bootstrap's 95% intervals of the mean of ``curves [N, T]``, ``[T]``; rows are drawn."""
    rng = np.random.default_rng(SEED)
    means = curves[rng.integers(len(curves), size=(RESAMPLES, len(curves)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def probability_of_improvement(x: Values, y: Values) -> float:
    """P(X > Y) of a run of ``x [N]`` and one of ``y [M]``: the share of pairs that ``x`` wins, ties counting half.

        P = 1 / (N M) sum_i sum_j S(x_i, y_j),   S = 1 if x_i > y_j, 1/2 if equal, 0 otherwise

    Source: Agarwal et al. 2021, section 4.3, for one task; the statistic of Mann and Whitney 1947.
    """
    return float(_wins(np.asarray(x, dtype=np.float64)[None], np.asarray(y, dtype=np.float64)[None])[0])


def improvement_interval(x: Values, y: Values) -> Interval:
    """The bootstrap's 95% interval of `probability_of_improvement`, runs of both sides drawn again."""
    return bootstrap(_wins, x, y)


def _wins(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[R, N]`` and ``[R, M]`` to ``[R]``."""
    left, right = x[:, :, None], y[:, None, :]
    share: NDArray[np.float64] = ((left > right) + 0.5 * (left == right)).mean(axis=(1, 2))
    return share
