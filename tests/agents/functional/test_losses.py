"""Losses, masked statistics and KL estimators: values and gradients by hand and by enumeration."""

from __future__ import annotations

import math

import pytest
import torch

from agents.functional import kl, losses
from agents.functional.masked import constant_mean, masked_mean, masked_var, sequence_mean, whiten


def row(*values, grad: bool = False):
    return torch.tensor([values], requires_grad=grad)


@pytest.mark.parametrize(
    "advantage, ratio, moves",
    [(1.0, 1.5, False), (1.0, 0.5, True), (-1.0, 1.5, True), (-1.0, 0.5, False), (1.0, 1.1, True), (-1.0, 0.9, True)],
)
def test_the_clip_stops_the_gradient_exactly_where_it_should(advantage, ratio, moves):
    logprobs = row(math.log(ratio), grad=True)
    loss = losses.clipped_policy_loss(logprobs, row(0.0), row(advantage), None, clip=0.2)
    loss.backward()
    bounded = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert loss.item() == pytest.approx(-bounded)
    assert logprobs.grad.item() == pytest.approx(-advantage * ratio if moves else 0.0)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_a_ratio_beyond_all_numbers_makes_no_nan(dual_clip):
    logprobs = row(0.0, grad=True)
    loss = losses.clipped_policy_loss(logprobs, row(-100.0), row(1.0), None, clip=0.2, dual_clip=dual_clip)
    loss.backward()
    assert loss.item() == pytest.approx(-1.2)
    assert logprobs.grad.item() == 0.0
    if dual_clip is not None:
        bad = row(0.0, grad=True)
        losses.clipped_policy_loss(bad, row(-100.0), row(-1.0), None, clip=0.2, dual_clip=dual_clip).backward()
        assert bad.grad.item() == 0.0


def test_at_ratio_1_the_gradient_is_the_plain_policy_gradient():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    actions, advantages = torch.tensor([[0], [2], [1], [1], [0]]), torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0]])
    logprobs = logits.log_softmax(-1).gather(1, actions)
    losses.clipped_policy_loss(logprobs, logprobs.detach(), advantages, None, clip=0.2).backward()
    with torch.no_grad():
        onehot = torch.nn.functional.one_hot(actions[:, 0], 3)
        expected = -(advantages * (onehot - logits.softmax(-1))) / 5  # d log softmax by hand
    torch.testing.assert_close(logits.grad, expected)


def test_the_clip_may_be_higher_above():
    loss = losses.clipped_policy_loss(row(math.log(1.4)), row(0.0), row(1.0), None, clip=0.2, clip_high=0.3)
    assert loss.item() == pytest.approx(-1.3)


def test_value_loss_has_its_half():
    assert losses.value_loss(row(3.0, 0.0), row(1.0, 0.0), None).item() == pytest.approx(0.5 * (4 + 0) / 2)


