"""GSPO's ratio of whole rows and CISPO's clipped weights: gradients against definitions written out in numpy (P3, P4).

The mask has holes, as rows of dialogues have (what the environment wrote is in the row and is no step), a row of one
step, and a row of none.
"""

import numpy as np
import pytest
import torch

from agents.functional.losses import clipped_policy_loss, clipped_weight_loss, policy_gradient_loss
from agents.functional.masked import constant_mean, masked_mean, sequence_mean

MASK = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=bool)
RNG = np.random.default_rng(0)
OLD = -RNG.uniform(0.5, 3.0, MASK.shape)
GAPS = np.array([0.05, 0.6, -0.5, 0.4, 0.0])[:, None]  # by rows: inside, above, below, above the interval
NEW = OLD + GAPS + 0.1 * RNG.normal(size=MASK.shape)
ROW_ADVANTAGES = np.array([1.5, -0.7, 0.8, 1.1, 9.0])  # above with A > 0 is clipped, below with A > 0 is not
STEP_ADVANTAGES = RNG.normal(size=MASK.shape)
CLIP, CLIP_HIGH = 0.2, 0.3
AVERAGES = {"token": masked_mean, "sequence": sequence_mean, "constant": constant_mean}


def weights(average):
    """The share of each step in the mean, ``[B, T]``."""
    lengths = MASK.sum(1, keepdims=True)
    rows = (lengths > 0).sum()
    share = {
        "token": 1 / MASK.sum(),
        "sequence": 1 / np.maximum(lengths, 1) / rows,
        "constant": 1 / rows / MASK.shape[1],
    }
    return MASK * share[average]


def gspo(logprobs, average):
    """Minus eq. 5, with s of eq. 7 as a product of ratios and its root, whatever the average's weight of a row."""
    total = 0.0
    for row, valid in enumerate(MASK):
        if not valid.any():
            continue
        s = np.prod(np.exp(logprobs[row, valid]) / np.exp(OLD[row, valid])) ** (1 / valid.sum())
        gain = min(s * ROW_ADVANTAGES[row], np.clip(s, 1 - CLIP, 1 + CLIP_HIGH) * ROW_ADVANTAGES[row])
        total -= weights(average)[row].sum() * gain
    return total


def by_differences(function, at, step=1e-6):
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


def value_and_gradient(loss, logprobs, advantages, average, **options):
    leaf = torch.tensor(logprobs, requires_grad=True)
    old = torch.tensor(np.where(MASK, OLD, np.nan))
    found = loss(leaf, old, torch.tensor(advantages), torch.tensor(MASK), average=AVERAGES[average], **options)
    found.backward()
    return found.item(), leaf.grad.numpy()


@pytest.mark.parametrize("average", AVERAGES)
def test_gspo_has_value_and_gradient_of_the_root_of_the_product_of_ratios(average):
    advantages = np.where(MASK, ROW_ADVANTAGES[:, None], np.nan)
    options = dict(clip=CLIP, clip_high=CLIP_HIGH, sequence_ratio=True)
    value, gradient = value_and_gradient(clipped_policy_loss, NEW, advantages, average, **options)
    assert value == pytest.approx(gspo(NEW, average), rel=1e-12)
    expected = by_differences(lambda at: gspo(at, average), NEW)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    moves = [bool(row.any()) for row in expected]
    assert moves == [True, True, True, False, False]  # the fourth is clipped as a whole, the fifth has no step


def test_gspo_gives_each_step_its_own_advantage_and_the_ratio_of_its_row():
    value, gradient = value_and_gradient(
        clipped_policy_loss, NEW, STEP_ADVANTAGES, "sequence", clip=99.0, sequence_ratio=True
    )
    s = [np.exp((NEW - OLD)[row, valid].mean()) if valid.any() else 0.0 for row, valid in enumerate(MASK)]
    terms = (
        weights("sequence") * np.array(s)[:, None] * STEP_ADVANTAGES
    )  # the gradient of s pi / sg(pi) is s grad log pi
    assert value == pytest.approx(-terms.sum())
    np.testing.assert_allclose(gradient, -terms, atol=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
def test_cispo_weighs_the_policy_gradient_by_the_clipped_ratio_and_drops_no_step(average):
    advantages = np.where(MASK, STEP_ADVANTAGES, np.nan)
    ratio = np.exp(NEW - OLD)
    assert (ratio[MASK] < 1 - CLIP).any()
    assert (ratio[MASK] > 1 + CLIP_HIGH).any()
    for clip, low in ((CLIP, 1 - CLIP), (1.0, 0.0)):  # with the paper's, there is no lower bound
        weight = np.clip(ratio, low, 1 + CLIP_HIGH)
        surrogate = lambda at: -(weights(average) * weight * STEP_ADVANTAGES * at).sum()  # noqa: B023, E731
        options = dict(clip=clip, clip_high=CLIP_HIGH)
        value, gradient = value_and_gradient(clipped_weight_loss, NEW, advantages, average, **options)
        assert value == pytest.approx(surrogate(NEW))
        np.testing.assert_allclose(gradient, by_differences(surrogate, NEW), atol=1e-8)
        assert (gradient[MASK] != 0).all()


@pytest.mark.parametrize("average", AVERAGES)
def test_at_ratio_1_both_have_the_gradient_of_the_plain_policy_gradient(average):
    def plain(logprobs, old, *given, **options):
        return policy_gradient_loss(logprobs, *given, **options)

    expected = value_and_gradient(plain, OLD, STEP_ADVANTAGES, average)[1]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(expected, -weights(average) * STEP_ADVANTAGES, atol=1e-15)
    for loss, options in ((clipped_policy_loss, {"sequence_ratio": True}), (clipped_weight_loss, {})):
        found = value_and_gradient(loss, OLD, STEP_ADVANTAGES, average, clip=3e-4, **options)[1]
        np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("options", [{"sequence_ratio": True}, {}], ids=["gspo", "cispo"])
def test_what_the_environment_wrote_between_two_steps_counts_in_no_length(options):
    loss = clipped_policy_loss if options else clipped_weight_loss
    pair = lambda x: torch.tensor(x[:1, [0, 2, 3]])  # noqa: E731 - the first row without its holes
    leaf, joint = pair(NEW).requires_grad_(), torch.tensor(NEW[:1]).requires_grad_()
    alone = loss(leaf, pair(OLD), pair(STEP_ADVANTAGES), None, clip=0.01, **options)
    holes = [torch.tensor(np.where(MASK, x, 1e6)[:1]) for x in (OLD, STEP_ADVANTAGES)]
    within = loss(joint, *holes, torch.tensor(MASK[:1]), clip=0.01, **options)
    torch.testing.assert_close(within, alone)
    alone.backward()
    within.backward()
    torch.testing.assert_close(joint.grad[:, [0, 2, 3]], leaf.grad)
    assert joint.grad[0, [1, 4]].tolist() == [0.0, 0.0]


def test_a_ratio_beyond_all_numbers_makes_no_nan():
    far, old, one = torch.zeros(1, 2, requires_grad=True), torch.full((1, 2), -100.0), torch.ones(1, 2)
    losses = [clipped_policy_loss(far, old, one, None, clip=0.2, sequence_ratio=True)]
    losses.append(clipped_weight_loss(far, old, one, None, clip=0.2))
    gradients = [torch.autograd.grad(loss, far)[0].tolist() for loss in losses]
    assert losses[0].item() == pytest.approx(-1.2)
    assert gradients == [[[0.0, 0.0]], [pytest.approx([-0.6, -0.6])]]
