"""A causal language model as the reference of KL shaping: log-probs of whole rows, and of single steps with a cache.

This module imports torch and transformers; the others of its room import them when needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from textenvs.envs.base import TokenVectorBase
from textenvs.lm.kv_cache import any_key_order
from textenvs.lm.linear_kernels import cache_keyword
from textenvs.lm.loading import load_causal_lm
from textenvs.lm.row_cache import RowCache
from textenvs.tokens.rows import PAD, Floats, Ids, Mask, concatenate
from textenvs.tokens.tokenizers import Tokenizer, load_tokenizer, same_tokenizer


class CausalLMReference:
    """Log-probs, nats, under the plain distribution of a causal LM: temperature 1, float32 log-softmax, no dropout.

    Rows are compacted to the left, so that positions do not depend on the side of the padding.

    Args:
        model: a `transformers` causal LM, or its directory or name. Loaded from safetensors only, onto ``device``.
        tokenizer: the model's, loaded with it; None skips the comparison with the environment's.
        max_logits: logits of a pass, ``rows * tokens * vocabulary``; more rows take several passes of a row or more.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        *,
        tokenizer: Tokenizer | None = None,
        device: str | torch.device = "cpu",
        max_logits: int = 2**24,
    ) -> None:
        self.model: Any = model
        if isinstance(model, str | os.PathLike):
            tokenizer = load_tokenizer(model) if tokenizer is None else tokenizer
            self.model = load_causal_lm(model)
            self.model.to(device)
        self.tokenizer = tokenizer
        self.vocab_size: int = self.model.get_output_embeddings().weight.shape[0]
        self.max_positions: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self._max_logits, self._cache_keyword = max_logits, cache_keyword(self.model)
        self._cache = RowCache(0, 0)
        self._cached = np.zeros((0, 0), dtype=np.int64)

    def check_fits(self, envs: TokenVectorBase) -> None:
        """Check that the model can score every row of `envs`.

        Raises:
            ValueError: another tokenizer, a smaller vocabulary, or fewer positions than the longest prompt and the
                budget need; the message names the prompt's place.
        """
        tokenizers = (self.tokenizer, envs.tokenizer)
        if None not in tokenizers and not same_tokenizer(*tokenizers):
            raise ValueError("reference: expected the environment's tokenizer, received another one")
        if self.vocab_size < envs.vocab_size:
            raise ValueError(f"reference: expected a vocabulary of {envs.vocab_size}, received {self.vocab_size}")
        longest, place, what = envs.longest_row
        if self.max_positions is not None and longest > self.max_positions:
            raise ValueError(
                f"{place}: expected at most {self.max_positions} tokens, the reference's positions, received {what}"
            )

    @torch.no_grad()
    def __call__(self, prompts: Ids, completions: Ids) -> Floats:
        """Log-probs ``[N, T]`` of the tokens of finished rows, 0 at padding, in batched passes.

        ``prompts [N, P]``, of at least one token each, and ``completions [N, T]`` are padded with PAD on any side.
        """
        mask = completions != PAD
        logprobs = np.zeros(completions.shape, dtype=np.float32)
        first, counts = (prompts != PAD).sum(axis=1), mask.sum(axis=1)
        for part in self._passes(first, first + counts):
            found = np.zeros((len(part), completions.shape[1]), dtype=np.float32)
            found[mask[part]] = self._score(prompts[part], completions[part])
            logprobs[part] = found
        return logprobs

    def _passes(self, first: Ids, end: Ids) -> Iterator[Ids]:
        """Rows of each pass, whose logits from the least ``first [N]`` to the largest ``end [N]`` fit, or one row."""
        order = np.argsort(first, kind="stable")
        start = 0
        while start < len(order):
            columns = np.maximum.accumulate(end[order[start:]]) - first[order[start]]
            logits = np.arange(1, len(columns) + 1) * np.maximum(columns, 1) * self.vocab_size
            rows = max(1, int((logits <= self._max_logits).sum()))
            yield order[start : start + rows]
            start += rows

    def _score(self, prompts: Ids, completions: Ids) -> Floats:
        """Log-probs of all tokens of the completions, row after row ``[number of tokens]``."""
        prompt_lengths, counts = (prompts != PAD).sum(axis=1), (completions != PAD).sum(axis=1)
        width, first = int((prompt_lengths + counts).max()), int(prompt_lengths.min())
        rows = concatenate(prompts, completions)[:, :width]
        tokens = self._tensor(rows)
        logits = self._model()(
            input_ids=tokens.clamp(min=0),
            attention_mask=(tokens != PAD).long(),
            use_cache=False,
            logits_to_keep=torch.arange(first - 1, width - 1, device=tokens.device),
        ).logits.float()
        chosen = tokens[:, first:].clamp(min=0)
        logprobs = logits.gather(2, chosen[:, :, None])[:, :, 0] - logits.logsumexp(dim=2)
        places = np.arange(first, width)[None, :]
        completion = (places >= prompt_lengths[:, None]) & (places < (prompt_lengths + counts)[:, None])
        return logprobs.cpu().numpy()[completion]

    @torch.no_grad()
    def step(self, tokens: Ids, lengths: Ids, actions: Ids, running: Mask) -> Floats:
        """Log-probs ``[N]`` of one more token in each row; 0 where not `running`.

        Keys and values of earlier tokens are cached, a row for each sub-environment. A row that does not extend the
        last step's by one token (a new episode, for instance) is encoded from its beginning; so is every row in each
        step of a model that depends on the order of its keys (see `textenvs.lm.kv_cache`). ``tokens [N, L]``, of
        ``lengths [N]``, are right-padded; ``actions [N]`` come next where ``running [N]``.
        """
        if not any_key_order(self.model):
            return self._step_without_cache(tokens, lengths, actions, running)
        if self._cached.shape != tokens.shape:
            self._cache = RowCache(*tokens.shape)
            self._cached = np.full(tokens.shape, PAD, dtype=np.int64)
        before = np.where(np.arange(tokens.shape[1]) < lengths[:, None] - 1, tokens, PAD)
        known = running & (lengths > 1) & (before == self._cached).all(axis=1)
        logits = torch.zeros(len(tokens), self.vocab_size, device=self.model.device)
        if known.any():
            positions = np.where(known, lengths - 1, 0)[:, None]
            self._cache.append(None, self._tensor(positions), int(lengths[known].max()))
            newest = tokens[np.arange(len(tokens)), np.where(known, lengths - 1, 0)]
            logits = self._read(np.maximum(newest, 0)[:, None], np.zeros_like(lengths))
        fresh = np.flatnonzero(running & ~known)
        if fresh.size:
            for part in (fresh[rows] for rows in self._passes(lengths[fresh] - 1, lengths[fresh])):
                width = int(lengths[part].max())
                positions, rows = np.tile(np.arange(width), (len(part), 1)), tokens[part, :width]
                self._cache.append(self._tensor(part), self._tensor(positions), width)
                logits[self._tensor(part)] = self._read(np.maximum(rows, 0), lengths[part] - 1)
        self._cached = np.where(running[:, None] & (np.arange(tokens.shape[1]) < lengths[:, None]), tokens, PAD)
        chosen = logits.gather(1, self._tensor(np.where(running, actions, 0))[:, None])[:, 0]
        return np.where(running, (chosen - logits.logsumexp(dim=1)).cpu().numpy(), np.float32(0))

    def _step_without_cache(self, tokens: Ids, lengths: Ids, actions: Ids, running: Mask) -> Floats:
        logprobs = np.zeros(len(tokens), dtype=np.float32)
        if running.any():
            lengths = lengths[running]
            before = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens[running], PAD)
            rows, common = concatenate(before, actions[running, None]), lengths.min()
            logprobs[running] = self(rows[:, :common], rows[:, common:])[np.arange(len(rows)), lengths - common]
        return logprobs

    def _read(self, tokens: Ids, last: Ids) -> Tensor:
        """Float32 logits ``[n, V]`` after column `last` ``[n]`` of ``tokens [n, S]``."""
        kept = np.unique(last)
        logits = self._model()(
            input_ids=self._tensor(tokens),
            attention_mask=self._additive(self._cache.mask),
            position_ids=self._cache.position_ids,
            use_cache=True,
            logits_to_keep=self._tensor(kept),
            **{self._cache_keyword: self._cache},
        ).logits
        return logits[self._tensor(np.arange(len(tokens))), self._tensor(np.searchsorted(kept, last))].float()

    def _additive(self, allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=self.model.dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(self.model.dtype).min)

    def _model(self) -> Any:
        if self.model.training:
            self.model.eval()
        return self.model

    def _tensor(self, array: Ids) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)
