"""Dialogues with an exactly known optimal policy, registered as ``textenvs/ExactDialogue...-v0``.

A game of M situations. In each the agent writes a turn, up to ``max_turn_tokens`` of V tokens, the first of which ends
it. The turn is paid, and the next situation, written in two tokens, is drawn; or the game ends. A policy is a table of
log-probs ``[S, V]`` over states: the situation, the tokens of the turn so far, and where a limit of turns ends the
game, the turn's number. It maximizes rewards less the KL's price, discounted by gamma a token and gamma_turn a turn:

    Q(s, a) = r(s, a) + g sum_s' P(s'|s, a) V(s'),      V(s) = sum_a pi(a|s) (Q(s, a) - beta log pi(a|s) / pi_ref(a|s))

    V*(s) = beta log sum_a pi_ref(a|s) exp(Q*(s, a) / beta),      pi*(a|s) = pi_ref(a|s) exp((Q*(s, a) - V*(s)) / beta)

Source: Levine 2018 (arXiv:1805.00909), section 2; here with a reference in place of the uniform distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.exact.enumeration import Array, optimality_gap
from textenvs.exact.envs import EOS_TOKEN
from textenvs.factories import check_options, scalar
from textenvs.tokens.rows import PAD, Ids
from textenvs.wrappers.interfaces import Acting
from textenvs.wrappers.kl_shaping import KLShaping

V, SITUATIONS, TURN_TOKENS = 4, 3, 2
CONVERGED = 1e-12


@dataclass(frozen=True)
class DialogueTask:
    """The game's tables, and its exact solution; the reference (a call) of the wrapper.

    ``tables`` are random; ``seed`` names them.
    """

    max_turns: int  # the agent's turns until the game ends, or is truncated
    truncates: bool  # the limit of turns is a time limit: states lack the turn's number, and the game goes on in V
    beta: float  # KL coefficient, reward units per nat, > 0
    gamma: float  # discount per token
    gamma_turn: float  # discount per turn, on top
    seed: int = 0

    @cached_property
    def turns(self) -> list[tuple[int, ...]]:
        """All turns: words, and the end unless the budget cut them."""
        found: list[tuple[int, ...]] = []
        prefixes: list[tuple[int, ...]] = [()]
        for length in range(TURN_TOKENS):
            found += [(*prefix, EOS_TOKEN) for prefix in prefixes]
            prefixes = [(*prefix, word) for prefix in prefixes for word in range(1, V)]
            if length == TURN_TOKENS - 1:
                found += prefixes
        return found

    @cached_property
    def tables(self) -> tuple[Array, Array, Array, Array]:
        """Rewards and probabilities to go on ``[M, number of turns]``, next situations ``[M, number, M]``, logits."""
        draw = np.random.default_rng([self.seed, 5])
        shape = SITUATIONS, len(self.turns)
        logits = draw.normal(size=(len(self.states), V))
        rewards, going_on = draw.normal(size=shape), draw.uniform(0.7, 1.0, shape)
        return rewards, going_on, draw.dirichlet(np.ones(SITUATIONS), shape), logits

    @cached_property
    def states(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Turn (0 with `truncates`), situation, and tokens of the turn so far."""
        prefixes = [()] + [(word,) for word in range(1, V)]
        turns = 1 if self.truncates else self.max_turns
        return [(turn, place, prefix) for turn in range(turns) for place in range(SITUATIONS) for prefix in prefixes]

    @cached_property
    def numbers(self) -> dict[tuple[int, int, tuple[int, ...]], int]:
        """Of each state among all."""
        return {state: number for number, state in enumerate(self.states)}

    @cached_property
    def ref_logprobs(self) -> Array:
        """``[S, V]`` nats."""
        logits = self.tables[3]
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    @cached_property
    def _dynamics(self) -> tuple[Array, Array]:
        """Rewards ``[S, V]`` and discounted transitions ``[S, V, S]``."""
        rewards, going_on, following, _ = self.tables
        paid, moved = np.zeros((len(self.states), V)), np.zeros((len(self.states), V, len(self.states)))
        for (turn, place, prefix), number in self.numbers.items():
            for token in range(V):
                said = (*prefix, token)
                if said not in self.turns:
                    moved[number, token, self.numbers[turn, place, said]] = self.gamma
                    continue
                index = self.turns.index(said)
                paid[number, token] = rewards[place, index]
                later = turn if self.truncates else turn + 1
                if self.truncates or later < self.max_turns:
                    for other in range(SITUATIONS):
                        chance = going_on[place, index] * following[place, index, other]
                        moved[number, token, self.numbers[later, other, ()]] = self.gamma * self.gamma_turn * chance
        return paid, moved

    @cached_property
    def optimum(self) -> Array:
        """``[S, V]`` nats: the best policy, by backward induction, repeated until it stands where there is no end."""
        paid, moved = self._dynamics
        values = np.zeros(len(self.states))
        while True:
            q = paid + moved @ values
            best = self.beta * np.log(np.exp(self.ref_logprobs + q / self.beta).sum(axis=1))
            if np.abs(best - values).max() < CONVERGED:
                return np.asarray(self.ref_logprobs + (q - best[:, None]) / self.beta)
            values = best

    def objective(self, logprobs: Array) -> float:
        """Of a policy ``[S, V]``, nats: V of the first turn, the mean over situations; by a linear system."""
        paid, moved = self._dynamics
        policy = np.exp(logprobs)
        own = (policy * (paid - self.beta * (logprobs - self.ref_logprobs))).sum(axis=1)
        values = np.linalg.solve(np.eye(len(own)) - np.einsum("sa,sat->st", policy, moved), own)
        return float(np.mean([values[self.numbers[0, place, ()]] for place in range(SITUATIONS)]))

    def gap(self, logprobs: Array) -> float:
        """The optimality gap of a policy ``[S, V]``, as a share of (optimum - start)."""
        return optimality_gap(self.objective(logprobs), self.objective(self.optimum), self.objective(self.ref_logprobs))

    def locate(self, rows: Ids) -> Ids:
        """The state ``[N, L + 1]`` before each token of rows ``[N, L]``, and after the last; -1 where none is chosen.

        Rows are first observation, turn, end of the turn, observation, and so on, right-padded with PAD.
        """
        states = np.full((rows.shape[0], rows.shape[1] + 1), -1, dtype=np.int64)
        lengths, place = (rows != PAD).sum(axis=1), rows[:, 1] - 1
        turn, said, waiting = np.zeros((3, len(rows)), dtype=np.int64)  # waiting: tokens until the agent's next turn
        for column in range(2, rows.shape[1] + 1):
            own = (waiting == 0) & (column <= lengths)
            number = ((0 if self.truncates else turn) * SITUATIONS + place) * V + said
            states[:, column] = np.where(own & (number < len(self.states)), number, -1)
            if column == rows.shape[1]:
                break
            token = rows[:, column]
            over = own & ((token == EOS_TOKEN) | (said > 0))
            last = waiting == 1
            waiting = np.where(over, 2 + (token != EOS_TOKEN), np.maximum(waiting - 1, 0))
            place = np.where(last, token - 1, place)
            said, turn = np.where(over | ~own, 0, token), turn + over
        return states

    def __call__(self, prompts: Ids, completions: Ids) -> Array:
        """The reference's log-probs ``[N, T]``, as `KLShaping` takes one; 0 where the agent chose nothing."""
        states = self.locate(np.concatenate([prompts[:, :2], completions], axis=1))[:, 2:-1]
        found: Array = self.ref_logprobs[states, np.maximum(completions, 0)]
        return np.where((states >= 0) & (completions != PAD), found, 0.0)


