import numpy as np
import pytest

from scripts.benchmarks.table import bootstrap_interval, interquartile_mean


def test_the_middle_half_counts_and_nothing_else():
    assert interquartile_mean(np.array([-1e9, 1.0, 2.0, 1e9])) == 1.5
    assert interquartile_mean(np.array([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 99.0, 99.0])) == 2.5


def test_the_interval_of_equal_scores_is_a_point_and_grows_with_their_spread():
    assert bootstrap_interval(np.full(10, 3.0)) == (3.0, 3.0)
    narrow = bootstrap_interval(np.linspace(-1, 1, 10))
    wide = bootstrap_interval(np.linspace(-5, 5, 10))
    assert narrow[0] < 0 < narrow[1]
    np.testing.assert_allclose(wide, 5 * np.array(narrow))


def test_the_interval_covers_the_true_center_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = [
        low <= 0.0 <= high
        for low, high in (bootstrap_interval(generator.normal(size=30), resamples=500) for _ in range(200))
    ]
    assert 0.88 <= np.mean(hits) <= 0.99


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="received none"):
        bootstrap_interval([])
