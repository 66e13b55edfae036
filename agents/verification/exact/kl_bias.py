"""The bias of every KL estimator, in value and gradient, by enumeration: nothing is sampled here.

    python -m scripts.kl_bias

The policy lies halfway, in logits, between the reference and the optimum of a text environment. Value: the
estimator's mean over completions, summed over tokens, against KL(pi || pi_ref). Gradient, by the policy's logits: of
the estimator's mean, as autograd sees it where the estimator is a term of the loss and the sampled tokens are
constants. It is compared with two exact gradients:

* the gradient of the KL of each token's distribution, at the prefixes as they are visited ("per token");
* the gradient of the KL of whole sequences, which also counts how a token changes what is visited later ("sequence").

The last line is k1 as a penalty in the reward (`KLShaping`), whose policy gradient is that of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agents.functional import kl
from agents.runs.cli import command
from textenvs.exact import enumeration as exact
from textenvs.exact.envs import ExactTask, random, sentiment, spelling

TASKS: dict[str, Callable[[], ExactTask]] = {"spelling": spelling, "sentiment": sentiment, "random": random}
ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}


@dataclass(frozen=True, kw_only=True)
class KLBiasConfig:
    """Settings of the measurement."""

    task: Literal["spelling", "sentiment", "random"] = "sentiment"
    """which enumerable problem"""
    share: float = 0.5
    """how far the policy is from the reference (0) to the optimum (1), in logits"""


@dataclass(frozen=True)
class Bias:
    """One estimator against enumeration; gradients are compared over all logits at once, by Euclidean norm."""

    value: float  # mean of the estimator, nats per sequence
    value_error: float  # (value - KL) / KL
    std: float  # of one sequence's estimate, nats
    token_gradient_error: float  # |gradient - truth| / |truth|, truth per token; 1 is as good as no gradient
    sequence_gradient_error: float  # the same against the KL of whole sequences


def kl_biases(task: ExactTask, share: float = 0.5) -> dict[str, Bias]:
    """The bias of k1, k2, k3, full KL and k1 in the reward, at a policy ``share``, not 0, of the way to the optimum."""
    if share == 0:
        raise ValueError("share must not be 0: the policy would be the reference, whose KL to itself is 0")
    ref = torch.from_numpy(task.ref_logprobs)
    logits = ((1 - share) * ref + share * torch.from_numpy(task.optimum.logprobs)).requires_grad_()
    logprobs = logits.log_softmax(-1)
    table = logprobs.detach().numpy()
    visits = torch.from_numpy(exact.visits(task.tree, table))
    full = kl.full_kl(logprobs, ref)
    true_value = float((visits * full.detach()).sum(1).mean())
    token_truth = _gradient((visits * full).sum(1).mean(), logits)
    # J = -KL for beta 1 and no scores
    gradient = exact.objective_gradient(task.tree, table, task.ref_logprobs, np.zeros_like(task.scores), 1.0)
    sequence_truth = -torch.from_numpy(gradient / len(task.prompts))

    def bias(value: float, std: float, gradient: Tensor) -> Bias:
        errors = (float((gradient - truth).norm() / truth.norm()) for truth in (token_truth, sequence_truth))
        return Bias(value, (value - true_value) / true_value, std, *errors)

    found, estimates = {}, {name: estimator(logprobs, ref) for name, estimator in ESTIMATORS.items()}
    for name, per_token in (estimates | {"full": full[..., None].expand_as(logprobs)}).items():
        mean, std, surrogate = _of_sequences(task, table, per_token)
        found[name] = bias(mean, std, _gradient(surrogate, logits))
    priced = -_gradient(_policy_gradient_loss(task, table, logprobs, -(logprobs - ref).detach()), logits)
    return found | {"k1 in the reward": bias(found["k1"].value, found["k1"].std, priced)}


def _of_sequences(task: ExactTask, table: exact.Array, per_token: Tensor) -> tuple[float, float, Tensor]:
    """Mean and deviation of estimates ``[M, S, V]``, summed over completions; and the mean, differentiable by them."""
    probabilities = torch.from_numpy(np.exp(exact.sequence_logprobs(task.tree, table)))
    of_rows = _along_rows(task, per_token).sum(2)
    mean = (probabilities * of_rows).sum(1)
    variance = (probabilities * (of_rows - mean[:, None]) ** 2).sum(1).detach()
    return mean.mean().item(), variance.mean().sqrt().item(), mean.mean()


def _policy_gradient_loss(task: ExactTask, table: exact.Array, logprobs: Tensor, rewards: Tensor) -> Tensor:
    """``E_y[ sum_t log pi(y_t) sum_{s >= t} r_s ]`` with constant probabilities: its gradient is REINFORCE's."""
    probabilities = torch.from_numpy(np.exp(exact.sequence_logprobs(task.tree, table)))
    to_go = _along_rows(task, rewards).flip(2).cumsum(2).flip(2)
    return (probabilities[:, :, None] * _along_rows(task, logprobs) * to_go).sum((1, 2)).mean()


def _along_rows(task: ExactTask, per_token: Tensor) -> Tensor:
    """``[M, S, V]`` as met along every completion: ``[M, Y, T]``, 0 at padding."""
    tree = task.tree
    met = per_token[:, torch.from_numpy(tree.states), torch.from_numpy(np.maximum(tree.completions, 0))]
    return torch.where(torch.from_numpy(tree.mask), met, 0.0)


def _gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def main(config: KLBiasConfig) -> dict[str, Any]:
    """Print the table; returns it flat."""
    biases = kl_biases(TASKS[config.task](), config.share)
    print(f"{'estimator':18}{'nats':>8}{'error':>9}{'std':>8}{'gradient error: per token':>28}{'sequence':>10}")
    for name, bias in biases.items():
        errors = f"{bias.token_gradient_error:28.2%}{bias.sequence_gradient_error:10.2%}"
        print(f"{name:18}{bias.value:8.4f}{bias.value_error:9.2%}{bias.std:8.3f}{errors}")
    return {f"{name}_{key}": value for name, bias in biases.items() for key, value in vars(bias).items()}


command_line = command(KLBiasConfig, main, __doc__, show=False)