class Game(gym.Env[Any, Any]):
    """The environment of a `DialogueTask`, in token ids: the situation m as the tokens (V - 1, m + 1)."""

    def __init__(self, task: DialogueTask) -> None:
        self.task = task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a situation."""
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(SITUATIONS))
        return [V - 1, self.place + 1], {}

    def step(self, action: tuple[int, ...]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pay the turn, and draw whether the game goes on, and where."""
        rewards, going_on, following, _ = self.task.tables
        said = action if len(action) == TURN_TOKENS else (*action, EOS_TOKEN)
        index, place = self.task.turns.index(said), self.place
        chance, draw = self.np_random.random(2)
        self.place = int(np.searchsorted(following[place, index].cumsum()[:-1], draw, side="right"))
        return [V - 1, self.place + 1], float(rewards[place, index]), bool(chance >= going_on[place, index]), False, {}


class ExactDialogueVectorEnv(DialogueVectorEnv):
    """The dialogues of a `DialogueTask`, its attribute ``task``; see `DialogueVectorEnv`."""

    def __init__(self, num_envs: int, task: DialogueTask, **options: Any) -> None:
        limits: dict[str, Any] = {"max_turns": task.max_turns, "max_turn_tokens": TURN_TOKENS}
        limits["max_tokens"] = 2 + task.max_turns * (TURN_TOKENS + 3)
        budget = "truncate" if task.truncates else "terminate"
        options |= {"env": partial(Game, task), "eos_token_id": EOS_TOKEN, "vocab_size": V, "budget": budget}
        super().__init__(num_envs, **limits, **options)
        self.task = task


def exact_dialogue_vec(
    truncates: bool,
    num_envs: int = 1,
    *,
    beta: float = 0.3,
    gamma: float | None = None,
    gamma_turn: float | None = None,
    acting: Acting | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    group_size: int = 1,
    **parameters: Any,
) -> TokenVectorWrapper:
    """``gym.make_vec("textenvs/ExactDialogue...-v0", num_envs=N)``.

    The id sets whether the limit of turns ``truncates``. ``beta`` is in reward units per nat; ``gamma`` and
    ``gamma_turn`` are discounts of the objective, per token and per turn; None: 1, but 0.9 a turn if it truncates.
    ``parameters`` are ``max_turns`` (3) and ``seed`` of the game's tables; see `KLShaping` and `DialogueVectorEnv` for
    the rest.
    """
    check_options(parameters, exact_dialogue_vec, DialogueTask)
    discounts = 1.0 if gamma is None else gamma, (0.9 if truncates else 1.0) if gamma_turn is None else gamma_turn
    settings = {"max_turns": 3} | parameters
    task = DialogueTask(truncates=truncates, beta=beta, gamma=discounts[0], gamma_turn=discounts[1], **settings)
    envs = ExactDialogueVectorEnv(num_envs, task, autoreset_mode=autoreset_mode, group_size=group_size)
    return KLShaping(envs, task, beta, acting=acting)


terminating_vec, truncating_vec = partial(exact_dialogue_vec, False), partial(exact_dialogue_vec, True)
terminating, truncating = partial(scalar, terminating_vec), partial(scalar, truncating_vec)
"""Entry points of ``gym.make_vec`` and ``gym.make``."""
