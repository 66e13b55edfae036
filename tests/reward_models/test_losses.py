import math

import pytest
import torch

from reward_models.losses import bradley_terry_loss


def test_loss_of_one_pair_by_hand():
    loss = bradley_terry_loss(torch.tensor([math.log(3.0)]), torch.tensor([0.0]))
    torch.testing.assert_close(loss, torch.tensor(math.log(4 / 3)))  # sigmoid(log 3) = 3/4


def test_margin_is_taken_from_the_lead_by_hand():
    loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5]), margin=torch.tensor([1.5]))
    torch.testing.assert_close(loss, torch.tensor(math.log(2.0)))


def test_weighted_mean_by_hand():
    loss = bradley_terry_loss(
        torch.tensor([0.0, math.log(3.0)]), torch.tensor([0.0, 0.0]), weights=torch.tensor([3.0, 1.0])
    )
    torch.testing.assert_close(loss, torch.tensor((3 * math.log(2.0) + math.log(4 / 3)) / 4))


def test_a_soft_preference_is_two_weighted_entries_and_is_met_at_its_log_odds():
    reward = torch.zeros(2, requires_grad=True)
    share = 0.8
    weights = torch.tensor([share, 1 - share])
    for _ in range(500):
        (gradient,) = torch.autograd.grad(bradley_terry_loss(reward, reward.flip(0), weights=weights), reward)
        reward = (reward - 2.0 * gradient).detach().requires_grad_()
    torch.testing.assert_close(torch.sigmoid(reward[0] - reward[1]), torch.tensor(share))


def test_a_constant_per_prompt_does_not_change_the_loss():
    chosen, rejected, constant = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        bradley_terry_loss(chosen + constant, rejected + constant), bradley_terry_loss(chosen, rejected)
    )


def test_swapping_a_pair_adds_its_lead_to_the_loss():
    chosen, rejected = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    difference = bradley_terry_loss(rejected, chosen) - bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(difference, (chosen - rejected).mean())


def test_a_lead_of_a_hundred_either_way_is_finite_and_has_the_right_gradient():
    lead = torch.tensor([100.0, -100.0], requires_grad=True)
    loss = bradley_terry_loss(lead, torch.zeros(2))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(50.0))
    torch.testing.assert_close(lead.grad, torch.tensor([0.0, -0.5]))


def test_centering_charges_the_square_of_the_sum_by_hand():
    plain = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([1.0]))
    centered = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([1.0]), centering_coef=0.1)
    torch.testing.assert_close(centered - plain, torch.tensor(0.9))


def test_nothing_that_counts_and_wrong_shapes_are_refused():
    one = torch.ones(2)
    with pytest.raises(ValueError, match="expected a pair with weight"):
        bradley_terry_loss(one, one, weights=torch.zeros(2))
    with pytest.raises(ValueError, match="rejected: expected shape"):
        bradley_terry_loss(one, torch.ones(3))
    with pytest.raises(ValueError, match="one dimension"):
        bradley_terry_loss(torch.ones(2, 2), torch.ones(2, 2))
