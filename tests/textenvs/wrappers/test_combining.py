"""How several scores become one: each rule by hand."""

import numpy as np
import pytest

from textenvs.wrappers.preference import combine_scores, score_spread

SCORES = np.array([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]], dtype=np.float32)
"""Three members, two texts: mean 4 and 2, variance ((-3)^2 + (-1)^2 + 4^2) / 3 = 26/3 and 0."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4.0, 2.0]),
        ({"combine": "worst"}, [1.0, 2.0]),
        ({"combine": "uncertainty", "uncertainty_coef": 0.3}, [4.0 - 2.6, 2.0]),
        ({"combine": "uncertainty"}, [4.0 - 26 / 30, 2.0]),
        ({"weights": (0.7, -0.3, 0.1)}, [0.7 - 0.9 + 0.8, 1.4 - 0.6 + 0.2]),
    ],
)
def test_each_rule_by_hand(options, expected):
    combined = combine_scores(SCORES, **options)
    np.testing.assert_allclose(combined, expected, rtol=1e-6)
    assert combined.dtype == np.float32


def test_the_spread_is_the_root_of_the_variance_that_is_charged():
    np.testing.assert_allclose(score_spread(SCORES), np.sqrt([26 / 3, 0.0]), rtol=1e-6)
    charged = combine_scores(SCORES) - combine_scores(SCORES, "uncertainty", uncertainty_coef=1.0)
    np.testing.assert_allclose(charged, score_spread(SCORES) ** 2, rtol=1e-5)


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_one_member_is_paid_as_it_is_and_has_no_spread(combine):
    np.testing.assert_array_equal(combine_scores(SCORES[:1], combine), SCORES[0])
    assert score_spread(SCORES[:1]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_the_members_order_changes_nothing_and_a_constant_moves_the_score_by_itself(combine):
    np.testing.assert_allclose(combine_scores(SCORES[::-1], combine), combine_scores(SCORES, combine), rtol=1e-6)
    np.testing.assert_allclose(combine_scores(SCORES + 5, combine), combine_scores(SCORES, combine) + 5, rtol=1e-6)


def test_members_that_are_close_beside_large_scores_keep_their_spread():
    far = np.array([[4096.0], [4097.0]], dtype=np.float32)
    assert score_spread(far).tolist() == [0.5]


def test_no_member_is_refused():
    with pytest.raises(ValueError, match=r"\[K, N\]"):
        combine_scores(np.zeros((0, 2), dtype=np.float32))
