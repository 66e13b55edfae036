"""Running statistics against numpy over the whole stream."""

from __future__ import annotations

import numpy as np
import pytest

from agents.control.normalize import ObservationNormalizer, RewardScaler, RunningMoments


def test_moments_equal_those_of_the_concatenated_stream():
    rng = np.random.default_rng(0)
    parts = [rng.normal(1e3, 5.0, (n, 3)) for n in (1, 7, 0, 300, 2)]
    moments = RunningMoments((3,))
    for part in parts:
        moments.update(part)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-10)
    assert moments.count == len(whole)


def test_calling_changes_no_statistic_and_an_action_mask_passes_unchanged():
    normalizer = ObservationNormalizer(4, free=2)
    normalizer.update(np.array([[1, 10, 0, 1], [3, 30, 1, 1]], np.float32))
    before = normalizer.state_dict()
    out = normalizer(np.array([[2, 40, 1, 0]], np.float32))
    np.testing.assert_allclose(out, [[0.0, 2.0, 1.0, 0.0]], atol=1e-5)
    after = normalizer.state_dict()
    assert before["count"] == after["count"]
    np.testing.assert_array_equal(before["mean"], after["mean"])


def test_rewards_are_scaled_by_the_return_whose_sum_starts_anew_at_every_end():
    rewards = np.array([[1.0], [2.0], [4.0], [99.0], [8.0]], np.float32)
    ended = np.array([[False], [True], [False], [False], [True]])
    mask = np.array([[True], [True], [True], [False], [True]])
    scaler = RewardScaler(1, 0.5)
    scaled = scaler(rewards, ended, mask)
    returns = [1.0, 2.0 + 0.5, 4.0, 8.0 + 2.0]  # by hand; the masked step leaves no trace
    assert scaler.moments.count == 4
    assert scaler.moments.variance == pytest.approx(np.var(returns))
    np.testing.assert_allclose(scaled[mask], rewards[mask] / np.std(returns), rtol=1e-5)
    assert scaler.running[0] == 0.0


def test_state_survives():
    scaler = RewardScaler(2, 0.9)
    scaler(np.ones((3, 2), np.float32), np.zeros((3, 2), bool), np.ones((3, 2), bool))
    other = RewardScaler(2, 0.9)
    other.load_state_dict(scaler.state_dict())
    args = np.ones((2, 2), np.float32), np.zeros((2, 2), bool), np.ones((2, 2), bool)
    np.testing.assert_array_equal(scaler(*args), other(*args))