@pytest.mark.parametrize(
    "value, old, target, expected, slope",
    [
        (2.0, 0.0, 3.0, 0.5 * (0.5 - 3) ** 2, 0.0),  # clipped is farther off: its error counts, and V gets no gradient
        (2.0, 0.0, -1.0, 0.5 * 3.0**2, 3.0),  # the plain error is larger: it counts
        (0.2, 0.0, 1.0, 0.5 * 0.8**2, -0.8),  # inside: both agree
    ],
)
def test_value_clipping_takes_the_larger_error(value, old, target, expected, slope):
    values = row(value, grad=True)
    loss = losses.clipped_value_loss(values, row(old), row(target), None, clip=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert values.grad.item() == pytest.approx(slope)


def test_entropy_loss_is_the_negated_mean():
    mask = row(True, False, True)
    assert losses.entropy_loss(row(1.0, 9.0, 2.0), mask).item() == pytest.approx(-1.5)


@pytest.mark.parametrize("poison", [1e6, float("inf"), float("-inf"), float("nan")])
def test_masked_entries_change_no_loss_and_no_gradient(poison):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    generator = torch.Generator().manual_seed(1)
    data = {name: torch.randn(2, 3, generator=generator) for name in "lovRa"}

    def total(fill: float | None):
        parts = {k: (v if fill is None else v.masked_fill(~mask, fill)).requires_grad_() for k, v in data.items()}
        logprobs, old, values, returns, advantages = (parts[k] for k in "lovRa")
        loss = (
            losses.clipped_policy_loss(logprobs, old.detach(), advantages.detach(), mask, clip=0.2)
            + losses.clipped_policy_loss(logprobs, old.detach(), advantages.detach(), mask, clip=9, sequence_ratio=True)
            + losses.clipped_weight_loss(logprobs, old.detach(), advantages.detach(), mask, clip=0.2)
            + losses.value_loss(values, returns.detach(), mask)
            + losses.clipped_value_loss(values, old.detach(), returns.detach(), mask, clip=0.1)
            + losses.entropy_loss(logprobs, mask)
        )
        return loss, torch.autograd.grad(loss, [logprobs, values])

    clean, clean_gradients = total(None)
    dirty, dirty_gradients = total(poison)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    for one, other in zip(dirty_gradients, clean_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert (one[~mask] == 0).all()


def test_padding_changes_nothing():
    logprobs, old, advantages = row(-1.0, -2.0), row(-1.5, -1.0), row(1.0, -3.0)
    pad = lambda x: torch.nn.functional.pad(x, (0, 3), value=float("nan"))  # noqa: E731
    mask = row(True, True, False, False, False)
    torch.testing.assert_close(
        losses.clipped_policy_loss(pad(logprobs), pad(old), pad(advantages), mask, clip=0.2),
        losses.clipped_policy_loss(logprobs, old, advantages, None, clip=0.2),
    )


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="selects no step"):
        losses.value_loss(row(1.0), row(1.0), row(False))
    with pytest.raises(ValueError, match="mask: expected shape"):
        masked_mean(row(1.0, 2.0), row(True))


def test_masked_statistics_are_those_of_what_counts():
    values, mask = row(1.0, float("nan"), 4.0, 7.0), row(True, False, True, True)
    assert masked_mean(values, mask).item() == pytest.approx(4.0)
    assert masked_var(values, mask).item() == pytest.approx(9.0)
    white = whiten(values, mask)
    torch.testing.assert_close(white, row(-1.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("values", [row(5.0), row(3.0, 3.0, 3.0)])
def test_one_value_or_constant_ones_whiten_to_0(values):
    torch.testing.assert_close(whiten(values, None), torch.zeros_like(values))
    torch.testing.assert_close(whiten(values, torch.ones_like(values, dtype=torch.bool)), torch.zeros_like(values))


@pytest.mark.parametrize("value", [0.1, 0.3, -7.7, 0.01, 3e4])
def test_the_rounding_of_equal_values_is_not_taken_for_a_difference(value):
    values = torch.full((64, 9), value)  # 0.1 has no exact mean in float32
    mask = torch.rand(64, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    assert whiten(values, None).eq(0).all()
    assert whiten(values, mask).eq(0).all()
    assert whiten(values + 1e-3 * abs(value) * torch.randn(64, 9), mask)[mask].std().item() == pytest.approx(
        1, rel=0.01
    )


def test_a_single_value_has_variance_0():
    assert masked_var(row(5.0), None).item() == 0.0
    assert masked_var(row(5.0, float("nan")), row(True, False)).item() == 0.0


def test_kl_estimators_equal_enumeration_in_value():
    """Averaged over all actions with their probabilities, k1 and k3 are the KL; k2 is half the second moment."""
    generator = torch.Generator().manual_seed(2)
    p, q = (torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    torch.testing.assert_close(kl.full_kl(p, q), exact)
    torch.testing.assert_close((p.exp() * kl.k1(p, q)).sum(), exact)
    torch.testing.assert_close((p.exp() * kl.k3(p, q)).sum(), exact)
    torch.testing.assert_close((p.exp() * kl.k2(p, q)).sum(), (p.exp() * (p - q) ** 2).sum() / 2)


def test_the_expected_gradient_of_k2_is_that_of_the_kl_and_the_gradient_of_k1_is_0():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    (exact,) = torch.autograd.grad(kl.full_kl(logits.log_softmax(0), q), logits)
    probabilities = logits.softmax(0).detach()  # the sampling, through which no gradient flows
    (of_k2,) = torch.autograd.grad((probabilities * kl.k2(logits.log_softmax(0), q)).sum(), logits)
    (of_k1,) = torch.autograd.grad((probabilities * kl.k1(logits.log_softmax(0), q)).sum(), logits)
    torch.testing.assert_close(of_k2, exact)
    torch.testing.assert_close(of_k1, torch.zeros_like(exact))


def test_k3_is_never_negative_and_never_overflows():
    ratio = torch.linspace(-100, 100, 2001, requires_grad=True)
    values = kl.k3(ratio, torch.zeros_like(ratio))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert (values >= 0).all()
    assert torch.isfinite(ratio.grad).all()
    small = torch.tensor([1e-4])
    torch.testing.assert_close(kl.k3(small, torch.zeros(1)), torch.tensor([5e-9]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_of_k3_is_1_minus_the_inverse_ratio_in_the_precision_that_training_has(dtype):
    log_ratio = torch.linspace(-15, 15, 301, dtype=dtype).requires_grad_()
    kl.k3(log_ratio, torch.zeros_like(log_ratio)).sum().backward()
    torch.testing.assert_close(log_ratio.grad, 1 - torch.exp(-log_ratio.detach()))
    far = torch.tensor([-20.5, -100.0], dtype=dtype).requires_grad_()
    kl.k3(far, torch.zeros_like(far)).sum().backward()
    torch.testing.assert_close(far.grad, torch.full_like(far, 1 - math.exp(20.0)).detach())


def test_an_impossible_action_contributes_nothing_to_the_full_kl():
    p = torch.tensor([0.5, 0.5, 0.0]).log()
    q = torch.tensor([0.25, 0.5, 0.25]).log()
    torch.testing.assert_close(kl.full_kl(p, q), torch.tensor(0.5 * math.log(2.0)))


def test_the_kl_of_normals_is_that_of_torch():
    generator = torch.Generator().manual_seed(3)
    mean, log_std, ref_mean, ref_log_std = (torch.randn(4, 2, generator=generator).double() for _ in range(4))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(ref_mean, ref_log_std.exp()))
    torch.testing.assert_close(kl.gaussian_kl(mean, log_std, ref_mean, ref_log_std), expected.sum(-1))


def test_the_second_clip_bounds_what_a_bad_action_may_cost():
    def loss_and_slope(ratio, advantage):
        logprobs = row(math.log(ratio), grad=True)
        loss = losses.clipped_policy_loss(logprobs, row(0.0), row(advantage), None, clip=0.2, dual_clip=3.0)
        loss.backward()
        return loss.item(), logprobs.grad.item()

    assert loss_and_slope(5.0, -2.0) == pytest.approx((3.0 * 2.0, 0.0))  # without it 5 * 2, and a gradient of 10
    assert loss_and_slope(2.0, -2.0) == pytest.approx((2.0 * 2.0, 4.0))
    assert loss_and_slope(0.5, -2.0) == pytest.approx((0.8 * 2.0, 0.0))
    assert loss_and_slope(5.0, 2.0) == pytest.approx((-1.2 * 2.0, 0.0))


def test_the_plain_policy_gradient_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    loss = losses.policy_gradient_loss(logprobs, torch.tensor([[3.0, -1.0, math.nan]]), mask)
    loss.backward()
    assert loss.item() == pytest.approx(-(-1.0 * 3.0 + -2.0 * -1.0) / 2)
    assert logprobs.grad.tolist() == [[-1.5, 0.5, 0.0]]


def test_three_ways_to_average_by_hand():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, math.nan, math.inf, 0.0]])
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)
    assert sequence_mean(values, mask).item() == pytest.approx((2.5 + 5) / 2)
    assert constant_mean(values, mask).item() == pytest.approx((1 + 2 + 3 + 4 + 5) / (2 * 4))
    nothing = torch.cat([mask, torch.zeros(1, 4, dtype=torch.bool)])
    more = torch.cat([values, torch.ones(1, 4)])
    assert sequence_mean(more, nothing) == sequence_mean(values, mask)
    assert constant_mean(more, nothing) == constant_mean(values, mask)
    for average in (masked_mean, sequence_mean, constant_mean):
        assert average(values[:1], mask[:1]) == average(values[:1], None) == 2.5
        with pytest.raises(ValueError, match="selects no step"):
            average(values, torch.zeros_like(mask))
