"""Token environments with an exactly known optimal policy, registered as ``textenvs/Exact...-v0``.

They are `TokenVectorEnv`s in `PreferenceReward` and `KLShaping`, as for a language model; reference and score are
tables small enough for `enumeration`. The environment has its task with the optimum:

    task = gym.make_vec("textenvs/ExactSentiment-v0", num_envs=256).unwrapped.task  # or ExactSpelling, ExactRandom
    task.gap(table)  # of a policy's log-probs [M, S, V] after every prefix: 1 for the reference, 0 at the optimum
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.exact import enumeration as exact
from textenvs.factories import check_options, scalar
from textenvs.tokens.rows import PAD, Ids, Numbers
from textenvs.wrappers.interfaces import Acting
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

EOS_TOKEN = 0

MAX_NEW_TOKENS = 4

TableOrReference = exact.Array | Callable[[Ids, Ids], Numbers]
"""A table ``[M, S, V]`` of log-probs, or a reference that `exact.tabulate` converts to one."""
Score = Callable[[Ids, Ids], float]
"""``(prompt [P], completion [T'] without padding) -> reward units``."""


class ExactTask:
    """A problem with its exact solution; the scorer (`score_tokens`) and reference (a call) of the wrappers.

    Args:
        words: V readable names of the tokens; the first one ends a text.
        prompts: ``[M, P]`` token ids without padding, all equally frequent.
        reference: a table, or a callable that is tabulated, e.g. a `textenvs.wrappers.reference.CausalLMReference`.
        score: called once for each prompt and completion.
        beta: KL coefficient, reward units per nat, > 0.
        max_new_tokens: T, tokens.

    Raises:
        ValueError: prompts that are not distinct rows of token ids; else as `exact.TokenTree` and `exact.soft_optimum`.
    """

    def __init__(
        self,
        *,
        words: tuple[str, ...],
        prompts: Ids,
        reference: TableOrReference,
        score: Score,
        beta: float,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.words, self.beta = words, beta
        self.prompts = np.asarray(prompts, dtype=np.int64)
        if self.prompts.ndim != 2 or self.prompts.min() < 0 or len(np.unique(self.prompts, axis=0)) < len(prompts):
            raise ValueError(f"prompts: expected distinct rows [M, P] of token ids, no padding, received {prompts!r}")
        self.tree = exact.TokenTree.build(len(words), EOS_TOKEN, max_new_tokens)
        if callable(reference):
            reference = exact.tabulate(self.tree, self.prompts, reference)
        self.ref_logprobs = np.asarray(reference)
        rows = [row[row != PAD] for row in self.tree.completions]
        self.scores = np.array([[score(prompt, row) for row in rows] for prompt in self.prompts])
        self.optimum = exact.soft_optimum(self.tree, self.ref_logprobs, self.scores, beta)

    @cached_property
    def start(self) -> exact.Outcome:
        """Results of the reference; its KL is 0."""
        return self.outcome(self.ref_logprobs)

    @cached_property
    def best(self) -> exact.Outcome:
        """Results of the optimal policy."""
        return self.outcome(self.optimum.logprobs)

    @property
    def states(self) -> Ids:
        """``[M * S, P + T]`` every observation in which a token can be chosen, in the order of tables."""
        prompts = np.repeat(self.prompts, len(self.tree.prefixes), axis=0)
        return np.concatenate([prompts, np.tile(self.tree.prefixes, (len(self.prompts), 1))], axis=1)

    def outcome(self, logprobs: exact.Array) -> exact.Outcome:
        """Results of a policy ``[M, S, V]``."""
        return exact.outcome(self.tree, logprobs, self.ref_logprobs, self.scores, self.beta)

    def gap(self, logprobs: exact.Array) -> float:
        """The optimality gap of a policy ``[M, S, V]``, as a share of (optimum - start)."""
        attained = self.outcome(logprobs).mean_objective
        return exact.optimality_gap(attained, self.best.mean_objective, self.start.mean_objective)

    def __call__(self, prompts: Ids, completions: Ids) -> exact.Array:
        """The reference's log-probs ``[N, T]``; 0 at padding."""
        table: exact.Array = self.ref_logprobs[
            self._which(prompts)[:, None], self.tree.locate(completions), completions
        ]
        return np.where(completions == PAD, 0.0, table)

    def score_tokens(self, prompts: Ids, completions: Ids) -> exact.Array:
        """The scores ``[N]`` of finished rows."""
        states, last = self.tree.locate(completions), (completions != PAD).sum(axis=1) - 1
        rows = np.arange(len(last))
        leaves = self.tree.leaves[states[rows, last], completions[rows, last]]
        scores: exact.Array = self.scores[self._which(prompts), leaves]
        return scores

    def text(self, tokens: Ids) -> str:
        """Tokens ``[L]`` as words."""
        return " ".join(self.words[token] for token in tokens if token != PAD)

    def _which(self, prompts: Ids) -> Ids:
        """The index ``[N]`` of each prompt."""
        same = (prompts[:, None, : self.prompts.shape[1]] == self.prompts).all(axis=2)
        if not same.any(axis=1).all():
            raise ValueError(f"prompts: expected prompts of this task, received {prompts[~same.any(axis=1)][0]}")
        which: Ids = same.argmax(axis=1)
        return which


class ExactVectorEnv(TokenVectorEnv):
    """The token environment of an `ExactTask`, its attribute ``task``; see `TokenVectorEnv`."""

    def __init__(self, num_envs: int, task: ExactTask, **options: Any) -> None:
        tree, prompts = task.tree, task.prompts.tolist()
        options |= {"vocab_size": tree.vocab_size, "max_new_tokens": tree.max_new_tokens}
        super().__init__(num_envs, prompts=prompts, eos_token_id=tree.eos_token_id, **options)
        self.task = task


def spelling(beta: float = 0.2, reference: TableOrReference | None = None) -> ExactTask:
    """Spell the prompt's word: the share of its letters (and its end) in place, plus 1 / length for the whole word.

    The reference writes random letters; ``beta`` is in reward units per nat.
    """
    targets = {1: [2, 1, 4, 0], 2: [1, 0], 3: [3, 4, 4, 1], 4: [4, 2, 0]}

    def score(prompt: Ids, completion: Ids) -> float:
        target = targets[int(prompt[0])]
        hits = sum(one == other for one, other in zip(completion, target, strict=False))
        return float(hits + (completion.tolist() == target)) / len(target)

    if reference is None:
        reference = _random_logprobs((4, 85, 5), seed=1, scale=0.7)
    prompts = np.array([[1], [2], [3], [4]])
    return ExactTask(words=(".", "a", "b", "c", "d"), prompts=prompts, reference=reference, score=score, beta=beta)


SENTIMENT_WORDS = (".", "good", "bad", "very", "not", "film")
SENTIMENT_BIGRAMS = np.array(
    [  #  .   good bad very not film      after
        [20.0, 20.0, 20.0, 20.0, 10.0, 10.0],  # . (unused: it ends the text)
        [35.0, 8.0, 7.0, 10.0, 10.0, 30.0],  # good
        [35.0, 7.0, 8.0, 10.0, 10.0, 30.0],  # bad
        [2.0, 40.0, 35.0, 15.0, 3.0, 5.0],  # very
        [3.0, 35.0, 30.0, 25.0, 2.0, 5.0],  # not
        [25.0, 20.0, 25.0, 15.0, 10.0, 5.0],  # film
    ]
)
"""Percent: transition probabilities of the reference."""


def sentiment(beta: float = 0.5, reference: TableOrReference | None = None) -> ExactTask:
    """Praise in four words: +1 for "good", -1 for "bad"; a "very" before it multiplies by 1.5, a "not" by -1.

    The reference is a bigram grammar of five words; ``beta`` is in reward units per nat.
    """
    prompts = np.array([[5], [4], [3]])
    tree = exact.TokenTree.build(len(SENTIMENT_WORDS), EOS_TOKEN, MAX_NEW_TOKENS)
    lengths = (tree.prefixes != PAD).sum(axis=1)
    bigrams = np.log(SENTIMENT_BIGRAMS / SENTIMENT_BIGRAMS.sum(axis=1, keepdims=True))
    last = np.where(lengths == 0, prompts, tree.prefixes[np.arange(len(lengths)), lengths - 1])

    def score(prompt: Ids, completion: Ids) -> float:
        total, factor = 0.0, 1.0
        for token in [*prompt, *completion]:
            word = SENTIMENT_WORDS[token]
            if word in ("good", "bad"):
                total += factor if word == "good" else -factor
            factor = {"very": 1.5 * factor, "not": -factor}.get(word, 1.0)
        return total

    reference = bigrams[last] if reference is None else reference
    return ExactTask(words=SENTIMENT_WORDS, prompts=prompts, reference=reference, score=score, beta=beta)


def random(beta: float = 0.5, seed: int = 0, reference: TableOrReference | None = None) -> ExactTask:
    """Random scores of standard deviation 1 and a reference of random logits: nothing generalizes.

    Another ``seed`` is another problem; ``beta`` is in reward units per nat.
    """
    tree = exact.TokenTree.build(4, EOS_TOKEN, MAX_NEW_TOKENS)
    drawn = np.random.default_rng([seed, 2]).normal(size=(len(tree.completions), 2))
    table = {tuple(row[row != PAD]): values for row, values in zip(tree.completions, drawn, strict=True)}

    def score(prompt: Ids, completion: Ids) -> float:
        return float(table[tuple(completion)][int(prompt[0]) - 1])

    if reference is None:
        reference = _random_logprobs((2, len(tree.prefixes), 4), seed=seed, scale=1.0)
    prompts = np.array([[1], [2]])
    return ExactTask(words=(".", "x", "y", "z"), prompts=prompts, reference=reference, score=score, beta=beta)


def exact_vec(
    task: Callable[..., ExactTask],
    num_envs: int = 1,
    *,
    acting: Acting | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    shuffle: bool = True,
    group_size: int = 1,
    **parameters: Any,
) -> TokenVectorWrapper:
    """``gym.make_vec("textenvs/Exact...-v0", num_envs=N)``.

    ``task``, set by the id, builds the problem from ``parameters``: ``beta`` and ``reference``, which takes the place
    of the task's own. See `KLShaping` for ``acting``, `TokenVectorEnv` for the rest.
    """
    check_options(parameters, exact_vec, task)
    built = task(**parameters)
    envs = ExactVectorEnv(num_envs, built, autoreset_mode=autoreset_mode, shuffle=shuffle, group_size=group_size)
    return KLShaping(PreferenceReward(envs, built), built, built.beta, acting=acting)


exact_spelling_vec, exact_sentiment_vec = partial(exact_vec, spelling), partial(exact_vec, sentiment)
exact_random_vec = partial(exact_vec, random)
exact_spelling, exact_sentiment = partial(scalar, exact_spelling_vec), partial(scalar, exact_sentiment_vec)
exact_random = partial(scalar, exact_random_vec)
"""Entry points of ``gym.make_vec`` and ``gym.make``."""


def _random_logprobs(shape: tuple[int, ...], *, seed: int, scale: float) -> exact.Array:
    """Log-softmax of normal logits of standard deviation `scale`."""
    logits = np.random.default_rng(seed).normal(scale=scale, size=shape)
    logprobs: exact.Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logprobs
