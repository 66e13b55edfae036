"""The pure mathematics against explicit matrices, numpy's solver and examples worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from agents.control.mlp import MLPPolicy
from agents.functional.trust_region import conjugate_gradient, flatten, hessian_product, line_search, natural_step

OBSERVATION = spaces.Box(-1, 1, (3,))
MASKED = spaces.Dict({"x": OBSERVATION, "action_mask": spaces.MultiBinary(4)})
BOX = spaces.Box(-1, 1, (2,))
POLICIES = {
    "discrete": lambda: MLPPolicy(OBSERVATION, spaces.Discrete(3), hidden=(4,)),
    "masked": lambda: MLPPolicy(MASKED, spaces.Discrete(4), hidden=(4,)),
    "multidiscrete": lambda: MLPPolicy(OBSERVATION, spaces.MultiDiscrete([2, 3]), hidden=(4,)),
    "multibinary": lambda: MLPPolicy(OBSERVATION, spaces.MultiBinary(2), hidden=(4,), activation="relu"),
    "box": lambda: MLPPolicy(OBSERVATION, BOX, hidden=(4,), log_std=-0.3),
    "state-dependent": lambda: MLPPolicy(OBSERVATION, BOX, hidden=(4,), log_std=-0.3, sde_sample_freq=4),
}


def policy_and_observations(kind: str, rows: int = 6) -> tuple[MLPPolicy, torch.Tensor]:
    torch.manual_seed(4)
    policy = POLICIES[kind]().double()
    with torch.no_grad():
        for parameter in policy.parameters():  # away from the nearly uniform start, where curvature is symmetric
            parameter.add_(0.4 * torch.randn_like(parameter))
    observations = torch.randn(rows, 3).double()
    if kind == "masked":
        allowed = torch.ones(rows, 4)
        allowed[::2, 1] = allowed[1, 3] = 0.0
        observations = torch.cat([observations, allowed.double()], -1)
    return policy, observations


class Distribution(nn.Module):
    def __init__(self, policy: MLPPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations):
        return self.policy.head.distribution(self.policy.outputs(observations))


def mean_kl_and_actor(policy, observations):
    present = policy.head.distribution(policy.outputs(observations))
    old = tuple(part.detach().clone() for part in present)
    actor = {f"policy.{name}": p for name, p in policy.named_parameters() if not name.startswith("critic")}
    return policy.head.kl(old, present).mean(), old, actor


@pytest.mark.parametrize("kind", POLICIES)
def test_the_product_is_that_of_the_explicit_hessian_of_the_kl(kind):
    policy, observations = policy_and_observations(kind)
    mean_kl, old, actor = mean_kl_and_actor(policy, observations)
    names, values = list(actor), [p.detach() for p in actor.values()]

    def kl_at(point):
        parts = point.split([value.numel() for value in values])
        there = {name: part.view_as(value) for name, part, value in zip(names, parts, values, strict=True)}
        return policy.head.kl(old, functional_call(Distribution(policy), there, (observations,))).mean()

    explicit = hessian(kl_at, flatten(values))
    product = hessian_product(mean_kl, list(actor.values()))
    for vector in torch.eye(len(explicit), dtype=torch.float64):
        torch.testing.assert_close(product(vector), explicit @ vector, rtol=1e-9, atol=1e-12)
    assert float(mean_kl.detach()) == pytest.approx(0.0, abs=1e-12)
    assert torch.linalg.eigvalsh(explicit).min() > -1e-9


@pytest.mark.parametrize("kind", ["discrete", "masked"])
def test_the_product_is_that_of_the_fisher_matrix_summed_over_all_actions(kind):
    """F = E_s sum_a pi(a|s) grad log pi(a|s) grad log pi(a|s)^T, without any second derivative."""
    policy, observations = policy_and_observations(kind)
    mean_kl, _, actor = mean_kl_and_actor(policy, observations)
    parameters = list(actor.values())
    (logprobs,) = policy.head.distribution(policy.outputs(observations))
    fisher = 0.0
    for logprob in logprobs.flatten():
        if logprob > -torch.inf:
            score = flatten(torch.autograd.grad(logprob, parameters, retain_graph=True))
            fisher = fisher + logprob.exp().detach() * torch.outer(score, score) / len(observations)
    vector = torch.randn(len(fisher), dtype=torch.float64)
    torch.testing.assert_close(hessian_product(mean_kl, parameters)(vector), fisher @ vector)


def positive_definite(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    root, target = (torch.randn(size, *shape, generator=generator).double() for shape in ((size,), ()))
    return root @ root.T / size + 0.5 * torch.eye(size), target


@pytest.mark.parametrize("size", [1, 5, 20])
def test_conjugate_gradients_solve_as_numpy_does(size):
    matrix, target = positive_definite(size)
    solution, residual = conjugate_gradient(lambda v: matrix @ v, target, steps=2 * size, tolerance=1e-12)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, target), rtol=1e-7)
    assert residual <= 1e-12


def test_few_conjugate_gradients_report_what_they_left():
    matrix, target = positive_definite(20)
    solution, residual = conjugate_gradient(lambda v: matrix @ v, target, steps=3)
    assert residual == pytest.approx(float((target - matrix @ solution).norm() / target.norm()))
    assert residual > 1e-3


def test_nothing_to_solve_is_solved_by_nothing():
    solution, residual = conjugate_gradient(lambda v: 1 / 0, torch.zeros(3), steps=5)
    assert not solution.any()
    assert residual == 0.0
    step, _ = natural_step(lambda v: v, torch.zeros(3), target_kl=0.1, steps=5, damping=0.1)
    assert not step.any()


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_step_of_a_coin_is_the_one_worked_out_by_hand(damping):
    """pi(1) = sigmoid(z) at z = 0: F = p (1 - p) = 1/4 and, for a gradient g > 0, s.F s / 2 = target gives

    s = sqrt(2 target / F) = sqrt(8 target), whatever g and the damping are.
    """
    step, _ = natural_step(lambda v: 0.25 * v, torch.tensor([0.7]), target_kl=0.02, steps=3, damping=damping)
    assert float(step) == pytest.approx(0.4)


def test_the_step_maximizes_the_gain_within_the_ellipsoid():
    matrix, gradient = positive_definite(6)
    step, _ = natural_step(lambda v: matrix @ v, gradient, target_kl=0.05, steps=30, damping=0.0)
    assert float(step @ matrix @ step) / 2 == pytest.approx(0.05)
    # Lagrange: the gain's gradient is a positive multiple of the constraint's. By Cauchy-Schwarz it is the largest.
    inverse = np.linalg.solve(matrix, gradient)
    assert float(step @ gradient) == pytest.approx(math.sqrt(2 * 0.05 * float(gradient @ inverse)), rel=1e-6)


@pytest.mark.parametrize(
    "gain, kl, tries",
    [
        (lambda x: x, lambda x: x * x, 2),  # 1 is too far, 1/2 is not
        (lambda x: x, lambda x: 0.25 * x, 1),  # on the border counts as within
        (lambda x: 0.3 - x, lambda x: 0.0, 3),  # 1 and 1/2 lose, 1/4 gains
        (lambda x: float("nan") if x > 0.3 else x, lambda x: 0.0, 3),
        (lambda x: x, lambda x: float("nan") if x > 0.6 else 0.0, 2),
        (lambda x: 0.0, lambda x: 0.0, 0),  # no gain is not enough
        (lambda x: x, lambda x: 1.0, 0),
    ],
)
def test_the_line_search_takes_the_first_gain_within_the_region_or_stays(gain, kl, tries):
    start, step = torch.tensor([3.0]), torch.tensor([1.0])

    def measure(point):
        along = float(point - start)
        return gain(along), kl(along)

    point, tried = line_search(measure, start, step, target_kl=0.25, tries=4, shrink=0.5)
    assert tried == tries
    assert float(point) == 3.0 + (0.5 ** (tries - 1) if tries else 0.0)
