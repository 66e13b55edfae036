"""The task of a text run, whoever solves it and however: model, prompts, rewards, machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from agents.config import PlacementConfig
from agents.ranges import changed, check_values, refuse_changed
from agents.runs.flags import json_object

Memory = Literal["full", "shared", "adapters"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Model: what is tuned, and how policy, critic and reference live in memory."""

    model: str | None = None
    """Causal LM to start from: directory or name that transformers loads, with its tokenizer. None: the project's."""
    memory: Memory = "shared"
    """full: the critic and the reference are copies of the model. shared: the value head reads the policy's trunk, the
    reference is a copy. adapters: one frozen trunk; policy and value are LoRA adapters (so is a reward model that is
    one over the same trunk), and the reference is the trunk with adapters off."""
    adapter: str | None = None
    """Folder of a LoRA adapter to start from; frozen, it is also the reference (memory adapters). None: a new one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products in rollout and update (autocast); log-softmax, values, losses, adapters and optimizer are
    float32. With memory adapters the frozen trunk is loaded as this type, too. auto: bfloat16 on a CUDA device that has
    it, float32 elsewhere; on CUDA frozen models' products, reward models' too, are of this type."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Prompts: what is written after, and how."""

    rows: str | None = None
    """Text file (a prompt a line), or rows as `train-language-model --data` takes them, with `messages` or else
    `prompt`; rewards get their other columns. A tenth is held out, by prompt. None: openings of movie reviews."""
    eval_rows: str | None = None
    """File of rows that are held out, for figures before, along and after training; needs `rows`. None: that tenth."""
    num_eval_rows: int = 400
    """Most held-out rows that are written on."""
    chat_template: bool = False
    """Put each prompt into a chat as the user's turn, in the tokenizer's own template; scorers read the bare turn."""
    template_kwargs: str | None = None
    """Variables of the chat template, a JSON object such as '{"enable_thinking": false}'; give each stage the same."""
    max_prompt_tokens: int | None = None
    """Longest prompt, tokens. None: any that the model has positions for."""
    too_long: Literal["refuse", "cut", "skip"] = "refuse"
    """What happens to longer prompts; of one that is cut the end is kept. How many were cut or skipped is printed."""
    max_new_tokens: int = 24
    """Budget of a completion, tokens."""
    temperature: float = 1.0
    """Of sampling, > 0, in training and evaluation alike."""

    def __post_init__(self) -> None:
        # Beyond, rounding decides: the likeliest token always, or all tokens alike.
        check_values(self, {">= 1": "num_eval_rows max_prompt_tokens max_new_tokens", "in [0.01, 100]": "temperature"})
        if self.eval_rows is not None and self.rows is None:
            raise ValueError("eval_rows needs rows: both are files of your own, or neither")
        json_object(self.template_kwargs)
        if self.too_long != "refuse" and self.max_prompt_tokens is None:
            raise ValueError(f"too_long {self.too_long} needs max_prompt_tokens, the longest prompt that is kept whole")


