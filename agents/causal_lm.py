"""A causal language model of transformers as a policy: one forward pass judges all tokens of a row.

State: prompt and completion so far. Action: the next token id. The value head sits on the policy's own trunk
(``critic="shared"``) or on a copy of it (``critic="separate"``). Generation with a cache is in ``agents.generation``.

Rows are packed before they meet the model: prompt and completion without a hole between them, padding to the right. In
a causal model nothing real sees what is to its right, so padding needs no attention mask and cannot matter.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agents.policy import Evaluation
from agents.token_distribution import TokenSampling, sample_tokens, token_logprobs
from textenvs.rows import PAD

LOGITS_AT_ONCE = 2**26
"""Entries of a logits array above which it is computed in pieces and again in the backward pass (256 MB of float32)."""


class CausalLMPolicy(nn.Module):
    """A causal LM with a scalar value head; every model inside stays in evaluation mode, so dropout is off.

    Args:
        model: any ``transformers`` causal LM whose logits are its output embedding of its trunk's last hidden state.
        eos_token_id: the token that ends a completion; "model" takes the model's own, None: only the budget ends one.
        critic: "shared", the value head reads the policy's trunk; "separate", it reads a copy that is trained apart.
        sampling: how logits become the distribution that acts.

    Raises:
        ValueError: for an unknown ``critic``, a model without end-of-text token, or one that treats its logits further
            (soft caps, scaling), which would go unseen here.
    """

    keeps_rows = True

    def __init__(
        self,
        model: Any,
        *,
        eos_token_id: int | str | None = "model",
        critic: str = "shared",
        sampling: TokenSampling | None = None,
    ) -> None:
        super().__init__()
        if critic not in ("shared", "separate"):
            raise ValueError(f'critic must be "shared" or "separate", got {critic!r}')
        self.model = model
        self.critic = critic
        self.sampling = TokenSampling() if sampling is None else sampling
        self.eos_token_id: int | None = _end_of_text(model) if isinstance(eos_token_id, str) else eos_token_id
        head = model.get_output_embeddings()
        self.vocab_size = int(head.weight.shape[0])
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is not in the vocabulary [0, {self.vocab_size})")
        _fuse_activations(model)
        self.critic_trunk = copy.deepcopy(model.base_model) if critic == "separate" else None
        self.value_head = nn.Linear(int(head.weight.shape[1]), 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_head.to(device=head.weight.device)
        self.eval()
        self._check_head()

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> CausalLMPolicy:
        """The policy that starts as the model at ``path`` (directory or name); ``options`` as in the constructor."""
        from transformers import AutoModelForCausalLM

        return cls(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), **options)

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Always evaluation mode: dropout would make the policy that is trained another one than the one that acted."""
        return super().train(False)

    @property
    def max_positions(self) -> int | None:
        """Longest row in tokens that the model has positions for; None if it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.weight.device

    def evaluate(self, observations: Tensor, actions: Tensor, mask: Tensor | None = None) -> Evaluation:
        """Log-probabilities, entropies and values of all tokens of a row in one forward pass, with gradient.

        Args:
            observations: ``[B, P]`` prompts, right-padded with PAD.
            actions: ``[B, T]`` completions, right-padded with PAD.
            mask: ``[B, T]`` True on tokens that count; None: where ``actions`` is not PAD.

        Returns:
            ``[B, T]`` each, 0 where ``mask`` is False.
        """
        mask = actions != PAD if mask is None else mask
        steps = mask.long().cumsum(1)[mask] - 1
        tokens = actions[mask]
        hidden, critic_hidden = self._hidden_at_decisions(observations, actions.masked_fill(~mask, PAD), mask)
        logprobs, entropy = self._judge_tokens(hidden, tokens, steps)
        values = self.value_head(critic_hidden.to(self.value_head.weight.dtype))[:, 0].float()

        def spread(flat: Tensor) -> Tensor:
            return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)

        return Evaluation(spread(logprobs), spread(entropy), spread(values))

    @torch.no_grad()
    def act(
        self, observations: Tensor, *, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """One token for each state, and its log-probability.

        Args:
            observations: ``[B, L]`` prompt and tokens so far, right-padded with PAD.
            deterministic: take the likeliest token.
            generator: of the draws; one uniform number a row.

        Raises:
            ValueError: if the policy has ``min_new_tokens``: the state does not tell prompt from completion, so the
                distribution is not known here. Use ``agents.generation.generate``.
        """
        if self.sampling.min_new_tokens > 0:
            raise ValueError("min_new_tokens needs to know where the completion began: generate whole rows instead")
        hidden = self._last_hidden(self.model.base_model, observations)
        logits = self.sampling.shape(self.head_logits(hidden), 0, self.eos_token_id)
        noise = None if deterministic else uniform(observations.shape[0], generator, logits.device)
        return sample_tokens(logits, noise)

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """V of each state: ``[B, L]`` right-padded with PAD to ``[B]``, reward units."""
        trunk = self.model.base_model if self.critic_trunk is None else self.critic_trunk
        return self.value_of(self._last_hidden(trunk, observations))

    def value_of(self, hidden: Tensor) -> Tensor:
        """The value head on ``[N, D]`` hidden states of the critic's trunk: ``[N]``."""
        return self.value_head(hidden.to(self.value_head.weight.dtype))[:, 0].float()

    def head_logits(self, hidden: Tensor) -> Tensor:
        """The model's next-token logits of ``[N, D]`` hidden states: ``[N, V]``, unshaped."""
        return self.model.get_output_embeddings()(hidden)

    def critic_parameters(self) -> list[nn.Parameter]:
        """What only the value depends on: the head, and the critic's own trunk if it has one."""
        trunk = [] if self.critic_trunk is None else list(self.critic_trunk.parameters())
        return [*trunk, *self.value_head.parameters()]

    def _hidden_at_decisions(self, prompts: Tensor, completions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the states that were acted in, ``[N, D]`` in row order: the policy's and the critic's."""
        rows = pack_rows(prompts, completions)
        prompt_lengths = (prompts != PAD).sum(1)
        # The state before token t is read at the position of token t - 1; the last token is never an input.
        where = (prompt_lengths[:, None] - 1 + torch.arange(mask.shape[1], device=mask.device))[mask]
        row = torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask)[mask]
        if bool((where < 0).any()):
            raise ValueError("a prompt is empty: there is no state before the first token; begin prompts with a token")
        lengths = (rows != PAD).sum(1) - 1
        flat_policy = self._hidden(self.model.base_model, rows[:, :-1], lengths)
        policy = flat_policy(row, where)
        if self.critic_trunk is None:
            return policy, policy
        return policy, self._hidden(self.critic_trunk, rows[:, :-1], lengths)(row, where)

    def _hidden(self, trunk: Any, rows: Tensor, lengths: Tensor):  # type: ignore[no-untyped-def]
        """Run ``trunk`` over ``rows``, rows of like length together, each part cut to its longest row.

        Returns a function ``(row [N], position [N]) -> [N, D]``.
        """
        order, parts = _length_parts(lengths)
        starts = torch.empty_like(lengths)
        flat, offset = [], 0
        for begin, end, width in parts:
            index = order[begin:end]
            hidden = trunk_forward(trunk, rows[index, :width].clamp(min=0))
            starts[index] = offset + width * torch.arange(end - begin, device=lengths.device)
            flat.append(hidden.flatten(0, 1))
            offset += width * (end - begin)
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        return lambda row, position: joined.index_select(0, starts[row] + position)

    def _judge_tokens(self, hidden: Tensor, tokens: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """``(logprobs [N], entropy [N])``; in pieces that are computed again backward if the logits would be large."""

        def judge(hidden: Tensor, tokens: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.sampling.shape(self.head_logits(hidden), steps, self.eos_token_id, taken=tokens)
            return token_logprobs(logits, tokens)

        piece = max(1, LOGITS_AT_ONCE // self.vocab_size)
        if hidden.shape[0] <= piece:
            return judge(hidden, tokens, steps)
        parts = zip(hidden.split(piece), tokens.split(piece), steps.split(piece), strict=True)
        judged = [checkpoint(judge, *part, use_reentrant=False) for part in parts]
        return torch.cat([part[0] for part in judged]), torch.cat([part[1] for part in judged])

    def _last_hidden(self, trunk: Any, observations: Tensor) -> Tensor:
        """Hidden state at the last real token of ``[B, L]`` right-padded rows: ``[B, D]``."""
        lengths = (observations != PAD).sum(1)
        if bool((lengths == 0).any()):
            raise ValueError("an observation holds no token: begin prompts with a token")
        hidden = trunk_forward(trunk, observations[:, : int(lengths.max())].clamp(min=0))
        return hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]

    @torch.no_grad()
    def _check_head(self) -> None:
        tokens = torch.arange(min(4, self.vocab_size), device=self.device)[None]
        ours = self.head_logits(trunk_forward(self.model.base_model, tokens)[0])
        theirs = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"{type(self.model).__name__} does more with its logits than its output embedding (a soft cap or a "
                "scale); CausalLMPolicy would log other probabilities than the model has"
            )


def trunk_forward(trunk: Any, tokens: Tensor) -> Tensor:
    """Last hidden states ``[B, W, D]`` of packed rows ``[B, W]``; what lies right of a row's end does not matter."""
    return trunk(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).last_hidden_state


def pack_rows(prompts: Tensor, completions: Tensor) -> Tensor:
    """``[B, W]`` prompt and completion without a hole between them, right-padded with PAD, as wide as the longest."""
    joint = torch.cat([prompts, completions], dim=1)
    real = joint != PAD
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
    return joint.gather(1, order)[:, : int(real.sum(1).max())]


def uniform(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """``[count]`` numbers in [0, 1), drawn where the generator lives, so a CPU seed means the same on every device."""
    return torch.rand(count, generator=generator, device=None if generator is None else generator.device).to(device)


PART_OVERHEAD = 512
"""What one more forward pass costs, in positions of a small model (measured on a CPU: 4 layers of width 192)."""


def _length_parts(lengths: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Cut rows into parts of like length so that padding plus passes cost least (dynamic programme over lengths).

    Returns:
        ``order [B]``, the rows by length, and ``(begin, end, width)`` of each part in that order.
    """
    order = lengths.argsort(stable=True)
    ranked = lengths[order].tolist()
    borders = [i for i in range(1, len(ranked)) if ranked[i] != ranked[i - 1]] + [len(ranked)]
    cost, came_from = [0.0], [0]
    for j, end in enumerate(borders):
        begins = [0, *borders[:j]]
        options = [cost[i] + (end - begin) * ranked[end - 1] + PART_OVERHEAD for i, begin in enumerate(begins)]
        best = min(range(len(options)), key=options.__getitem__)
        cost.append(options[best])
        came_from.append(best)
    parts, j = [], len(borders)
    while j > 0:
        i = came_from[j]
        end = borders[j - 1]
        parts.append((borders[i - 1] if i > 0 else 0, end, max(1, ranked[end - 1])))
        j = i
    return order, parts[::-1]


def _end_of_text(model: Any) -> int:
    eos = model.config.eos_token_id
    if isinstance(eos, (list, tuple)):
        eos = eos[0] if eos else None
    if eos is None:
        raise ValueError(f"{type(model).__name__} names no end-of-text token; pass eos_token_id (None: there is none)")
    return int(eos)


def _fuse_activations(model: nn.Module) -> None:
    """GPT-2's GELU, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in one kernel instead of eight."""
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
