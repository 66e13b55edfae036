"""Metrics of finished rows, by hand."""

import numpy as np
import pytest

from agents.text.rollout_metrics import repetition, rollout_metrics
from textenvs.tokens.rows import TokenRows


def test_repetition_by_hand():
    rows = np.array([[1, 2, 1, 2, 1], [1, 1, 1, -1, -1], [4, -1, -1, -1, -1]])
    # (12, 21, 12, 21): 2 of 4 are new; (11, 11): 1 of 2; the third row has no bigram.
    assert repetition(rows, rows != -1, 2) == pytest.approx((2 / 4 + 1 / 2) / 2)
    # (121, 212, 121): the last one stood there before; (111) did not.
    assert repetition(rows, rows != -1, 3) == pytest.approx((1 / 3 + 0) / 2)
    assert repetition(rows[:, :2], rows[:, :2] != -1, 3) == 0.0
    rows = np.array([[4, 5, 6, 6, 6, -1, -1, -1]])
    assert repetition(rows, rows != -1, 1) == pytest.approx(2 / 5)  # padding does not repeat itself


def test_lengths_and_stop_reasons_by_hand():
    completions = np.full((11, 10), -1)
    for i in range(10):
        completions[i, : i + 1] = 5
    completions[10] = 5
    rows = TokenRows(
        prompts=np.ones((11, 1), np.int64), completions=completions, rewards=np.zeros((11, 10), np.float32),
        terminated=np.ones(11, bool), truncated=np.zeros(11, bool), stop_reason=np.array(["eos"] * 9 + ["length"] * 2),
    )  # fmt: skip
    found = rollout_metrics(rows)
    # lengths 1, 2, ..., 10, 10: of eleven texts the 2nd, 6th and 10th shortest reach 10, 50 and 90 per cent
    assert [found[f"length_p{percent}"] for percent in (10, 50, 90)] == [2, 6, 10]
    assert found["share_eos"] == pytest.approx(9 / 11)
    assert found["share_length"] == pytest.approx(2 / 11)
