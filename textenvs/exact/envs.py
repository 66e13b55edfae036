"""Token environments whose best policy is known exactly, registered as ``textenvs/Exact...-v0``.

They are `TokenVectorEnv`s with `PreferenceReward` and `KLShaping` around them, the same path that a language model
takes; only reference and score are tables, small enough for `exact` to enumerate. The environment knows its optimum:

    envs = gym.make_vec("textenvs/ExactSentiment-v0", num_envs=256)
    task = envs.unwrapped.task
    task.gap(table)  # of a policy's log-probs [M, S, V] after every prefix: 1 for the reference, 0 at the optimum

| id                         | to learn                                                                            |
|----------------------------|-------------------------------------------------------------------------------------|
| textenvs/ExactSpelling-v0  | one word a prompt, against a reference of random letters                            |
| textenvs/ExactSentiment-v0 | praise, in a language of five words with a bigram grammar; "not" turns what follows |
| textenvs/ExactRandom-v0    | scores and reference drawn at random for every completion: nothing generalizes      |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textenvs.envs.scalar import TokenEnv
from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.exact import enumeration as exact
from textenvs.tokens.rows import PAD
from textenvs.wrappers.interfaces import Acting
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

EOS_TOKEN = 0

Reference = exact.Array | Callable[[NDArray[np.int64], NDArray[np.int64]], Any]
"""A table ``[M, S, V]`` of log-probs, or a callable that `exact.tabulate` makes into one."""


class ExactTask:
    """Prompts, reference, scores and the KL's price, with all that follows from them by enumeration.

    It serves as scorer (`score_tokens`) and as reference (a call) of the wrappers.

    Args:
        words: V of them, for people to read; the first one ends a text.
        prompts: ``[M, P]`` token ids without padding; each drawn as often as the others.
        max_new_tokens: T, tokens.
        reference: a table, or a callable that is tabulated, e.g. a `textenvs.wrappers.reference.CausalLMReference`.
        score: ``(prompt [P], completion [T'] without padding) -> reward units``; asked once for each.
        beta: price of the KL, reward units per nat, > 0.

    Raises:
        ValueError: prompts that are not distinct rows of token ids; else as `exact.TokenTree` and `exact.soft_optimum`.
    """

    def __init__(
        self,
        *,
        words: tuple[str, ...],
        prompts: NDArray[np.int64],
        max_new_tokens: int,
        reference: Reference,
        score: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
        beta: float,
    ) -> None:
        self.words = words
        self.prompts = np.asarray(prompts, dtype=np.int64)
        if self.prompts.ndim != 2 or self.prompts.min() < 0 or len(np.unique(self.prompts, axis=0)) < len(prompts):
            raise ValueError(f"prompts must be distinct rows [M, P] of token ids without padding, received {prompts!r}")
        self.tree = exact.TokenTree.build(len(words), EOS_TOKEN, max_new_tokens)
        self.beta = beta
        self.ref_logprobs = (
            exact.tabulate(self.tree, self.prompts, reference) if callable(reference) else np.asarray(reference)
        )
        self.scores = np.array(
            [[score(prompt, row[row != PAD]) for row in self.tree.completions] for prompt in self.prompts]
        )
        self.optimum = exact.soft_optimum(self.tree, self.ref_logprobs, self.scores, beta)

    @cached_property
    def start(self) -> exact.Outcome:
        """What the reference attains; its KL is 0."""
        return self.outcome(self.ref_logprobs)

    @cached_property
    def best(self) -> exact.Outcome:
        """What the optimal policy attains."""
        return self.outcome(self.optimum.logprobs)

    @property
    def states(self) -> NDArray[np.int64]:
        """``[M * S, P + T]`` every observation in which a token can be chosen; prompt after prompt, as tables are."""
        prompts = np.repeat(self.prompts, len(self.tree.prefixes), axis=0)
        return np.concatenate([prompts, np.tile(self.tree.prefixes, (len(self.prompts), 1))], axis=1)

    def outcome(self, logprobs: exact.Array) -> exact.Outcome:
        """What a policy ``[M, S, V]`` attains."""
        return exact.outcome(self.tree, logprobs, self.ref_logprobs, self.scores, self.beta)

    def gap(self, logprobs: exact.Array) -> float:
        """The optimality gap of a policy ``[M, S, V]``, as a share of (optimum - start)."""
        attained = self.outcome(logprobs).mean_objective
        return exact.optimality_gap(attained, self.best.mean_objective, self.start.mean_objective)

    def __call__(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> exact.Array:
        """The reference's log-probs ``[N, T]``; 0 at padding."""
        table = self.ref_logprobs[self._which(prompts)[:, None], self.tree.locate(completions), completions]
        return np.where(completions == PAD, 0.0, table)

    def score_tokens(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> exact.Array:
        """The scores ``[N]`` of finished rows."""
        states, last = self.tree.locate(completions), (completions != PAD).sum(axis=1) - 1
        rows = np.arange(len(last))
        return self.scores[self._which(prompts), self.tree.leaves[states[rows, last], completions[rows, last]]]

    def text(self, tokens: NDArray[np.int64]) -> str:
        """Tokens ``[L]`` in words."""
        return " ".join(self.words[token] for token in tokens if token != PAD)

    def _which(self, prompts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index ``[N]`` of each prompt."""
        same = (prompts[:, None, : self.prompts.shape[1]] == self.prompts).all(axis=2)
        if not same.any(axis=1).all():
            raise ValueError(f"{prompts[~same.any(axis=1)][0]} is no prompt of this task")
        return same.argmax(axis=1)


class ExactVectorEnv(TokenVectorEnv):
    """The token environment of an `ExactTask`, reachable as ``task``; a data sheet is in `TokenVectorEnv`."""

    def __init__(self, num_envs: int, task: ExactTask, **options: Any) -> None:
        super().__init__(
            num_envs,
            prompts=task.prompts.tolist(),
            eos_token_id=EOS_TOKEN,
            vocab_size=len(task.words),
            max_new_tokens=task.tree.max_new_tokens,
            **options,
        )
        self.task = task


def spelling(beta: float = 0.2, reference: Reference | None = None) -> ExactTask:
    """Spell the prompt's word: the share of its letters in their places (the end is one), plus 1 / length if all are.

    Args:
        beta: price of the KL, reward units per nat.
        reference: another reference than the task's own.
    """
    words = (".", "a", "b", "c", "d")
    prompts = np.array([[1], [2], [3], [4]])
    targets = {1: [2, 1, 4, 0], 2: [1, 0], 3: [3, 4, 4, 1], 4: [4, 2, 0]}

    def score(prompt: NDArray[np.int64], completion: NDArray[np.int64]) -> float:
        target = targets[int(prompt[0])]
        hits = sum(one == other for one, other in zip(completion, target, strict=False))
        return (hits + (completion.tolist() == target)) / len(target)

    return ExactTask(
        words=words,
        prompts=prompts,
        max_new_tokens=4,
        reference=_random_logprobs((4, _num_states(5, 4), 5), seed=1, scale=0.7) if reference is None else reference,
        score=score,
        beta=beta,
    )


SENTIMENT_WORDS = (".", "good", "bad", "very", "not", "film")
SENTIMENT_BIGRAMS = np.array(
    [  #  .   good bad very not film      after
        [20.0, 20.0, 20.0, 20.0, 10.0, 10.0],  # . (never: it ends the text)
        [35.0, 8.0, 7.0, 10.0, 10.0, 30.0],  # good
        [35.0, 7.0, 8.0, 10.0, 10.0, 30.0],  # bad
        [2.0, 40.0, 35.0, 15.0, 3.0, 5.0],  # very
        [3.0, 35.0, 30.0, 25.0, 2.0, 5.0],  # not
        [25.0, 20.0, 25.0, 15.0, 10.0, 5.0],  # film
    ]
)
"""Per cent: how often the reference writes each word after each other."""


def sentiment(beta: float = 0.5, reference: Reference | None = None) -> ExactTask:
    """Praise in four words: +1 for "good", -1 for "bad"; "very" before it counts half more, "not" turns it round.

    Args:
        beta: price of the KL, reward units per nat.
        reference: another reference than the task's own.
    """
    prompts = np.array([[5], [4], [3]])
    tree = exact.TokenTree.build(len(SENTIMENT_WORDS), EOS_TOKEN, 4)
    lengths = (tree.prefixes != PAD).sum(axis=1)
    bigrams = np.log(SENTIMENT_BIGRAMS / SENTIMENT_BIGRAMS.sum(axis=1, keepdims=True))
    last = np.where(lengths == 0, prompts, tree.prefixes[np.arange(len(lengths)), lengths - 1])

    def score(prompt: NDArray[np.int64], completion: NDArray[np.int64]) -> float:
        total, factor = 0.0, 1.0
        for token in [*prompt, *completion]:
            word = SENTIMENT_WORDS[token]
            if word in ("good", "bad"):
                total += factor if word == "good" else -factor
            factor = {"very": 1.5 * factor, "not": -factor}.get(word, 1.0)
        return total

    return ExactTask(
        words=SENTIMENT_WORDS,
        prompts=prompts,
        max_new_tokens=4,
        reference=bigrams[last] if reference is None else reference,
        score=score,
        beta=beta,
    )


def random(beta: float = 0.5, seed: int = 0, reference: Reference | None = None) -> ExactTask:
    """Scores of standard deviation 1 and a reference of random logits, drawn for every completion and prefix.

    Args:
        beta: price of the KL, reward units per nat.
        seed: of the draw; another seed is another problem.
        reference: another reference than the random one.
    """
    tree = exact.TokenTree.build(4, EOS_TOKEN, 4)
    table = {
        row.tobytes(): values
        for row, values in zip(
            tree.completions, np.random.default_rng([seed, 2]).normal(size=(len(tree.completions), 2)), strict=True
        )
    }

    def score(prompt: NDArray[np.int64], completion: NDArray[np.int64]) -> float:
        padded = np.pad(completion, (0, 4 - len(completion)), constant_values=PAD)
        return float(table[padded.tobytes()][int(prompt[0]) - 1])

    return ExactTask(
        words=(".", "x", "y", "z"),
        prompts=np.array([[1], [2]]),
        max_new_tokens=4,
        reference=_random_logprobs((2, len(tree.prefixes), 4), seed=seed, scale=1.0)
        if reference is None
        else reference,
        score=score,
        beta=beta,
    )


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

    Args:
        task: builds the problem; given by the id.
        num_envs: sub-environments.
        acting: see `KLShaping`: log-probs of an agent that hands over none.
        autoreset_mode: see `TokenVectorEnv`.
        shuffle: whether the prompts' order is shuffled each epoch.
        group_size: see `TokenVectorEnv`.
        **parameters: of the task: ``beta``, ``reference``.
    """
    built = task(**parameters)
    envs = ExactVectorEnv(num_envs, built, autoreset_mode=autoreset_mode, shuffle=shuffle, group_size=group_size)
    return KLShaping(PreferenceReward(envs, built), built, built.beta, acting=acting)


def exact_env(task: Callable[..., ExactTask], **options: Any) -> TokenEnv:
    """``gym.make("textenvs/Exact...-v0")``: `exact_vec` as one scalar environment."""
    return TokenEnv(exact_vec(task, 1, autoreset_mode=AutoresetMode.DISABLED, **options))


exact_spelling, exact_spelling_vec = partial(exact_env, spelling), partial(exact_vec, spelling)
exact_sentiment, exact_sentiment_vec = partial(exact_env, sentiment), partial(exact_vec, sentiment)
exact_random, exact_random_vec = partial(exact_env, random), partial(exact_vec, random)


def _num_states(vocab_size: int, max_new_tokens: int) -> int:
    return sum((vocab_size - 1) ** length for length in range(max_new_tokens))


def _random_logprobs(shape: tuple[int, ...], *, seed: int, scale: float) -> exact.Array:
    """Log-softmax of normal logits of standard deviation `scale`."""
    logits = np.random.default_rng(seed).normal(scale=scale, size=shape)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
