"""Dialogues by an engine that writes completions: each turn continues the row so far, which is in its cache."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from agents.engines.protocol import Engine, Sampling, Written
from agents.lm.dialogues import Rows
from textenvs.lm.packed_forward import pack_rows
from textenvs.tokens.end_tokens import end_tensor
from textenvs.tokens.rows import PAD

TURN_STEP = 1_000_003
"""Between the seeds of a row's turns."""


def write_dialogues(engine: Engine, prompts: Tensor, sampling: Sampling) -> Written:
    """One dialogue from each of ``prompts [B, P]``; all rows write a turn, then all are answered.

    Raises:
        ValueError: without a dialogue or seeds in ``sampling``, or for ``min_new_tokens``, which is of a whole text.
    """
    dialogue, seeds = sampling.dialogue, sampling.seeds
    if dialogue is None or seeds is None or sampling.rules.min_new_tokens:
        raise ValueError(f"expected a dialogue, seeds and min_new_tokens 0, received {sampling}")
    lengths, ends = (prompts != PAD).sum(1), end_tensor(sampling.eos_token_id, prompts.device)
    budget, width = sampling.max_new_tokens, dialogue.max_tokens - 1
    talk = Rows(dialogue, lengths, width, max_turn_tokens=budget, ends=ends, first=sampling.other_rows[0])
    logprobs, version = torch.zeros(talk.tokens.shape), torch.zeros_like(talk.tokens)
    logprobs, turn = logprobs.to(prompts.device), 0
    reasons = ["length"] * len(prompts)
    while bool((~talk.ended).any()):
        index = (~talk.ended).nonzero()[:, 0]
        own = tuple((seeds[row] + TURN_STEP * turn) % 2**31 for row in index.tolist())
        asked = replace(sampling, dialogue=None, seeds=own, max_tokens=dialogue.max_tokens)
        written = engine.generate(pack_rows(prompts[index], talk.tokens[index]), asked)
        for column in range(written.ids.shape[1]):
            here = written.ids[:, column] != PAD
            place = index[here], talk.filled[index[here]]
            logprobs[place], version[place] = written.logprobs[here, column], written.version[here, column]
            talk.append(index[here], written.ids[here, column])
        for row, reason in zip(index.tolist(), written.finish_reason, strict=True):
            reasons[row] = reason
        turn += 1
    return Written(talk.tokens, logprobs, reasons, version)
