"""Dialogues as a native Gymnasium vector environment: an action is a token, a turn ends, the environment answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from textenvs.dialogues.bridge import Bridge
from textenvs.dialogues.conversations import Answer, Conversations, Limits
from textenvs.dialogues.processes import Environments, ProcessEnvironments
from textenvs.dialogues.sub_environments import EnvSource, SubEnvironments
from textenvs.envs.base import Judged, TokenVectorBase, as_acted, check_whole, vocabulary
from textenvs.envs.row_buffer import RowBuffer
from textenvs.tokens.end_tokens import EndOfText, is_end
from textenvs.tokens.rows import EOS, LENGTH, NO_TURN, PAD, Columns, Ids, Mask, TokenRows, pad_rows
from textenvs.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class Answers:
    """What the environments of K rows wrote behind a turn."""

    tokens: Ids
    """``[K, R]`` right-padded with PAD."""
    ended: Mask
    """``[K]`` the dialogue is over."""


class DialogueVectorEnv(TokenVectorBase):
    """`num_envs` dialogues of an agent, a token a step, with environments over strings.

    A turn ends with an end token or after `max_turn_tokens`. Then the sub-environment's `step` gets its text, and what
    it replies stands in the row before the agent's next token: part of the transition, never a step, never sampled.

    | Observation | Box(-1, V-1, (L,), int64): the row so far, right-padded with PAD = -1; L = max_tokens              |
    | Action      | Discrete(V): the next token id                                                                   |
    | Reward      | the environment's, on the token that ended the turn; 0 on others; wrappers add theirs            |
    | Termination | the environment's own; after max_turns turns, or where no next turn fits into max_tokens         |
    | Truncation  | the environment's own; with budget="truncate" also at those two limits                           |
    | Info        | stop_reason[i] in {"", "terminated", "truncated", "turns", "length"}; turn_end[i] in {"", "eos",   |
    |             | "length"} where the action ended a turn; env_info[i], the environment's info of that turn        |
    | Autoreset   | as `TokenVectorEnv`                                                                              |

    Args:
        num_envs: sub-environments.
        env: the id of an environment, or a class or function that makes one: ``reset(seed=...) -> (observation, info)``
            and ``step(text) -> (observation, reward, terminated, truncated, info)``. An observation is a string (of the
            user), or a list of turns with role and content; without a tokenizer a list of ids, as actions then are.
        tokenizer: None for token ids.
        eos_token_id: tokens that end a turn; None: only its budget does.
        vocab_size: V; the tokenizer's length when None.
        max_turns: the agent's turns in a dialogue.
        max_turn_tokens: tokens of a turn.
        max_tokens: tokens of a whole row, what environments write included.
        chat: see `Bridge`.
        threads: environments that are called side by side, for those that wait; 0: one after the other.
        processes: that hold the environments and work side by side, for those that compute (`ProcessEnvironments`); 0:
            none but this one. Results depend on neither.
        group_size: episodes in a row that begin with the same seed.
        autoreset_mode: see `TokenVectorEnv`.
        budget: "terminate", or "truncate" to make both limits time limits.

    Raises:
        ValueError: settings or a source that do not fit; a chat template that rewrites history.
        DialogueError: in `reset` and `step`: an environment raised, or returned what none returns.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        env: EnvSource,
        tokenizer: Tokenizer | None = None,
        eos_token_id: EndOfText,
        vocab_size: int | None = None,
        max_turns: int = 8,
        max_turn_tokens: int = 32,
        max_tokens: int = 512,
        chat: bool | None = None,
        threads: int = 0,
        processes: int = 0,
        group_size: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        budget: str = "terminate",
    ) -> None:
        check_whole(1, max_turns=max_turns, max_turn_tokens=max_turn_tokens)
        check_whole(2, max_tokens=max_tokens)
        check_whole(0, threads=threads, processes=processes)
        vocab_size = vocabulary(vocab_size, tokenizer)
        self.limits = Limits(max_turns, max_turn_tokens, max_tokens, budget == "truncate")
        self.max_new_tokens, self.max_tokens = max_turn_tokens, max_tokens
        self._bridge = Bridge(tokenizer, eos_token_id, vocab_size, chat=chat)
        if threads and processes:
            raise ValueError(
                f"threads, processes: expected one of them, or 0, received threads {threads}, processes {processes}"
            )
        self._make_envs: Callable[[], Environments] = (
            partial(ProcessEnvironments, env, num_envs, processes=processes)
            if processes
            else partial(SubEnvironments, env, num_envs, threads=threads)
        )
        self._episodes = 0
        self._episode_seed: int | None = None
        self._played: Conversations | None = None  # of the batch path
        self._widths = (max_tokens, max_tokens - 1, max_tokens - 1)
        super().__init__(
            num_envs, tokenizer=tokenizer, eos_token_id=eos_token_id, vocab_size=vocab_size, widths=self._widths,
            group_size=group_size, autoreset_mode=autoreset_mode, budget=budget,
        )  # fmt: skip
        self._stepped = Conversations(self._make_envs(), self._bridge, self.limits, self._rows)

    @property
    def column_names(self) -> list[str]:
        """``messages``: the whole dialogue as turns of a chat."""
        return ["messages"]

    @property
    def longest_row(self) -> tuple[int, str, str]:
        """As in the base."""
        return self.max_tokens, "max_tokens", str(self.max_tokens)

    @property
    def max_sampled_tokens(self) -> int:
        """As in the base."""
        return min(self.limits.max_turns * self.limits.max_turn_tokens, self.max_tokens - 1)

    def draw_prompts(self, *, seed: int | None = None) -> Ids:
        """Begin a dialogue in every row of the batch path: first observations ``[num_envs, max_tokens - 1]``.

        The agent writes turns, `answer` replies, and `play` gives the finished rows. Episodes of the step path do not
        change, since both paths have environments of their own.

        Raises:
            DialogueError: as the class.
            ValueError: rows of a group do not begin alike, so the environment does not follow its seed.
        """
        if seed is not None:
            self._seed(seed)
        if self._played is None:
            self._played = Conversations(
                self._make_envs(), self._bridge, self.limits, RowBuffer(self.num_envs, *self._widths)
            )
        rows = np.arange(self.num_envs)
        numbers, seeds = self._next_episodes(self.num_envs)
        self._played.begin(rows, seeds, numbers)
        self.drawn_columns = [{"messages": messages} for messages in self._played.messages]
        buffer = self._played.rows
        prompts = buffer.split(rows)[0]
        groups = prompts.reshape(-1, self.group_size, prompts.shape[1])
        if (groups != groups[:, :1]).any():
            raise ValueError(
                "env: expected the same first observation from the same seed, as groups need, received different ones: "
                "draw all that is random from the generator that reset(seed=...) seeds"
            )
        return prompts

    def answer(self, indices: Ids, said: list[Ids]) -> Answers:
        """The environments' answers to turns of the batch path that have ended, in the order of ``indices [K]``, rows
        of the newest `draw_prompts`; ``said`` has the tokens of each turn, its end token included.

        Raises:
            DialogueError: as the class.
            ValueError: a row whose dialogue has ended, or a turn of no token or one beyond a limit.
        """
        talk = self._talk()
        for index, tokens in zip(indices.tolist(), said, strict=True):
            room = min(self.limits.max_turn_tokens, self.max_tokens - int(talk.rows.lengths[index]))
            if talk.rows.ended[index] or not 0 < len(tokens) <= room:
                raise ValueError(
                    f"row {index}: expected a turn of 1 to {room} tokens of a dialogue under way, received "
                    f"{len(tokens)} tokens{' of one that has ended' if talk.rows.ended[index] else ''}"
                )
            talk.rows.write(index, tokens, int(talk.rows.turn[index]))
        answers = talk.answer(indices)
        return Answers(pad_rows([each.tokens for each in answers]), np.array([bool(each.reason) for each in answers]))

    def play(
        self, prompts: Ids, completions: Ids, logprobs: ArrayLike | None = None, *, columns: Columns = ()
    ) -> TokenRows:
        """The finished dialogues of the newest `draw_prompts`, in their order: those N that were answered to the end.

        ``prompts [N, P]``, ``completions [N, T]`` with what the environments wrote, right-padded with PAD;
        ``logprobs [N, T]``, nats, of the agent on its own tokens, any elsewhere.

        Raises:
            ValueError: other rows than those.
        """
        talk = self._talk()
        ended = np.flatnonzero(talk.rows.ended)
        own = talk.rows.split(ended)[1]
        width = completions.shape[1]
        same = len(ended) == len(prompts) and not (own[:, width:] != PAD).any()
        if not (same and np.array_equal(own[:, :width], completions)):
            raise ValueError(
                f"completions: expected the {len(ended)} dialogues that were answered to their end, received "
                f"{len(completions)} others: call draw_prompts, answer every turn, and play what they gave"
            )
        offsets = talk.rows.prompt_lengths[ended, None] + np.arange(width)
        places, inside = np.minimum(offsets, self.max_tokens - 1), completions != PAD

        def along(values: NDArray[Any], nothing: Any) -> NDArray[Any]:
            return np.where(inside, np.take_along_axis(values[ended], places, axis=1), nothing)

        turns = along(talk.rows.turns, NO_TURN)
        truncated = talk.truncated[ended]
        return TokenRows(
            prompts=np.asarray(prompts), completions=completions, rewards=along(talk.rewards, np.float32(0)),
            terminated=~truncated, truncated=truncated, stop_reason=talk.reasons[ended], turns=turns,
            states=along(talk.states, 0), logprobs=as_acted(logprobs, completions, turns != NO_TURN),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """As in the base, with the number of episodes begun and the seed that their seeds follow."""
        return {**super().state_dict(), "episodes": self._episodes, "episode_seed": self._episode_seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned: dialogues of the step path are played again from their seeds.

        Raises:
            ValueError: the state belongs to another environment; or the environments do not do the same again.
        """
        super().load_state_dict(state)
        self._episodes, self._episode_seed = int(state["episodes"]), state["episode_seed"]
        self._stepped.replay(self._seeds(self._rows.numbers))

    def close_extras(self, **kwargs: Any) -> None:
        """Close all sub-environments."""
        for talk in (self._stepped, self._played):
            if talk is not None:
                talk.envs.close()

    def _talk(self) -> Conversations:
        if self._played is None:
            raise ValueError("expected draw_prompts before the batch path's answer and play")
        return self._played

    def _seed(self, seed: int) -> None:
        super()._seed(seed)
        self._episodes, self._episode_seed = 0, seed

    def _seeds(self, numbers: Ids) -> list[int]:
        """Of episodes ``numbers [K]``; those of a group have one."""
        groups = (numbers // self.group_size).tolist()
        return [int(np.random.SeedSequence([self._episode_seed or 0, group]).generate_state(1)[0]) for group in groups]

    def _next_episodes(self, count: int) -> tuple[Ids, list[int]]:
        if self._episode_seed is None:
            self._episode_seed = int(self.np_random.integers(2**31))
        numbers = self._episodes + np.arange(count)
        self._episodes += count
        return numbers, self._seeds(numbers)

    def _begin(self, indices: Ids) -> None:
        if indices.size:
            numbers, seeds = self._next_episodes(len(indices))
            self._stepped.begin(indices, seeds, numbers)

    def _judge(self, actions: Ids, running: Mask) -> Judged:
        at_eos = running & is_end(actions, self.eos_token_id)
        said = ((self._rows.turns == self._rows.turn[:, None]) & running[:, None]).sum(axis=1)
        full = (said >= self.limits.max_turn_tokens) | (self.lengths >= self.max_tokens)
        over = at_eos | (running & full)
        indices = np.flatnonzero(over)
        rewards, reasons = np.zeros(self.num_envs, np.float32), np.full(self.num_envs, "", dtype="<U10")
        truncated, infos = np.zeros(self.num_envs, np.bool_), np.full(self.num_envs, None, dtype=object)
        answers: list[Answer] = self._stepped.answer(indices) if indices.size else []
        for index, answer in zip(indices, answers, strict=True):
            rewards[index], reasons[index], truncated[index] = answer.reward, answer.reason, answer.truncated
            infos[index] = answer.info
        turn_end = np.where(over, np.where(at_eos, EOS, LENGTH), "").astype("<U6")
        entries = {"turn_end": (turn_end, over), "env_info": (infos, over)}
        return Judged(rewards, (reasons != "") & ~truncated, truncated, reasons, entries)

    def _columns(self, indices: Ids) -> Columns:
        # The base asks once before there are dialogues.
        return [{"messages": self._stepped.messages[index]} for index in indices] if indices.size else []
