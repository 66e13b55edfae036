"""A small GPT-2 that has seen random play: it knows the form of a game before it is trained on the game's reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decoder import Generation
from agents.lm.dialogues import Dialogue, Rows
from agents.text.collector import TextCollector
from textenvs.lm.packed_forward import pack_rows
from textenvs.tokens.rows import PAD


def word_tokenizer(words: Sequence[str], **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of ``words`` between blanks; the first is the unknown one and ends a turn, unless ``options`` say."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    options = {"eos_token": words[0], "unk_token": words[0]} | options
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=options["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **options)


def taught(
    envs: Any, choose: Callable[[Tensor], Tensor], seed: int, *,
    critic: str, positions: int = 192, minibatch_size: int = 32, answers: bool = False,
) -> CausalLMPolicy:  # fmt: skip
    """A GPT-2 of 2 layers by 64 that has learned from 12 times the games of ``envs``, played by `at_random`.

    With ``answers`` from whole rows, what the environment writes included.
    """
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": envs.vocab_size, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=positions, bos_token_id=0, eos_token_id=0))
    policy = CausalLMPolicy(model, critic=critic)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    collector = TextCollector(envs, seed=seed, generate=partial(at_random, choose))
    for _ in range(12):
        rollout, _ = collector.collect(policy)
        rows = pack_rows(rollout.observations, rollout.actions)
        for part in torch.randperm(envs.num_envs).split(minibatch_size):
            mask = rows[part] != PAD if answers else rollout.mask[part]
            if answers:
                mask[:, 0] = False  # nothing precedes it
                logprobs = policy.row_logprobs(rows[part], mask)
            else:
                logprobs = policy.evaluate(rollout.observations[part], rollout.actions[part], mask).logprobs[mask]
            optimizer.zero_grad()
            (-logprobs.mean()).backward()
            optimizer.step()
    return policy


def at_random(
    choose: Callable[[Tensor], Tensor], policy: object, prompts: Tensor, *, dialogue: Dialogue, **options: Any
) -> Generation:
    """A token that ``choose`` takes for each row ``[K, L]``, and the end of the turn, again and again.

    Arguments as ``agents.lm.generation.generate``.
    """
    lengths = (prompts != PAD).sum(1)
    rows = Rows(dialogue, lengths, dialogue.max_tokens - 1, max_turn_tokens=2, ends=torch.tensor([0]))
    while not bool(rows.ended.all()):
        running = (~rows.ended).nonzero()[:, 0]
        chosen = choose(pack_rows(prompts[running], rows.tokens[running]))
        rows.append(running, torch.where(rows.in_turn[running] > 0, 0, chosen))
    nothing = torch.zeros(rows.tokens.shape)
    return Generation(rows.tokens, nothing, nothing)
