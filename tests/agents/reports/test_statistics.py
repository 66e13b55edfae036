"""The probability of improvement by hand, and intervals against what theory says."""

import math

import numpy as np
import pytest

from agents.reports.statistics import (
    bootstrap,
    improvement_interval,
    mean_band,
    mean_interval,
    probability_of_improvement,
)


def test_the_probability_of_improvement_is_the_share_of_pairs_won_with_ties_half():
    # 3 beats 1 and 2 (of 1, 2, 3, 4) and ties with 3: 2.5; 1 ties with 1: 0.5; 5 beats all: 4. Of 12 pairs: 7.
    assert probability_of_improvement([3, 1, 5], [1, 2, 3, 4]) == 7 / 12
    assert probability_of_improvement([1, 2], [1, 2]) == 0.5
    assert probability_of_improvement([2], [1]) == 1
    assert (
        probability_of_improvement([3, 1, 5], [1, 2, 3, 4]) + probability_of_improvement([1, 2, 3, 4], [3, 1, 5]) == 1
    )


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_one_run_has_no_interval_and_equal_runs_have_an_empty_one():
    assert all(map(math.isnan, mean_interval([1.0])))
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert all(map(math.isnan, improvement_interval([1.0], [0.0, 2.0])))
    assert improvement_interval([3.0, 4.0], [1.0, 2.0]) == (1.0, 1.0)


def test_a_bootstrap_draws_each_sample_by_itself():
    low, high = bootstrap(lambda x, y: (x.mean(1) > y.mean(1)).astype(float), [0.0, 1.0], [0.0, 1.0])
    assert (low, high) == (0.0, 1.0)


def test_a_band_is_the_interval_at_each_place():
    curves = np.random.default_rng(0).normal(size=(5, 3))
    low, high = mean_band(curves)
    for place in range(3):
        assert (low[place], high[place]) == pytest.approx(mean_interval(curves[:, place]))
