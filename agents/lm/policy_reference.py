"""A frozen policy as the reference of KL shaping, with its packed forward pass and its adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agents.lm.causal_lm import CausalLMPolicy
from textenvs.envs.base import TokenVectorBase
from textenvs.wrappers.reference import CausalLMReference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PolicyReference:
    """Log-probs, nats, of ``policy``, frozen and at temperature 1; a `textenvs.wrappers.interfaces.Reference`.

    Logits are computed at the tokens of completions only.
    """

    def __init__(self, policy: CausalLMPolicy, tokenizer: PreTrainedTokenizerBase) -> None:
        self.policy, self.tokenizer = policy, tokenizer
        self._stepwise = CausalLMReference(policy.model, tokenizer=tokenizer)

    @property
    def model(self) -> PreTrainedModel:
        """The policy's model."""
        model: PreTrainedModel = self.policy.model
        return model

    def check_fits(self, envs: TokenVectorBase) -> None:
        """Raise ValueError unless the model can read every row of ``envs``; see `CausalLMReference.check_fits`."""
        self._stepwise.check_fits(envs)

    def __call__(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probs ``[N, T]``, nats, 0 at padding; see `CausalLMReference`."""
        device = self.policy.device
        rows = (torch.as_tensor(part).to(device) for part in (prompts, completions))
        return self.policy.completion_logprobs(*rows).cpu().numpy()

    def step(
        self,
        tokens: NDArray[np.int64],
        lengths: NDArray[np.int64],
        actions: NDArray[np.int64],
        running: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Log-probs ``[N]``, nats, of one more token in each row; see `CausalLMReference.step`."""
        with self.policy.forward_context():
            return self._stepwise.step(tokens, lengths, actions, running)


def check_apart(policy: nn.Module, reference: object) -> None:
    """Raise ValueError if training ``policy`` changes the model of ``reference``."""
    if isinstance(reference, CausalLMReference):
        trained = {id(each) for each in policy.parameters() if each.requires_grad}
        if any(id(each) in trained for each in reference.model.parameters()):
            raise ValueError(
                "policy: expected another model than the environment's reference, received the same object, which "
                "would keep the KL at 0: pass a copy.deepcopy of it"
            )
