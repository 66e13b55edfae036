"""The project's own decoder as an engine, in this process: by the policy itself, or by a copy of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.engines.protocol import Sampling, Written
from agents.lm.decoder import Generation
from textenvs.tokens.end_tokens import is_end
from textenvs.tokens.rows import PAD


class LocalEngine:
    """Writes by ``policy``, any that ``generate`` takes; its weights, of ``version``, are written over by ``update``.

    ``generate`` is ``agents.lm.generation.generate`` or a function with its arguments.
    """

    local, adapter_only = True, False

    def __init__(self, policy: Any, generate: Callable[..., Generation], version: int = 0) -> None:
        self.policy, self._generate, self.version = policy, generate, version

    def generate(self, prompts: Tensor, sampling: Sampling) -> Written:
        """See `Engine`; the policy's own ``sampling`` and end of text hold."""
        options: dict[str, Any] = {"max_concurrent_rows": sampling.max_concurrent_rows, "dialogue": sampling.dialogue}
        options = {name: value for name, value in options.items() if value is not None}
        if sampling.other_rows != (0, 0):
            options["other_rows"] = sampling.other_rows
        if sampling.greedy:
            options["deterministic"] = True
        found = self._generate(
            self.policy, prompts, max_new_tokens=sampling.max_new_tokens, generator=sampling.generator, **options
        )
        ids = found.completions.cpu().numpy()
        last = ids[np.arange(len(ids)), (ids != PAD).sum(1) - 1]
        reasons = np.where(is_end(last, self.policy.eos_token_id), "stop", "length").tolist()
        version = torch.full_like(found.completions, self.version)
        return Written(found.completions, found.logprobs, reasons, version, found.values)

    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine`."""
        self.policy.load_state_dict(dict(named_tensors))
        self.version = version

    def close(self) -> None:
        """Nothing is held."""
