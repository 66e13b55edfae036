"""The exact KL along texts that a policy wrote: in each state a sum over the vocabulary, not one sample a token."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from agents.evaluation.samples import Samples
from agents.lm.causal_lm import CausalLMPolicy

ROWS_AT_ONCE = 64
"""Texts in one pass."""


@torch.no_grad()
def kl_along(policy: CausalLMPolicy, reference: CausalLMPolicy, samples: Samples) -> NDArray[np.float32]:
    """KL(policy || reference) ``[N, T]``, nats, in each state of ``samples``, which ``policy`` wrote; 0 at padding.

    KL_t = sum_a pi(a | s_t) (log pi(a | s_t) - log pi_ref(a | s_t))
    """
    found = []
    for start in range(0, len(samples.prompts), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        rows = (torch.as_tensor(of[part]).to(policy.device) for of in (samples.prompts, samples.completions))
        kl = policy.evaluate(*rows, reference=reference).kl
        assert kl is not None
        found.append(kl.cpu().numpy())
    return np.concatenate(found)
