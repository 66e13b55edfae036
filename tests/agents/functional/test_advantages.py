"""GAE by hand, against its definition, and against Stable-Baselines3."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.functional.advantages import generalized_advantages, values_of_next_steps
from agents.verification.proof.peers import advantage_difference, advantages_by_definition


def row(*values):
    return torch.tensor([values])


def random_rollout(rows: int, steps: int, seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    terminated = rng.random((rows, steps)) < 0.15
    ended = terminated | (rng.random((rows, steps)) < 0.15)
    ended[:, -1] = True
    draw = lambda: torch.tensor(rng.normal(size=(rows, steps)))  # noqa: E731
    return {
        "rewards": draw(),
        "values": draw(),
        "next_values": draw(),
        "terminated": torch.tensor(terminated),
        "ended": torch.tensor(ended),
    }


def by_definition(rollout: dict[str, torch.Tensor], gamma: float, lam: float, mask: np.ndarray) -> np.ndarray:
    arrays = {name: value.numpy() for name, value in rollout.items()}
    return advantages_by_definition(arrays, gamma=gamma, lam=lam, mask=mask)


def test_truncation_bootstraps_but_does_not_leak_across_the_border():
    advantages = generalized_advantages(
        rewards=row(1.0, 2.0),
        values=row(0.5, 1.0),
        next_values=row(3.0, 4.0),
        terminated=row(False, False),
        ended=row(True, False),
        gamma=0.5,
        lam=0.5,
    )
    torch.testing.assert_close(advantages, row(1 + 0.5 * 3 - 0.5, 2 + 0.5 * 4 - 1))


def test_termination_bootstraps_nothing_also_where_the_time_ran_out_at_once():
    advantages = generalized_advantages(
        row(1.0, 2.0), row(0.5, 1.0), row(3.0, 4.0), row(True, False), row(True, True), gamma=0.5, lam=0.5
    )
    torch.testing.assert_close(advantages, row(1 - 0.5, 2 + 0.5 * 4 - 1))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition_under_any_mixture_of_ends_and_masks(seed):
    rollout = random_rollout(6, 17, seed)
    mask = np.random.default_rng(100 + seed).random((6, 17)) < (1.0 if seed == 0 else 0.8)
    ours = generalized_advantages(**rollout, gamma=0.97, lam=0.9, mask=torch.tensor(mask))
    np.testing.assert_allclose(ours.numpy(), by_definition(rollout, 0.97, 0.9, mask), rtol=1e-12, atol=1e-12)


def test_lambda_0_is_the_one_step_error():
    rollout = random_rollout(4, 9, 1)
    expected = rollout["rewards"] + 0.9 * rollout["next_values"] * ~rollout["terminated"] - rollout["values"]
    torch.testing.assert_close(generalized_advantages(**rollout, gamma=0.9, lam=0.0), expected)


def test_lambda_1_is_the_discounted_return_minus_the_value():
    rollout = random_rollout(3, 11, 2)
    ours = generalized_advantages(**rollout, gamma=0.9, lam=1.0)
    # With next values consistent along the chain the bootstraps telescope away.
    values, after = rollout["values"], rollout["next_values"].clone()
    inside = ~rollout["ended"][:, :-1]
    after[:, :-1][inside] = values[:, 1:][inside]
    rollout["next_values"] = after
    ours = generalized_advantages(**rollout, gamma=0.9, lam=1.0)
    for b in range(3):
        for t in range(11):
            total, discount = 0.0, 1.0
            for later in range(t, 11):
                total += discount * rollout["rewards"][b, later].item()
                discount *= 0.9
                if rollout["ended"][b, later]:
                    total += discount * after[b, later].item() * (not rollout["terminated"][b, later])
                    break
            assert ours[b, t].item() == pytest.approx(total - values[b, t].item())


def test_nothing_leaks_between_rows():
    rollout = random_rollout(5, 8, 3)
    whole = generalized_advantages(**rollout, gamma=0.99, lam=0.95)
    alone = generalized_advantages(**{k: v[2:3] for k, v in rollout.items()}, gamma=0.99, lam=0.95)
    torch.testing.assert_close(whole[2:3], alone, rtol=0, atol=0)


@pytest.mark.parametrize("poison", [1e6, float("inf"), float("nan")])
def test_masked_steps_may_hold_anything(poison):
    rollout = random_rollout(4, 9, 4)
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    clean = generalized_advantages(**rollout, gamma=0.99, lam=0.95, mask=mask)
    for name in ("rewards", "values", "next_values"):
        rollout[name] = rollout[name].masked_fill(~mask, poison)
    poisoned = generalized_advantages(**rollout, gamma=0.99, lam=0.95, mask=mask)
    torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)
    assert (clean[~mask] == 0).all()


@st.composite
def rows_with_holes(draw):
    """Rows of steps, of which a few between 0 and all count."""
    steps = draw(st.integers(1, 9))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=1, max_size=4))
    return torch.tensor(mask), draw(st.integers(0, 2**16))


@settings(max_examples=60, deadline=None)
@given(rows_with_holes(), st.sampled_from([(0.97, 0.9), (1.0, 1.0), (0.5, 0.0)]))
def test_rows_with_holes_have_the_advantages_of_the_steps_that_count_alone(case, discounts):
    mask, seed = case
    rollout, (gamma, lam) = random_rollout(*mask.shape, seed), discounts
    ours = generalized_advantages(**rollout, gamma=gamma, lam=lam, mask=mask)
    np.testing.assert_allclose(ours.numpy(), by_definition(rollout, gamma, lam, mask.numpy()), rtol=1e-12, atol=1e-12)
    assert (ours[~mask] == 0).all()
    for b in mask.any(1).nonzero()[:, 0].tolist():
        compact = {name: value[b : b + 1, mask[b]] for name, value in rollout.items()}
        alone = generalized_advantages(**compact, gamma=gamma, lam=lam)
        torch.testing.assert_close(ours[b, mask[b]], alone[0], rtol=1e-12, atol=1e-12)


def test_a_hole_neither_discounts_nor_cuts():
    # A_0 = delta_0 + gamma lam delta_2 = (1 + 0.5 * 20 - 10) + 0.25 * (2 - 20), and step 1 is nobody's.
    advantages = generalized_advantages(
        row(1.0, 99.0, 2.0), row(10.0, 99.0, 20.0), row(20.0, 99.0, 0.0), row(False, True, True),
        row(False, True, True), gamma=0.5, lam=0.5, mask=row(True, False, True),
    )  # fmt: skip
    torch.testing.assert_close(advantages, row(1 + 10 - 10 + 0.25 * (2 - 20), 0.0, 2.0 - 20))


def test_the_value_after_a_step_is_that_of_the_next_step_that_counts():
    values, mask = row(1.0, 2.0, 3.0, 4.0, 5.0), row(True, False, False, True, False)
    torch.testing.assert_close(values_of_next_steps(values, mask), row(4.0, 4.0, 4.0, 0.0, 0.0))
    torch.testing.assert_close(values_of_next_steps(values, mask | True), row(2.0, 3.0, 4.0, 5.0, 0.0))


def test_equals_stable_baselines3():
    assert advantage_difference() <= 1e-5  # SB3 computes in float32


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        generalized_advantages(row(1.0), row(1.0, 2.0), row(1.0), row(False), row(True), gamma=1.0, lam=1.0)
