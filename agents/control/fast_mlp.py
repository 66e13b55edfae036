"""``agents.control.mlp`` with its derivative written out, for networks so small that dispatch is the cost.

All parameters live in one flat vector, of which the policy's own are views; PPO's gradient goes straight into another,
so there is one tensor for Adam and for the gradient's norm, and no graph. Actor and critic are computed together where
their inputs agree. ``MLPPolicy`` with ``agents.functional.losses`` stays the definition; tests hold the two equal.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from agents.config import UpdateConfig
from agents.control.heads import CategoricalHead, GaussianHead
from agents.control.mlp import MLPPolicy
from agents.functional.distributions import HALF_LOG_2PI, mask_logits
from agents.functional.losses import LARGEST_LOG_RATIO
from agents.interfaces import Evaluation
from agents.rollout import Batch


def is_fast(policy: object) -> TypeGuard[MLPPolicy]:
    """Whether ``FastMLP`` supports this policy: a plain ``MLPPolicy``, its hidden layers of one width, float32 on the
    CPU, Discrete or Box actions."""
    return (
        type(policy) is MLPPolicy
        and len({layer.out_features for layer in list(policy.actor)[:-1] if isinstance(layer, nn.Linear)}) == 1
        and (isinstance(policy.head, GaussianHead) or (isinstance(policy.head, CategoricalHead) and policy.head.alone))
        and all(p.dtype == torch.float32 and p.device.type == "cpu" and p.requires_grad for p in policy.parameters())
    )


class FastMLP:
    """Acts, and finds PPO's gradient, over an ``MLPPolicy``'s parameters, which become views of ``flat``.

    After this, move neither it nor its parameters to another device or dtype.

    ``flat`` holds the parameters already, where a copy of an agent is made: its optimizer's own.

    Raises:
        ValueError: unless the policy ``is_fast``.
    """

    keeps_rows = False

    def __init__(self, policy: MLPPolicy, flat: nn.Parameter | None = None) -> None:
        if not is_fast(policy):
            raise ValueError("FastMLP takes an MLPPolicy with Discrete or Box actions, float32 on the CPU")
        self.policy = policy
        self.draw_noise, self.act = policy.draw_noise, policy.act
        self.values, self.evaluate = policy.values, policy.evaluate
        self.head: Any = policy.head
        self.categorical = isinstance(policy.head, CategoricalHead)
        self.relu = isinstance(policy.actor[1], nn.ReLU)
        actor = [layer for layer in policy.actor if isinstance(layer, nn.Linear)]
        critic = [layer for layer in policy.critic if isinstance(layer, nn.Linear)]
        self.width, self.num_outputs = actor[0].out_features, self.head.num_outputs
        # Neighbors in the flat vector can be computed at once: the first layers' weights, each pair of biases.
        order: list[Any] = []
        for one, other in zip(actor, critic, strict=True):
            order += [one.weight, other.weight, one.bias, other.bias]
        if not self.categorical:
            order.append(self.head.log_std)
        self.flat = nn.Parameter(torch.cat([p.detach().flatten() for p in order])) if flat is None else flat
        self.flat.grad = torch.zeros_like(self.flat)
        storage = self.flat.detach()
        for parameter, part in zip(order, storage.split([p.numel() for p in order]), strict=True):
            parameter.data = part.view_as(parameter)
        self._places = [parameter.data_ptr() for parameter in policy.parameters()]
        self.weights, self.biases = _layers(storage, order)
        self.weight_gradients, self.bias_gradients = _layers(self.flat.grad, order)
        self.log_std_gradient = self.flat.grad[-self.num_outputs :]

    def check(self) -> None:
        """Raise ValueError unless the policy's parameters are still views of ``flat``, which alone is trained."""
        if [parameter.data_ptr() for parameter in self.policy.parameters()] != self._places:
            raise ValueError(
                "policy: expected the parameters that the agent was built with, received others: change weights by "
                "load_state_dict or copy_, and move an agent by save and load(device=...)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"policy": self.policy, "flat": self.flat}  # a copy, or pickle, has no views: they are made anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @torch.no_grad()
    def choose(self, observations: Tensor, noise: Tensor | None) -> Tensor:
        """As ``MLPPolicy.choose``."""
        policy, width = self.policy, self.width
        hidden = observations if policy.mask_size == 0 else observations[:, : policy.input_size]
        for (weight, _), bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = self._activate(torch.addmm(bias[:width], hidden, weight.t()))
        outputs = torch.addmm(self.biases[-1][: self.num_outputs], hidden, self.weights[-1][0].t())
        if policy.mask_size:
            outputs = mask_logits(outputs, observations[:, policy.input_size :] > 0)
        return self.head.sample(outputs, noise)

    @torch.no_grad()
    def ppo_gradient(
        self, batch: Batch, config: UpdateConfig, clip: float
    ) -> tuple[Evaluation, Tensor, dict[str, Tensor]]:
        """Overwrite ``flat.grad`` with the gradient of ``agents.update.ppo_objective`` on ``batch``.

        With r the ratio and N the number of steps, ``dL/dlogp = -r A / N`` where the unclipped term is the smaller
        one, else 0 (also beyond ``LARGEST_LOG_RATIO``); ``dL/dV = value_coef (V - R) / N``;
        ``dL/dH = -entropy_coef / N``.

        Args:
            batch: single steps ``[N, 1]`` that all count.
            config: without ``value_clip``.
            clip: eps.

        Returns:
            The evaluation ``[N]``, the loss and its parts.
        """
        number = batch.num_rows
        observations, actions = batch.observations.view(number, -1), batch.actions.view(number, -1).t()
        advantages, old_logprobs = batch.advantages.view(-1), batch.old_logprobs.view(-1)
        logprobs, entropy, values, hidden, kept = self._forward(observations, actions)
        log_ratio = logprobs - old_logprobs
        ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp_()
        plain = ratio * advantages
        clipped = ratio.clamp_(1.0 - clip, 1.0 + clip).mul_(advantages)
        policy_loss = -torch.minimum(plain, clipped).mean()
        logprob_gradient = plain.mul_((plain <= clipped) & (log_ratio <= LARGEST_LOG_RATIO)).mul_(-1.0 / number)
        error = values - batch.returns.view(-1)
        value_loss = torch.dot(error, error) * (0.5 / number)
        loss = torch.add(policy_loss, value_loss, alpha=config.value_coef)
        if config.entropy_coef:
            loss = torch.sub(loss, entropy.mean(), alpha=config.entropy_coef)
        outputs = self._head_gradient(actions, kept, logprob_gradient, config.entropy_coef / number)
        self._backward(hidden, outputs, error.mul_(config.value_coef / number))
        parts = {"policy_loss": policy_loss, "value_loss": value_loss}
        return Evaluation(logprobs, entropy, values), loss, parts

    def _forward(self, rows: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
        """Log-probabilities, entropies, values ``[N]``; layers ``[N, 2 * width]``; what the head's derivative needs.

        The last layer's outputs are kept as ``[A, N]``: for so few of them that product is three times faster.
        """
        policy, width, last = self.policy, self.width, self.num_outputs
        features = rows if policy.mask_size == 0 else rows[:, : policy.input_size]
        first = torch.addmm(self.biases[0], features, _joint(self.weights[0]).t())
        hidden = [features, self._activate(first)]
        for pair, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            below, joint = hidden[-1], torch.empty_like(hidden[-1])
            torch.addmm(bias[:width], below[:, :width], pair[0].t(), out=joint[:, :width])
            torch.addmm(bias[width:], below[:, width:], pair[1].t(), out=joint[:, width:])
            hidden.append(self._activate(joint))
        bias = self.biases[-1]
        outputs = torch.mm(self.weights[-1][0], hidden[-1][:, :width].t()).add_(bias[:last].unsqueeze(1))
        values = torch.mv(hidden[-1][:, width:], self.weights[-1][1][0]).add_(bias[last])
        if policy.mask_size:
            outputs = mask_logits(outputs.t(), rows[:, policy.input_size :] > 0).t()
        if self.categorical:
            logprobs = outputs.log_softmax(0)
            # exp(-1e4) is exactly 0 in float32, and unlike exp(-inf) it may be multiplied.
            finite = logprobs if not policy.mask_size else logprobs.clamp(min=-1e4)
            entropy = -(finite.exp() * finite).sum(0)
            return finite.gather(0, actions).view(-1), entropy, values, hidden, finite
        log_std = self.head.log_std.detach().unsqueeze(1)
        standardized = (actions - outputs) * torch.exp(-log_std)
        logprobs = (-0.5 * standardized.square() - log_std - HALF_LOG_2PI).sum(0)
        entropy = (log_std.sum() + last * (HALF_LOG_2PI + 0.5)).expand(len(rows))
        return logprobs, entropy, values, hidden, standardized

    def _head_gradient(self, actions: Tensor, kept: Tensor, logprob: Tensor, entropy_weight: float) -> Tensor:
        """From ``dL/dlogp`` ``[N]`` (and ``-dL/dH``, one number) to the gradient of the outputs ``[A, N]``."""
        if self.categorical:
            probabilities = kept.exp()
            outputs = (probabilities * logprob).neg_().scatter_add_(0, actions, logprob.unsqueeze(0))
            if entropy_weight:
                gap = kept - (probabilities * kept).sum(0)
                outputs.addcmul_(probabilities, gap, value=entropy_weight)
            return outputs
        scale = torch.exp(-self.head.log_std.detach()).unsqueeze(1)
        torch.sum((kept.square() - 1.0) * logprob, 1, out=self.log_std_gradient)
        self.log_std_gradient -= entropy_weight * kept.shape[1]
        return kept * scale * logprob

    def _backward(self, hidden: list[Tensor], outputs: Tensor, values: Tensor) -> None:
        """From the gradients of outputs ``[A, N]`` and values ``[N]`` to those of all weights and biases."""
        width, last = self.width, self.num_outputs
        top, upper = hidden[-1], torch.empty_like(hidden[-1])
        actor_gradient, critic_gradient = self.weight_gradients[-1]
        torch.mm(outputs, top[:, :width], out=actor_gradient)
        torch.mv(top[:, width:].t(), values, out=critic_gradient[0])
        torch.sum(outputs, 1, out=self.bias_gradients[-1][:last])
        torch.sum(values, 0, keepdim=True, out=self.bias_gradients[-1][last:])
        torch.mm(outputs.t(), self.weights[-1][0], out=upper[:, :width])
        torch.mul(values.unsqueeze(1), self.weights[-1][1], out=upper[:, width:])
        for layer in range(len(self.weights) - 2, 0, -1):
            inner, below = self._through_activation(upper, hidden[layer + 1]), hidden[layer]
            upper = torch.empty_like(inner)
            torch.sum(inner, 0, out=self.bias_gradients[layer])
            for side, part in enumerate((slice(0, width), slice(width, None))):
                torch.mm(inner[:, part].t(), below[:, part], out=self.weight_gradients[layer][side])
                torch.mm(inner[:, part], self.weights[layer][side], out=upper[:, part])
        inner = self._through_activation(upper, hidden[1])
        torch.sum(inner, 0, out=self.bias_gradients[0])
        # Few columns: the transposed product is four times faster than the direct one.
        _joint(self.weight_gradients[0]).copy_(torch.mm(hidden[0].t(), inner).t())

    def _activate(self, inputs: Tensor) -> Tensor:
        """In place; tanh as ``2 sigmoid(2x) - 1``, which torch computes twice as fast on CPUs (to 1e-7)."""
        return inputs.relu_() if self.relu else inputs.add_(inputs).sigmoid_().mul_(2.0).sub_(1.0)

    def _through_activation(self, gradient: Tensor, activated: Tensor) -> Tensor:
        if self.relu:
            return torch.ops.aten.threshold_backward(gradient, activated, 0)
        return torch.ops.aten.tanh_backward(gradient, activated)


def _layers(flat: Tensor, order: list[Any]) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Views of ``flat`` per layer: the (actor, critic) weights, and the two biases as one vector."""
    ends = [0, *accumulate(p.numel() for p in order)]
    layers = range(0, len(order) - len(order) % 4, 4)
    views = [flat[start:end].view_as(p) for p, start, end in zip(order, ends[:-1], ends[1:], strict=True)]
    return [(views[i], views[i + 1]) for i in layers], [flat[ends[i + 2] : ends[i + 4]] for i in layers]


def _joint(pair: tuple[Tensor, Tensor]) -> Tensor:
    """The two weights of a layer, neighbors in the flat vector, as one ``[2 * width, in]`` matrix."""
    one = pair[0]
    return one.as_strided((one.shape[0] + pair[1].shape[0], one.shape[1]), one.stride())
