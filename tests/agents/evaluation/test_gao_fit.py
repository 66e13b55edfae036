"""Fits find the coefficients that were planted; peaks and budgets are where calculus and a ruler put them."""

import math

import numpy as np
import pytest

from agents.evaluation.gao_fit import GaoFit, at_budget

KL = np.array([0.0, 0.3, 1.0, 2.5, 4.0, 9.0, 25.0])
D = np.sqrt(KL)


def planted(curve, alpha, beta):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(D * (alpha - beta * (D if curve == "best_of_n" else np.log(D))))


@pytest.mark.parametrize("curve", ["best_of_n", "rl"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.1, 0.2), (0.4, -0.05), (-0.3, 0.1)])
def test_planted_coefficients_are_found(curve, alpha, beta):
    fit = GaoFit.of(curve, KL, planted(curve, alpha, beta))
    assert (fit.alpha, fit.beta, fit.error) == pytest.approx((alpha, beta, 0.0), abs=1e-9)
    np.testing.assert_allclose(fit(KL), planted(curve, alpha, beta), atol=1e-9)


def test_noise_moves_coefficients_little_and_is_the_error():
    noise = 0.05 * np.random.default_rng(0).normal(size=400)
    kl = np.linspace(0.1, 16.0, 400)
    d = np.sqrt(kl)
    fit = GaoFit.of("rl", kl, d * (1.0 - 0.3 * np.log(d)) + noise)
    assert (fit.alpha, fit.beta) == pytest.approx((1.0, 0.3), abs=0.01)
    assert fit.error == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    ("curve", "peak", "height"),
    # d = 1 / (2 * 0.2) = 2.5: KL 6.25, height 2.5 (1 - 0.5). d = e^(1 / 0.5 - 1) = e: KL e^2, height e (1 - 0.5).
    [("best_of_n", (1.0, 0.2, 6.25), 1.25), ("rl", (1.0, 0.5, math.e**2), math.e / 2)],
)
def test_the_peak_is_where_calculus_puts_it(curve, peak, height):
    alpha, beta, kl = peak
    fit = GaoFit(curve=curve, alpha=alpha, beta=beta, error=0.0)
    assert fit.peak_kl == pytest.approx(kl)
    assert fit(kl) == pytest.approx(height)
    assert fit(1.1 * kl) < fit(kl) > fit(0.9 * kl)


@pytest.mark.parametrize(
    "never", [("best_of_n", 1.0, 0.0), ("rl", 1.0, -0.1), ("best_of_n", -1.0, 0.2), ("rl", 1.0, 1e-4)]
)
def test_what_does_not_bend_or_bends_beyond_all_numbers_has_no_peak(never):
    curve, alpha, beta = never
    assert GaoFit(curve=curve, alpha=alpha, beta=beta, error=0.0).peak_kl is None


def test_a_share_of_the_gain_is_reached_earlier():
    fit = GaoFit(curve="best_of_n", alpha=1.0, beta=0.2, error=0.0)
    # d - 0.2 d^2 = 0.95 * 1.25 at d = 2.5 - sqrt(0.3125)
    assert fit.reaches(0.95, 20.0) == pytest.approx((2.5 - math.sqrt(0.3125)) ** 2, abs=0.01)
    assert fit.reaches(1.0, 20.0) == pytest.approx(6.25, abs=0.01)
    assert fit.reaches(1.0, 4.0) == pytest.approx(4.0)  # nothing is known beyond
    assert GaoFit(curve="rl", alpha=-1.0, beta=0.0, error=0.0).reaches(0.95, 4.0) is None


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ([0.0, 1.0, 9.0], 15.0),  # d = 2 lies half-way between 1 and 3
        ([0.0, 9.0, 1.0], 20.0),  # the run ends below
        ([0.0, 9.0, 4.0], 20.0),  # at the budget is not beyond it
        ([0.0, 1.0, 4.0], 20.0),
        ([0.0, 16.0, 9.0], 5.0),  # from 0 at d = 0 to 10 at d = 4, and never back
        ([5.0, 9.0, 7.0], None),
    ],
)
def test_the_value_at_a_budget_is_read_where_the_run_leaves_it_for_good(kl, expected):
    assert at_budget(np.array(kl), np.array([0.0, 10.0, 20.0]), 4.0) == pytest.approx(expected)


def test_too_little_to_fit_is_refused():
    with pytest.raises(ValueError, match="two points of different KL above 0"):
        GaoFit.of("rl", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="one of best_of_n, rl, received 'ppo'"):
        GaoFit.of("ppo", KL, KL)
