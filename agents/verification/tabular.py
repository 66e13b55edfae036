"""Tabular policies, step by step and over whole texts: one row of logits for every state.

They can represent any policy, so in token environments with a known optimum, a remaining gap is due to the algorithm.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from agents.functional.distributions import categorical_entropy, categorical_logprob, categorical_logprobs
from agents.interfaces import Evaluation
from agents.lm.decoder import Generation
from textenvs.exact.dialogues import DialogueTask
from textenvs.tokens.rows import PAD


def draw(logits: Tensor, *, deterministic: bool, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Actions ``[B]`` of ``logits [B, A]``, sampled or the likeliest, and their log-probabilities ``[B]``, nats."""
    logprobs = categorical_logprobs(logits)
    drawn = None if deterministic else torch.multinomial(logprobs.exp(), 1, generator=generator)[:, 0]
    actions = logprobs.argmax(-1) if drawn is None else drawn
    return actions, categorical_logprob(logprobs, actions)


class TabularPolicy(nn.Module):
    """Logits ``[K + 1, A]`` and values ``[K + 1]``, looked up by the observation.

    Observations are rows of integers, in any dtype. Those that are not among ``states`` share the last row of the
    tables: a finished text, say, which comes back under ``NEXT_STEP`` autoreset and in which nothing is decided.

    Args:
        states: ``[K, L]`` integers, the observations in which an action can be chosen, each once.
        num_actions: A.
        logits: ``[K, A]`` to start from; zeros if None.

    Raises:
        ValueError: if a state occurs twice, the shapes do not belong together, or the rows are too long to be numbered.
    """

    keeps_rows = False
    weights: Tensor
    keys: Tensor
    order: Tensor

    def __init__(self, states: np.ndarray, num_actions: int, logits: np.ndarray | None = None) -> None:
        super().__init__()
        rows = torch.as_tensor(np.asarray(states)).long()
        if rows.dim() != 2 or (logits is not None and np.shape(logits) != (len(rows), num_actions)):
            raise ValueError(f"expected states [K, L] and logits [K, {num_actions}], received {tuple(rows.shape)}")
        lowest, base = int(rows.min()), int(rows.max()) - int(rows.min()) + 1
        if base ** rows.shape[1] >= 2**62:
            raise ValueError(f"rows of {rows.shape[1]} numbers out of {base} cannot be told apart by 62 bits")
        self.lowest, self.base = lowest, base
        self.register_buffer("weights", base ** torch.arange(rows.shape[1]))
        keys, order = ((rows - lowest) @ self.weights).sort()
        if bool((keys[1:] == keys[:-1]).any()):
            raise ValueError("a state is listed twice")
        self.register_buffer("keys", keys)
        self.register_buffer("order", order)
        self.logits = nn.Parameter(torch.zeros(len(rows) + 1, num_actions))
        self.value_table = nn.Parameter(torch.zeros(len(rows) + 1))
        if logits is not None:
            with torch.no_grad():
                self.logits[:-1] = torch.as_tensor(logits)

    def index(self, observations: Tensor) -> Tensor:
        """The table's row ``[...]`` of each observation ``[..., L]``."""
        offsets = observations.long() - self.lowest
        inside = ((offsets >= 0) & (offsets < self.base)).all(-1)
        keys = offsets @ self.weights
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(inside & (self.keys[place] == keys), self.order[place], len(self.keys))

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[B]`` and their log-probabilities ``[B]`` (nats)."""
        return draw(self.logits[self.index(observations)], deterministic=deterministic, generator=generator)

    def values(self, observations: Tensor) -> Tensor:
        """V of ``observations`` ``[..., L]``: ``[...]`` reward units."""
        return self.value_table[self.index(observations)]

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Evaluation:
        """Log-probabilities, entropies and values ``[B, T]`` of ``actions`` taken at ``observations`` ``[B, T, L]``."""
        index = self.index(observations)
        logprobs = categorical_logprobs(self.logits[index])
        return Evaluation(
            categorical_logprob(logprobs, actions), categorical_entropy(logprobs), self.value_table[index]
        )

    def acting(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Log-probabilities ``[N]``, nats, for the KL penalty of an environment (``KLShaping(..., acting=)``)."""
        with torch.no_grad():
            logprobs = categorical_logprobs(self.logits[self.index(torch.from_numpy(observations))])
            return categorical_logprob(logprobs, torch.from_numpy(actions)).numpy()


