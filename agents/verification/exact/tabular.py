"""Tabular policies, step by step, over whole texts and over dialogues: one row of logits for every state.

They can represent any policy, so in token environments with a known optimum, a remaining gap is due to the algorithm.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from agents.functional.distributions import categorical_entropy, categorical_logprob, categorical_logprobs
from agents.interfaces import Evaluation
from textenvs.exact.dialogues import DialogueTask
from textenvs.tokens.rows import PAD


class Table(nn.Module):
    """``logits [K, A]`` and values, and a row more, which is shared by all that is none of the K states."""

    keeps_rows = False

    def __init__(self, logits: ArrayLike) -> None:
        super().__init__()
        table = nn.functional.pad(torch.tensor(logits, dtype=torch.float32), (0, 0, 0, 1))
        self.logits, self.value_table = nn.Parameter(table), nn.Parameter(torch.zeros(len(table)))

    @property
    def device(self) -> torch.device:
        """Device of the tables."""
        return self.logits.device

    def index(self, observations: Tensor) -> Tensor:
        """The table's row ``[...]`` of each observation ``[..., L]``."""
        raise NotImplementedError

    def states(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The table's rows ``[B, T]`` in which ``actions [B, T]`` were taken."""
        return self.index(observations)

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[B]``, sampled or the likeliest, and their log-probabilities ``[B]`` (nats)."""
        logprobs = categorical_logprobs(self.logits[self.index(observations)])
        drawn = None if deterministic else torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0]
        actions = logprobs.argmax(-1) if drawn is None else drawn
        return actions, categorical_logprob(logprobs, actions)

    def values(self, observations: Tensor) -> Tensor:
        """V of ``observations`` ``[..., L]``: ``[...]`` reward units."""
        return self.value_table[self.index(observations)]

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Evaluation:
        """Log-probabilities, entropies and values ``[B, T]``; entries where ``mask`` is False are ignored."""
        states = self.states(observations, actions)
        logprobs = categorical_logprobs(self.logits[states])
        chosen = categorical_logprob(logprobs, actions.clamp(min=0))
        return Evaluation(chosen, categorical_entropy(logprobs), self.value_table[states])


class TabularPolicy(Table):
    """A table that is looked up by the observation: rows of integers, in any dtype.

    Those that are not among ``states`` share the last row: a finished text, say, which comes back under ``NEXT_STEP``
    autoreset and in which nothing is decided.

    Args:
        states: ``[K, L]`` integers, the observations in which an action can be chosen, each once.
        num_actions: A.
        logits: ``[K, A]`` to start from; zeros if None.

    Raises:
        ValueError: if a state occurs twice, the shapes do not belong together, or the rows are too long to be numbered.
    """

    weights: Tensor
    keys: Tensor
    order: Tensor

    def __init__(self, states: np.ndarray, num_actions: int, logits: np.ndarray | None = None) -> None:
        rows = torch.as_tensor(np.asarray(states)).long()
        if rows.dim() != 2 or (logits is not None and np.shape(logits) != (len(rows), num_actions)):
            raise ValueError(f"expected states [K, L] and logits [K, {num_actions}], received {tuple(rows.shape)}")
        super().__init__(np.zeros((len(rows), num_actions)) if logits is None else logits)
        self.lowest, self.base = int(rows.min()), int(rows.max()) - int(rows.min()) + 1
        if self.base ** rows.shape[1] >= 2**62:
            raise ValueError(f"rows of {rows.shape[1]} numbers out of {self.base} cannot be told apart by 62 bits")
        self.register_buffer("weights", self.base ** torch.arange(rows.shape[1]))
        keys, order = ((rows - self.lowest) @ self.weights).sort()
        if bool((keys[1:] == keys[:-1]).any()):
            raise ValueError("a state is listed twice")
        self.register_buffer("keys", keys)
        self.register_buffer("order", order)

    def index(self, observations: Tensor) -> Tensor:
        """The table's row ``[...]`` of each observation ``[..., L]``."""
        offsets = observations.long() - self.lowest
        inside = ((offsets >= 0) & (offsets < self.base)).all(-1)
        keys = offsets @ self.weights
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(inside & (self.keys[place] == keys), self.order[place], len(self.keys))

    def acting(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Log-probabilities ``[N]``, nats, for the KL penalty of an environment (``KLShaping(..., acting=)``)."""
        with torch.no_grad():
            return self.evaluate(torch.from_numpy(observations), torch.from_numpy(actions)).logprobs.numpy()


class TabularTextPolicy(TabularPolicy):
    """Logits for every prefix of every prompt, without a critic, for algorithms that compare texts rather than steps.

    Args:
        states: ``[K, P + T]`` prompts of P tokens without padding, and the tokens so far, right-padded with PAD.
        logits: ``[K, V]`` to start from.
        prompt_length: P, tokens.
        eos_token_id: the token that ends a text.
    """

    keeps_rows = True
    has_critic = False

    def __init__(self, states: np.ndarray, logits: np.ndarray, *, prompt_length: int, eos_token_id: int) -> None:
        super().__init__(states, logits.shape[1], logits)
        self.value_table.requires_grad_(False)
        self.prompt_length, self.eos_token_id, self.vocab_size = prompt_length, eos_token_id, logits.shape[1]

    def states(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Of the prefixes ``[B, T]`` of completions ``[B, T]`` after prompts ``[B, P]``."""
        rows = torch.cat([observations[:, : self.prompt_length], actions], dim=1)
        column, step = (torch.arange(part.shape[1], device=rows.device) for part in (rows, actions))
        return self.index(torch.where(column < self.prompt_length + step[:, None], rows[:, None], PAD))


class TabularDialoguePolicy(Table):
    """Logits and values for every state of a `DialogueTask`, as the reference at first.

    ``eos_token_id`` ends a turn; ``has_critic`` is whether values are learned.
    """

    keeps_rows = True

    def __init__(self, task: DialogueTask, *, eos_token_id: int, has_critic: bool) -> None:
        super().__init__(task.ref_logprobs)
        self.value_table.requires_grad_(has_critic)
        self.task, self.eos_token_id, self.has_critic = task, eos_token_id, has_critic
        self.vocab_size = self.logits.shape[1]

    def index(self, observations: Tensor) -> Tensor:
        """The table's row ``[B]`` after each of the rows ``[B, L]``."""
        return self._located(observations).gather(1, (observations != PAD).sum(1, keepdim=True))[:, 0]

    def states(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Of the states ``[B, T]`` in the dialogues that begin with ``[B, P]`` and go on with ``[B, T]``."""
        return self._located(torch.cat([observations[:, :2], actions], dim=1))[:, 2:-1]

    def _located(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.task.locate(rows.numpy()))
