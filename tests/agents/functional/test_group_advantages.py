"""Advantages without a critic: by hand, and the groups that teach nothing (T14)."""

import pytest
import torch

from agents.functional.group_advantages import flat_groups, group_advantages, leave_one_out_advantages

RETURNS = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 1.0])


def test_a_return_beside_its_groups_mean_and_deviation_by_hand():
    plain = torch.tensor([-2.0, -1.0, 3.0, -1.0, 0.0, 1.0])
    torch.testing.assert_close(group_advantages(RETURNS, 3, normalize_std=False), plain)
    deviations = torch.tensor([7.0**0.5] * 3 + [1.0] * 3)  # sum of squares 14 and 2, over n - 1 = 2
    torch.testing.assert_close(group_advantages(RETURNS, 3, epsilon=0.5), plain / (deviations + 0.5))


def test_leaving_one_out_compares_with_the_mean_of_the_others():
    expected = torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5, -1 - 0.5, 0 - 0.0, 1 + 0.5])
    torch.testing.assert_close(leave_one_out_advantages(RETURNS, 3), expected)


@pytest.mark.parametrize("estimate", [group_advantages, leave_one_out_advantages])
def test_a_group_of_one_and_a_group_of_equal_returns_give_exactly_nothing(estimate):
    assert estimate(torch.tensor([3.0, -4.0]), 1).tolist() == [0.0, 0.0]
    thirds = torch.full((7,), 0.1)
    assert thirds.mean() != thirds[0]  # rounding alone would make an advantage of it
    assert estimate(thirds, 7).tolist() == [0.0] * 7


@pytest.mark.parametrize("estimate", [group_advantages, leave_one_out_advantages])
def test_what_all_texts_of_a_prompt_gain_moves_nothing_and_other_groups_do_not_matter(estimate):
    shifted = RETURNS + torch.tensor([5.0] * 3 + [-2.0] * 3)
    torch.testing.assert_close(estimate(shifted, 3), estimate(RETURNS, 3))
    torch.testing.assert_close(estimate(RETURNS, 3)[:3], estimate(RETURNS[:3], 3))


def test_groups_that_teach_nothing():
    assert flat_groups(torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 2.0, 3.0, 2.0]), 2).tolist() == [True, False, True, False]
    some_alike = torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    assert flat_groups(some_alike, 4).tolist() == [False, False]


def test_broken_groups_are_refused():
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages(RETURNS, 4)
    with pytest.raises(ValueError, match="shape"):
        leave_one_out_advantages(RETURNS[None], 3)
