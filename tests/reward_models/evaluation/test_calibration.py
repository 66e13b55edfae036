"""Calibration by hand: bins, error, and what may not change them."""

import math

import numpy as np
import pytest

from reward_models.evaluation.accuracy import choice_probabilities, reliability


def test_probabilities_are_bradley_and_terrys_and_do_not_overflow():
    rewards = np.array([math.log(3.0), 0.0, 2000.0])
    found = choice_probabilities(rewards, np.array([0, 1, 2, 1]), np.array([1, 0, 1, 2]))
    np.testing.assert_allclose(found, [0.75, 0.25, 1.0, 0.0], atol=1e-12)


def test_the_error_by_hand():
    # Bins [0.5, 0.75) and [0.75, 1]. In the first 0.6 right, and 0.4: the likelier one (0.6) not taken; accuracy 1/2,
    # confidence 0.6. In the second 0.9 and 0.8 right: accuracy 1, confidence 0.85.
    found = reliability(np.array([0.6, 0.4, 0.9, 0.8]), num_bins=2)
    np.testing.assert_allclose(found.confidence, [0.6, 0.85])
    np.testing.assert_allclose(found.accuracy, [0.5, 1.0])
    np.testing.assert_allclose(found.share, [0.5, 0.5])
    np.testing.assert_allclose(found.edges, [0.5, 0.75, 1.0])
    assert found.error == pytest.approx(0.5 * 0.1 + 0.5 * 0.15)


def test_weights_are_shares_of_judgments():
    # Three of four raters took the text that the model gives 0.75: exactly calibrated. One weighing twice is not.
    divided = np.array([0.75, 0.25])
    assert reliability(divided, np.array([0.75, 0.25])).error == pytest.approx(0.0)
    assert reliability(divided, np.array([0.5, 0.5])).error == pytest.approx(0.25)
    assert reliability(divided).error == reliability(divided, np.array([7.0, 7.0])).error


def test_a_model_that_knows_the_probabilities_has_no_error_and_one_that_doubles_its_rewards_has():
    leads = np.linspace(-3, 3, 121)
    truth = 1 / (1 + np.exp(-leads))
    both = np.concatenate([np.arange(121), np.arange(121)])  # each lead, the choice made and the choice not made
    weights = np.concatenate([truth, 1 - truth])
    exact = np.where(np.arange(242) < 121, truth[both], 1 - truth[both])
    assert reliability(exact, weights).error == pytest.approx(0.0, abs=1e-12)
    sharper = 1 / (1 + np.exp(-2 * leads))
    too_sure = reliability(np.concatenate([sharper, 1 - sharper]), weights)
    filled = too_sure.share > 0
    assert (too_sure.confidence[filled] >= too_sure.accuracy[filled]).all()
    assert too_sure.error > 0.05


def test_a_tie_is_half_right_and_a_certain_choice_falls_into_the_last_bin():
    found = reliability(np.array([0.5, 1.0]), num_bins=4)
    assert found.accuracy[0] == 0.5
    assert found.accuracy[3] == 1.0
    assert np.isnan(found.accuracy[1:3]).all()
    assert found.error == 0.0


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="expected a comparison with weight"):
        reliability(np.array([0.5]), np.array([0.0]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        reliability(np.array([1.5]))