OF_PROMPTS = ("chat_template", "max_prompt_tokens", "too_long", "judge", "plan", "critic_start")
"""Settings of texts after prompts, which episodes of an environment have no use for."""
OF_SEVERAL = ("reward_combine", "reward_weights", "reward_uncertainty_coef")
"""Settings of several rewards."""


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings:
    """Dialogues: an environment that answers the model's turns."""

    env: str | None = None
    """`module:Class` of an environment over strings, or a function that makes one, or a registered id, such as
    textenvs/ReasoningGym-v0. None: texts after prompts, or tools."""
    tools: str | None = None
    """Functions that the model may call, `module:function,module:function`. Questions are those of `rows`, and one
    `reward` pays the answer. None: none."""
    turns: int | None = None
    """Most turns of the model in a dialogue. None: the environment's own, mostly 8."""
    turn_tokens: int | None = None
    """Most tokens of a turn. None: the environment's own, mostly 32."""
    max_tokens: int | None = None
    """Most tokens of a dialogue, what the environment writes included. None: the environment's own, mostly 512, and no
    more than the model has positions."""
    env_options: str | None = None
    """More arguments of the environment, its own or those of textenvs/Dialogue-v0: a JSON object such as
    '{"most": 8, "threads": 4}'."""
    eval_env_options: str | None = None
    """Those that are others in evaluation, such as '{"held_out": 100}'. None: only seeds differ from training's."""

    def __post_init__(self) -> None:
        check_values(self, {">= 1": "turns turn_tokens", ">= 2": "max_tokens"})
        for name in ("env_options", "eval_env_options"):
            json_object(getattr(self, name), name)
        if self.plays:
            refuse_changed(self, OF_PROMPTS, "of texts after prompts; leave it out with env or tools")
        else:
            own = [field.name for field in fields(EpisodeSettings)]
            refuse_changed(self, own, "expected env or tools, received neither")

    @property
    def plays(self) -> bool:
        """Whether episodes are an environment's, not texts after prompts."""
        return self.env is not None or self.tools is not None


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """Rewards: who scores the texts."""

    reward: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """`module:function`, whose parameters are any of prompts, completions and the columns of the rows; a ready reward,
    one of exact, number, boxed, regex, format, length, with settings as in "number(tolerance=0.01)"; the directory of a
    reward model or of an ensemble (see train-reward-model); or directory or hub name of a sequence classifier with one
    label. Repeat the flag for several, in any mixture. None: the project's reward model."""
    reward_combine: Literal["mean", "worst", "uncertainty"] = "mean"
    """How the scores of several, an ensemble's members each for itself, become one: their mean, the least, or the mean
    less reward_uncertainty_coef times their variance (Coste et al. 2023, arXiv:2310.02743)."""
    reward_weights: tuple[float, ...] = ()
    """A mixture: one number for each reward, in their order, by which its score is multiplied before all are
    added (an ensemble's score is its members' mean). They need not sum to 1; negative ones punish, 0 only watches.
    None: no weights."""
    reward_uncertainty_coef: float = 0.1
    """Price of the variance with reward_combine uncertainty, per reward unit."""
    judge: bool = True
    """Whether the independent judge compares before and after (needs the demo extra). It knows praise from blame in
    movie reviews, and nothing else: not asked where a function or a ready reward is the first to judge `rows`."""

    def __post_init__(self) -> None:
        if isinstance(self.reward, str):
            raise ValueError(f"reward takes several: write ({self.reward!r},) for one")
        for name in ("reward", "reward_weights"):  # lists, where they come out of a config.json
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_values(self, {">= 0": "reward_uncertainty_coef"})
        if not changed(self, *OF_SEVERAL):
            return
        from textenvs.wrappers.preference import check_combination  # brings Gymnasium, for which --help need not wait

        check_combination(
            self.reward_combine,
            self.reward_weights or None,
            self.reward_uncertainty_coef,
            num_scorers=max(1, len(self.reward)),
        )


@dataclass(frozen=True, kw_only=True)
class TextTask(ModelSettings, PromptSettings, RewardSettings, PlacementConfig):
    """Machine: CPU threads."""

    threads: int | None = None
    """CPU threads of torch. None: its own choice."""

    def __post_init__(self) -> None:
        PromptSettings.__post_init__(self)
        RewardSettings.__post_init__(self)
        check_values(self, {">= 0": "seed", ">= 1": "threads"})
        if self.adapter is not None and self.memory != "adapters" and not getattr(self, "plan", False):
            raise ValueError(f"adapter: this needs memory adapters, received memory {self.memory}")

    @property
    def reads(self) -> tuple[str | None, ...]:
        """Files and folders that the task is read from, and names of what lies elsewhere."""
        return (self.model, *self.reward, self.rows, self.eval_rows, self.adapter)
