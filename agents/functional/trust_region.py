"""The mathematics of a trust-region step, without policy or optimizer.

The largest step that keeps the KL from the old policy within ``target_kl``, to second order: with ``g`` the gradient of
the objective and ``F`` the Hessian of the mean KL at the old policy (its Fisher matrix),

    maximize g.s  subject to  s.F s / 2 <= target_kl        has the solution  s = sqrt(2 target_kl / x.F x) x,  F x = g

``F`` is never built: conjugate gradients use its products with vectors only. A line search shortens the step where
higher-order curvature matters.

Source: Schulman et al. 2015, "Trust region policy optimization" (arXiv:1502.05477), appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A matrix, as the function that multiplies a vector ``[P]`` by it."""


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one new vector ``[P]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def hessian_product(value: Tensor, parameters: Sequence[Tensor]) -> Product:
    """The Hessian of ``value`` by ``parameters``, as a product: ``H v = grad (grad value . v)``.

    Of the mean KL between the old policy and itself it is the Fisher matrix, averaged over the states. ``value`` is
    0-dimensional, with its graph, which lives as long as the product; vectors hold the entries of ``parameters`` in
    order.
    """
    gradient = flatten(torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True))

    def product(vector: Tensor) -> Tensor:
        return flatten(torch.autograd.grad(gradient @ vector, parameters, retain_graph=True, materialize_grads=True))

    return product


def conjugate_gradient(
    product: Product, target: Tensor, *, steps: int, tolerance: float = 1e-5
) -> tuple[Tensor, float]:
    """Solve ``A x = target`` for a symmetric positive definite ``A``, starting from 0.

    Source: Hestenes & Stiefel 1952; exact after ``P`` steps up to rounding.

    Args:
        product: multiplies by ``A``.
        target: ``[P]``.
        steps: largest number of products.
        tolerance: stop once ``|target - A x| / |target|`` is below it; the default is about what float32 can reach.

    Returns:
        x ``[P]``, and ``|target - A x| / |target|`` (0 for a target of 0).
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, first = residual.clone(), float(target @ target)
    squared = first
    for _ in range(steps):
        if squared <= tolerance**2 * first:
            break
        curved = product(direction)
        curvature = float(direction @ curved)
        if not curvature > 0.0:  # only rounding errors are left, or A is not positive definite
            break
        length = squared / curvature
        solution.add_(direction, alpha=length)
        residual.sub_(curved, alpha=length)
        before, squared = squared, float(residual @ residual)
        direction = torch.add(residual, direction, alpha=squared / before)
    return solution, math.sqrt(squared / first) if first > 0.0 else 0.0


def natural_step(
    product: Product, gradient: Tensor, *, target_kl: float, steps: int, damping: float
) -> tuple[Tensor, float]:
    """The step along the natural gradient whose KL is ``target_kl``, to second order.

    The direction is that of ``F + damping``, which is well conditioned; the length is measured by ``F`` alone, so that
    damping, >= 0, does not shorten the step. ``product`` multiplies by ``F``, ``gradient [P]`` is of the objective to
    maximize, ``target_kl`` nats, ``steps`` are of conjugate gradients.

    Returns:
        The step ``[P]``, 0 where the gradient is; and the relative residual of the direction.
    """
    direction, residual = conjugate_gradient(lambda v: product(v).add_(v, alpha=damping), gradient, steps=steps)
    curvature = float(direction @ product(direction))
    if not curvature > 0.0:
        return torch.zeros_like(gradient), residual
    return direction.mul_(math.sqrt(2.0 * target_kl / curvature)), residual


def line_search(
    measure: Callable[[Tensor], tuple[float, float]],
    start: Tensor,
    step: Tensor,
    *,
    target_kl: float,
    tries: int,
    shrink: float,
) -> tuple[Tensor, int]:
    """The first of ``start + shrink^k step``, k = 0, 1, ..., that improves the objective within the trust region.

    Args:
        measure: of a point ``[P]``: the gain over ``start`` and the mean KL from ``start``, nats; either may be
            non-finite.
        start, step: ``[P]``.
        target_kl: nats; a point further away is not accepted.
        tries: largest number of points.
        shrink: (0, 1).

    Returns:
        The point, and how many were tried; ``start`` and 0 if none is accepted.
    """
    for k in range(tries):
        point = torch.add(start, step, alpha=shrink**k)
        gain, kl = measure(point)
        if gain > 0.0 and kl <= target_kl:
            return point, k + 1
    return start, 0
