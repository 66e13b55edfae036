"""Exact solutions of small text problems by enumeration of all completions.

A problem has M prompts, a vocabulary of V tokens and a budget of T of them; the end-of-text token ends a completion
early. A policy pi maximizes the score r(x, y) less the KL to a reference:

    J(pi) = E_{x, y ~ pi} [ r(x, y) ] - beta KL(pi || pi_ref),       per prompt

    pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x),               J(pi*) = beta log Z(x)

Source of the optimum: Korbak et al. 2022 (arXiv:2205.11275), eq. 4; token by token it is the soft Bellman equation
``V(s) = beta log sum_a pi_ref(a|s) exp(Q(s, a) / beta)`` (Levine 2018, arXiv:1805.00909), gamma = 1.

Pure functions of float64 arrays. A policy is a table ``[M, S, V]`` of log-probs over the S prefixes of a `TokenTree`.
The registered problems and their environments are in `envs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from textenvs.tokens.rows import PAD, Ids, Mask, Numbers, as_array

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TokenTree:
    """All prefixes (states, S of them) and all completions (Y of them) of a vocabulary and a budget, shortest first."""

    vocab_size: int  # V, tokens
    eos_token_id: int  # ends a completion
    max_new_tokens: int  # T: a completion of that length ends without eos
    prefixes: Ids  # [S, T] tokens, none of them eos, right-padded with PAD
    offsets: Ids  # [T + 1] prefixes of t tokens are rows offsets[t] to offsets[t + 1]
    children: Ids  # [S, V] the next prefix after a token; -1 where it ends the completion
    leaves: Ids  # [S, V] the completion that a token ends; -1 elsewhere
    completions: Ids  # [Y, T] right-padded with PAD; each ends with eos or has T tokens

    @classmethod
    def build(cls, vocab_size: int, eos_token_id: int, max_new_tokens: int) -> TokenTree:
        """Enumerate all prefixes and completions.

        Raises:
            ValueError: fewer than two tokens, an eos outside of the vocabulary, no budget, or over a million prefixes.
        """
        if vocab_size < 2 or not 0 <= eos_token_id < vocab_size or max_new_tokens < 1:
            raise ValueError(
                "expected two tokens or more with eos among them, and a budget of at least 1; received "
                f"vocab_size {vocab_size}, eos_token_id {eos_token_id}, max_new_tokens {max_new_tokens}"
            )
        counts = [(vocab_size - 1) ** length for length in range(max_new_tokens)]
        if sum(counts) > 1_000_000:
            raise ValueError(f"expected at most 1,000,000 prefixes, received {sum(counts)}: lower vocabulary or budget")
        offsets = np.cumsum([0, *counts])
        letters = np.delete(np.arange(vocab_size), eos_token_id)
        prefixes = np.full((offsets[-1], max_new_tokens), PAD, dtype=np.int64)
        children = np.full((offsets[-1], vocab_size), -1, dtype=np.int64)
        for length in range(max_new_tokens - 1):
            parents = np.arange(offsets[length], offsets[length + 1])
            born = np.arange(offsets[length + 1], offsets[length + 2]).reshape(len(parents), len(letters))
            children[parents[:, None], letters] = born
            prefixes[born] = prefixes[parents][:, None]
            prefixes[born, length] = letters
        ends = children < 0
        leaves = np.full_like(children, -1)
        leaves[ends] = np.arange(ends.sum())
        last_state, last_token = ends.nonzero()
        lengths = (prefixes[last_state] != PAD).sum(axis=1)
        completions = prefixes[last_state]
        completions[np.arange(len(lengths)), lengths] = last_token
        return cls(vocab_size, eos_token_id, max_new_tokens, prefixes, offsets, children, leaves, completions)

    @property
    def mask(self) -> Mask:
        """``[Y, T]`` True on the tokens of the completions."""
        mask: Mask = self.completions != PAD
        return mask

    @cached_property
    def states(self) -> Ids:
        """``[Y, T]`` the prefix before each token of a completion; 0 at padding."""
        return self.locate(self.completions)

    def locate(self, completions: Ids) -> Ids:
        """The prefix ``[N, T']`` before each token of ``completions [N, T']``; 0 at padding."""
        states = np.zeros_like(completions)
        for place in range(1, completions.shape[1]):
            real = completions[:, place] != PAD
            states[real, place] = self.children[states[real, place - 1], completions[real, place - 1]]
        return states


@dataclass(frozen=True)
class Outcome:
    """Exact results of a policy; reward units and nats per sequence, ``[M]`` each."""

    objective: Array  # score - beta * kl, which PPO maximizes
    score: Array  # E[r]
    kl: Array  # KL(pi || pi_ref) of whole completions

    @property
    def mean_objective(self) -> float:
        """Mean over equally likely prompts."""
        return float(self.objective.mean())


@dataclass(frozen=True)
class Optimum:
    """The optimal policy and its values."""

    logprobs: Array  # [M, S, V] nats, the optimal log-probs after each prefix
    soft_values: Array  # [M, S] the optimal objective from each prefix on; soft_values[:, 0] is beta log Z


def sequence_logprobs(tree: TokenTree, logprobs: Array) -> Array:
    """Log-probabilities ``[M, Y]`` of whole completions under a policy ``[M, S, V]``, nats."""
    tokens = logprobs[:, tree.states, np.maximum(tree.completions, 0)]
    sums: Array = np.where(tree.mask, tokens, 0.0).sum(axis=2)
    return sums


def soft_optimum(tree: TokenTree, ref_logprobs: Array, scores: Array, beta: float) -> Optimum:
    """The policy that maximizes J, by backward induction over prefixes.

    Args:
        tree: the enumeration.
        ref_logprobs: ``[M, S, V]`` nats, finite and normalized.
        scores: ``[M, Y]`` reward units, r(x, y) of each completion.
        beta: KL coefficient, reward units per nat, > 0.

    Raises:
        ValueError: tables of other shapes, a reference that is no distribution, or a beta that is not positive.
    """
    _check(tree, ref_logprobs, scores)
    if not beta > 0:
        raise ValueError(f"beta: expected a positive number, for a unique optimum, received {beta}")
    q = np.where(tree.children < 0, scores[:, tree.leaves], 0.0)
    values = _backward(tree, q, lambda level, q: beta * _logsumexp(ref_logprobs[:, level] + q / beta))
    return Optimum(ref_logprobs + (q - values[:, :, None]) / beta, values)


def action_values(
    tree: TokenTree, logprobs: Array, ref_logprobs: Array, scores: Array, beta: float
) -> tuple[Array, Array]:
    """The targets of PPO's critic: V ``[M, S]`` and Q ``[M, S, V]`` of a policy, KL penalties included.

    ``Q(s, a)`` begins with the penalty of the token a, ``-beta (log pi(a|s) - log pi_ref(a|s))``.
    """
    _check(tree, ref_logprobs, scores)
    q = np.where(tree.children < 0, scores[:, tree.leaves], 0.0) - beta * (logprobs - ref_logprobs)
    return _backward(tree, q, lambda level, q: (np.exp(logprobs[:, level]) * q).sum(axis=2)), q


def visits(tree: TokenTree, logprobs: Array) -> Array:
    """The probability ``[M, S]`` that a completion passes through each prefix."""
    reached = np.zeros(logprobs.shape[:2])
    reached[:, 0] = 1.0
    for level in reversed(_levels(tree)):
        inner = tree.children[level] >= 0
        reached[:, tree.children[level][inner]] = (reached[:, level, None] * np.exp(logprobs[:, level]))[:, inner]
    return reached


def objective_gradient(tree: TokenTree, logprobs: Array, ref_logprobs: Array, scores: Array, beta: float) -> Array:
    """The gradient ``[M, S, V]`` of J by the logits of a policy that is a softmax of its own table.

        dJ / dz(s, a) = d(s) pi(a|s) (Q(s, a) - V(s)),       d the visits

    Source: the policy gradient theorem (Sutton et al. 1999); the penalty's own derivative has mean zero.
    """
    values, q = action_values(tree, logprobs, ref_logprobs, scores, beta)
    return visits(tree, logprobs)[:, :, None] * np.exp(logprobs) * (q - values[:, :, None])


def outcome(tree: TokenTree, logprobs: Array, ref_logprobs: Array, scores: Array, beta: float) -> Outcome:
    """Score, KL and objective of a policy, as sums over all completions."""
    _check(tree, ref_logprobs, scores)
    sequences = sequence_logprobs(tree, logprobs)
    probabilities = np.exp(sequences)
    score = (probabilities * scores).sum(axis=1)
    possible = probabilities > 0
    gap = np.where(possible, sequences, 0.0) - np.where(possible, sequence_logprobs(tree, ref_logprobs), 0.0)
    kl = (probabilities * gap).sum(axis=1)
    return Outcome(score - beta * kl, score, kl)


def optimality_gap(attained: float, best: float, start: float) -> float:
    """The remaining share of (best - start): 1 at the start, 0 at the optimum, which must differ."""
    if not best > start:
        raise ValueError(f"expected a start below the optimum {best}, received {start}: there is nothing to learn")
    return (best - attained) / (best - start)


def tabulate(tree: TokenTree, prompts: Ids, reference: Callable[[Ids, Ids], Numbers]) -> Array:
    """The log-probs ``[M, S, V]`` of a reference as `KLShaping` takes one, a causal LM for instance.

    It is called once, for every prefix and token; ``prompts [M, P]`` are right-padded with PAD.
    """
    num_prompts, num_states = len(prompts), len(tree.prefixes)
    lengths = (tree.prefixes != PAD).sum(axis=1)
    rows = np.repeat(tree.prefixes[:, None], tree.vocab_size, axis=1)
    rows[np.arange(num_states), :, lengths] = np.arange(tree.vocab_size)
    completions = np.tile(rows.reshape(-1, tree.max_new_tokens), (num_prompts, 1))
    logprobs = as_array(reference(np.repeat(prompts, num_states * tree.vocab_size, axis=0), completions))
    last = np.tile(np.repeat(lengths, tree.vocab_size), num_prompts)
    table: Array = logprobs.astype(np.float64)[np.arange(len(completions)), last]
    table = table.reshape(num_prompts, num_states, tree.vocab_size)
    return table - _logsumexp(table)[:, :, None]  # float32 probabilities sum to 1 within 1e-7 only


def _backward(tree: TokenTree, q: Array, value: Callable[[slice, Array], Array]) -> Array:
    """V ``[M, S]``, longest prefixes first; ``q [M, S, V]``, what tokens pay themselves, gains V of the next prefix."""
    values = np.zeros(q.shape[:2])
    for level in _levels(tree):
        inner = tree.children[level] >= 0
        q[:, level][:, inner] += values[:, tree.children[level][inner]]
        values[:, level] = value(level, q[:, level])
    return values


def _levels(tree: TokenTree) -> list[slice]:
    """The prefixes by length, longest first."""
    borders = tree.offsets.tolist()
    return [slice(begin, end) for begin, end in pairwise(borders)][::-1]


def _logsumexp(x: Array) -> Array:
    top: Array = x.max(axis=-1)
    return np.asarray(top + np.log(np.exp(x - top[..., None]).sum(axis=-1)))


def _check(tree: TokenTree, ref_logprobs: Array, scores: Array) -> None:
    shape = (len(scores), len(tree.prefixes), tree.vocab_size)
    if scores.shape != (len(scores), len(tree.completions)) or ref_logprobs.shape != shape:
        raise ValueError(
            f"expected scores [M, {len(tree.completions)}] and a reference [M, {shape[1]}, {shape[2]}]; received "
            f"{scores.shape} and {ref_logprobs.shape}"
        )
    if not np.isfinite(ref_logprobs).all() or np.abs(_logsumexp(ref_logprobs)).max() > 1e-6:
        raise ValueError("reference: expected positive probabilities that sum to 1, received others")