class TabularTextPolicy(nn.Module):
    """Logits for every prefix of every prompt, without a critic, for algorithms that compare texts rather than steps.

    Its observations are prompt and tokens so far, right-padded with PAD, as those of the environments.

    Args:
        states: ``[K, P + T]`` prompts of P tokens without padding, and the tokens so far.
        logits: ``[K, V]`` to start from.
        prompt_length: P, tokens.
        eos_token_id: the token that ends a text.
    """

    keeps_rows = True
    has_critic = False

    def __init__(self, states: np.ndarray, logits: np.ndarray, *, prompt_length: int, eos_token_id: int) -> None:
        super().__init__()
        self.table = TabularPolicy(states, logits.shape[1], logits)
        self.table.value_table.requires_grad_(False)
        self.prompt_length, self.eos_token_id, self.vocab_size = prompt_length, eos_token_id, logits.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the table."""
        return self.table.logits.device

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Evaluation:
        """Log-probabilities and entropies ``[B, T]`` of completions ``[B, T]`` of prompts ``[B, P]``; values are 0.

        Entries where ``mask`` is False are ignored.
        """
        rows = torch.cat([observations[:, : self.prompt_length], actions], dim=1)
        column = torch.arange(rows.shape[1], device=rows.device)
        step = torch.arange(actions.shape[1], device=rows.device)
        seen = torch.where(column < self.prompt_length + step[:, None], rows[:, None], PAD)
        logprobs = categorical_logprobs(self.table.logits[self.table.index(seen)])
        chosen = categorical_logprob(logprobs, actions.clamp(min=0))
        return Evaluation(chosen, categorical_entropy(logprobs), torch.zeros_like(chosen))


class TabularDialoguePolicy(nn.Module):
    """Logits and values for every state of a `DialogueTask`; states that it does not have share one more row.

    Args:
        task: locates the states in rows.
        eos_token_id: the token that ends a turn.
        has_critic: whether values are learned.
    """

    keeps_rows = True

    def __init__(self, task: DialogueTask, *, eos_token_id: int, has_critic: bool) -> None:
        super().__init__()
        self.task, self.eos_token_id, self.has_critic = task, eos_token_id, has_critic
        table = torch.nn.functional.pad(torch.tensor(task.ref_logprobs, dtype=torch.float32), (0, 0, 0, 1))
        self.logits = nn.Parameter(table)
        self.value_table = nn.Parameter(torch.zeros(len(table)), requires_grad=has_critic)
        self.vocab_size = table.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the tables."""
        return self.logits.device

    def _states(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.task.locate(rows.numpy()))

    def _at_ends(self, rows: Tensor) -> Tensor:
        return self._states(rows).gather(1, (rows != PAD).sum(1, keepdim=True))[:, 0]

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions ``[B]`` and their log-probabilities ``[B]``, nats, after rows ``[B, L]``."""
        return draw(self.logits[self._at_ends(observations)], deterministic=deterministic, generator=generator)

    def values(self, observations: Tensor) -> Tensor:
        """V after rows ``[B, L]``: ``[B]`` reward units."""
        return self.value_table[self._at_ends(observations)]

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Evaluation:
        """Log-probabilities, entropies and values ``[B, T]`` in the dialogues ``[B, P]`` and ``[B, T]``."""
        states = self._states(torch.cat([observations[:, :2], actions], dim=1))[:, 2:-1]
        logprobs = categorical_logprobs(self.logits[states])
        chosen = categorical_logprob(logprobs, actions.clamp(min=0))
        return Evaluation(chosen, categorical_entropy(logprobs), self.value_table[states])


@torch.no_grad()
def write(
    policy: TabularTextPolicy, prompts: Tensor, *, max_new_tokens: int, generator: torch.Generator | None = None
) -> Generation:
    """One completion of at most ``max_new_tokens`` a prompt ``[B, P]``, as ``agents.lm.generation.generate``."""
    rows = torch.full((len(prompts), policy.prompt_length + max_new_tokens), PAD, dtype=torch.int64)
    rows[:, : policy.prompt_length] = prompts[:, : policy.prompt_length]
    logprobs = torch.zeros(len(prompts), max_new_tokens)
    running = torch.ones(len(prompts), dtype=torch.bool)
    for step in range(max_new_tokens):
        tokens, chosen = policy.table.act(rows, generator=generator)
        rows[:, policy.prompt_length + step] = torch.where(running, tokens, PAD)
        logprobs[:, step] = torch.where(running, chosen, 0.0)
        running = running & (tokens != policy.eos_token_id)
    return Generation(rows[:, policy.prompt_length :], logprobs, torch.zeros_like(logprobs))
