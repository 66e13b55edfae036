"""Scores over seeds as one number with an interval: interquartile mean and stratified bootstrap.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv:2108.13264).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 10_000


def interquartile_mean(scores: NDArray[np.float64]) -> float:
    """Mean of the middle half of all ``scores`` together, as ``scipy.stats.trim_mean`` cuts them; any shape."""
    return float(stats.trim_mean(np.asarray(scores, np.float64), 0.25, axis=None))


def stratified_interval(
    strata: Sequence[NDArray[np.float64]], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the interquartile mean, each task resampled within its own seeds.

    Args:
        strata: one array of scores a task, ``[num_seeds]``; one task is a single stratum.
        confidence: share of resamples inside, (0, 1).
        resamples: how many.
        seed: of the resampling.

    Returns:
        Lower and upper bound, in the scores' unit.

    Raises:
        ValueError: if a stratum is empty or ``confidence`` is outside (0, 1).
    """
    if not strata or any(len(scores) == 0 for scores in strata):
        raise ValueError(f"every stratum needs a score, received sizes {[len(scores) for scores in strata]}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), received {confidence}")
    generator = np.random.default_rng(seed)
    drawn = [
        np.asarray(scores, np.float64)[generator.integers(0, len(scores), (resamples, len(scores)))]
        for scores in strata
    ]
    means = stats.trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)
