"""The parts of a text run, made from its configuration: models, environment, collector, reward, judge, prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.evaluation.metrics import Assessment
from agents.evaluation.samples import Samples, write_samples
from agents.lm.causal_lm import CausalLMPolicy
from agents.recipes.rlhf.config import LayoutSettings, TrainTextConfig
from agents.recipes.rlhf.models import TextModels, build_models, model_path
from agents.recipes.rlhf.rewards import NamedScorers, build_scorers, start_critic_as_reward
from agents.recipes.rlhf.task import TextTask
from agents.runs.distributed import ALONE, Processes
from agents.runs.run_dir import write_folder_aside
from agents.text.collector import TextCollector
from reward_models.data.movie_reviews import movie_review_splits, openings
from textenvs.envs.vector import TokenVectorEnv
from textenvs.tokens.prompts import Prompts, load_prompts
from textenvs.tokens.tokenizers import decode_rows, load_tokenizer
from textenvs.wrappers.chat_prompts import ChatTemplate
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import Judged, PreferenceReward
from textenvs.wrappers.reference import CausalLMReference

OPENING_WORDS = (2, 6)
NUM_OPENINGS = 4000
EVAL_SEED = 12345
ROWS_AT_ONCE = 64
"""Texts that an evaluation reads in one pass."""


class PolicyReference(CausalLMReference):
    """The starting policy as the reference: whole rows in one pass a row, logits only where they are needed."""

    def __init__(self, policy: CausalLMPolicy, tokenizer: Any) -> None:
        super().__init__(policy.model, tokenizer=tokenizer)
        self.policy = policy

    def step(self, *args: Any, **kwargs: Any) -> NDArray[np.float32]:
        """Log-probs of one more token; see `CausalLMReference`."""
        with self.policy.acting():
            return super().step(*args, **kwargs)

    def __call__(self, prompts: NDArray[np.int64], completions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Log-probs ``[N, T]``, nats, 0 at padding; see `CausalLMReference`."""
        device = self.policy.device
        rows = (torch.as_tensor(part).to(device) for part in (prompts, completions))
        return self.policy.logprobs_along(*rows).cpu().numpy()

    @torch.no_grad()
    def kl_along(self, policy: CausalLMPolicy, samples: Samples) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Exact KL(policy || reference) in each state of texts the policy wrote, and the tokens' own log-probs here.

        Returns:
            ``[N, T]`` nats each, 0 at padding.
        """
        found = []
        for start in range(0, len(samples.prompts), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            rows = samples.prompts[part], samples.completions[part]
            prompts, completions = (torch.as_tensor(row).to(policy.device) for row in rows)
            kl = policy.evaluate(prompts, completions, reference=self.policy).kl
            assert kl is not None
            found.append((kl.cpu().numpy(), self(*rows)))
        kls, logprobs = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return kls, logprobs


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskParts:
    """What a task is made of, whoever solves it.

    Attributes:
        tokenizer: of model and environment.
        start: the model, frozen.
        reward: the environment's preference reward.
        chat: what puts prompts into a chat, or None.
        judge: independent of the reward model, or None.
        eval_prompts: texts that training never sees.
        max_new_tokens: budget of a completion.
        max_concurrent_rows: texts written at a time; None: all.
    """

    tokenizer: Any
    start: CausalLMPolicy
    reward: PreferenceReward
    chat: ChatTemplate | None
    judge: Any
    eval_prompts: list[Any] | Prompts
    max_new_tokens: int
    max_concurrent_rows: int | None

    def write(self, policy: CausalLMPolicy) -> Samples:
        """What ``policy`` writes on the evaluation prompts, always with the same seed."""
        return self.as_said(
            write_samples(
                policy,
                self.tokenizer,
                self.eval_prompts,
                max_new_tokens=self.max_new_tokens,
                seed=EVAL_SEED,
                max_concurrent_rows=self.max_concurrent_rows,
            )
        )

    def as_said(self, samples: Samples) -> Samples:
        """The same with bare turns for openings, where prompts were put into a chat."""
        return samples if self.chat is None else replace(samples, openings=self.chat.said(samples.openings))

    def score(self, samples: Samples) -> np.ndarray:
        """``[N]`` scores by the reward that is trained on."""
        return self.judged(samples).scores

    def judged(self, samples: Samples) -> Judged:
        """The same with what each member says, and how far they are apart."""
        return self.reward.judge(samples.prompts, samples.completions)


@dataclass(frozen=True, kw_only=True, eq=False)
class TextParts(TaskParts):
    """Everything a run needs but the agent.

    Attributes:
        policy: what learns.
        reference: log-probs of ``start``; the KL is measured against it.
        collector: of rollouts.
    """

    policy: CausalLMPolicy
    reference: PolicyReference
    collector: TextCollector

    def assess(self, policy: CausalLMPolicy) -> Assessment:
        """What ``policy`` writes on the evaluation prompts, and what is to be said of it.

        Draws come from a generator of their own, and nothing of the training is touched.
        """
        samples = self.write(policy)
        kl, ref_logprobs = self.reference.kl_along(policy, samples)
        judged = None if self.judge is None else self.judge.score(samples.texts)
        return Assessment(
            samples=samples, scored=self.judged(samples), judged=judged, ref_logprobs=ref_logprobs, kl=kl.sum(1)
        )

    def newest_texts(self, count: int) -> tuple[list[str], list[str]]:
        """Prompts and completions of a few texts of the newest rollout."""
        rows = self.collector.last
        if rows is None:
            return [], []
        openings, endings = decode_rows(self.tokenizer, rows.prompts[:count], rows.completions[:count])
        return (openings if self.chat is None else self.chat.said(openings)), endings


def build_parts(config: TrainTextConfig, processes: Processes = ALONE) -> TextParts:
    """Load and wire everything; whatever is wrong with an input is found here.

    Args:
        config: the run's settings.
        processes: that the run is shared out among; the main one alone gets the judge, because it alone evaluates.

    Raises:
        ValueError, OSError: with a message that names the input.
    """
    tokenizer = load_tokenizer(model_path(config))
    models = build_models(config, config, critic=config.critic(config.memory), tokenizer=tokenizer)
    found = build_scorers(config, models)
    task = _task_parts(
        config,
        models,
        found,
        num_rows=config.batch_size,
        group_size=config.group_size,
        max_concurrent_rows=config.max_concurrent_rows,
        judged=config.judge and processes.is_main,
    )
    if config.critic_start == "reward-model":
        base = task.reward.unwrapped
        assert isinstance(base, TokenVectorEnv)
        start_critic_as_reward(models, found.scorers[0], base.prompts.tokens[0].tolist())
    reference = PolicyReference(models.plain, tokenizer)
    collector = TextCollector(
        KLShaping(task.reward, reference, config.beta, charge=config.kl_in != "loss"),
        seed=config.seed,
        missing_eos_penalty=config.missing_eos_penalty,
        kl_controller=config.kl_controller(config.episodes),
        score_scaler=config.score_scaler(),
        max_concurrent_rows=config.max_concurrent_rows,
        processes=processes,
    )
    return TextParts(**vars(task), policy=models.policy, reference=reference, collector=collector)


def build_task(task: TextTask) -> TaskParts:
    """The task's parts without anything that learns.

    Raises:
        ValueError, OSError: with a message that names the input.
    """
    tokenizer = load_tokenizer(model_path(task))
    models = build_models(task, LayoutSettings(), critic="none", tokenizer=tokenizer)
    return _task_parts(task, models, build_scorers(task, models), judged=task.judge)


def _task_parts(
    task: TextTask,
    models: TextModels,
    found: NamedScorers,
    *,
    judged: bool,
    num_rows: int = 1,
    group_size: int = 1,
    max_concurrent_rows: int | None = None,
) -> TaskParts:
    tokenizer, policy = models.tokenizer, models.policy
    reader = prompt_reader(task, tokenizer)
    train_prompts, eval_prompts = prompt_sets(task, reader)
    chat = reader if isinstance(reader, ChatTemplate) and reader.heard else None
    base = TokenVectorEnv(
        num_rows,
        prompts=train_prompts,
        tokenizer=tokenizer,
        eos_token_id=policy.eos_token_id,
        vocab_size=policy.vocab_size,
        max_new_tokens=task.max_new_tokens,
        group_size=group_size,
    )
    reward = PreferenceReward(
        base,
        found.scorers if chat is None else [chat.scorer(scorer) for scorer in found.scorers],
        combine=task.reward_combine,
        weights=task.reward_weights or None,
        uncertainty_coef=task.reward_uncertainty_coef,
        names=found.names,
    )
    return TaskParts(
        tokenizer=tokenizer,
        start=models.start,
        reward=reward,
        chat=chat,
        judge=_judge() if judged else None,
        eval_prompts=eval_prompts,
        max_new_tokens=task.max_new_tokens,
        max_concurrent_rows=max_concurrent_rows,
    )


def save_model(policy: CausalLMPolicy, tokenizer: Any, path: Path) -> None:
    """Leave model and tokenizer at ``path`` for ``AutoModelForCausalLM.from_pretrained``; whole or not at all."""

    def write(folder: Path) -> None:
        model = policy.model if policy.adapters is None else policy.adapters.merged()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_folder_aside(path, write)


def prompt_reader(config: TextTask, tokenizer: Any) -> Any:
    """What turns prompts into token ids: the tokenizer, or its chat template around it.

    Raises:
        ValueError: if a chat template is asked for and there is none.
    """
    if config.chat_template or getattr(tokenizer, "chat_template", None):
        return ChatTemplate(tokenizer, wrap=config.chat_template)
    return tokenizer


def prompt_sets(config: TextTask, tokenizer: Any) -> tuple[Any, Any]:
    """Training prompts and evaluation prompts; ``tokenizer`` is what `prompt_reader` gives."""
    if config.prompts is None:
        splits = movie_review_splits()
        words, count = OPENING_WORDS, config.num_eval_prompts
        texts = [
            openings(splits.prompt_train, num_words=words, count=NUM_OPENINGS, seed=0),
            openings(splits.prompt_test, num_words=words, count=count, seed=0),
        ]
        if config.chat_template:
            return tuple([tokenizer(text)["input_ids"] for text in part] for part in texts)  # type: ignore[return-value]
        return texts[0], texts[1]
    train = _lines(config.prompts, tokenizer)
    if config.eval_prompts is not None:
        return train, _lines(config.eval_prompts, tokenizer)[: config.num_eval_prompts]
    if len(train) < 2:
        raise ValueError(f"{config.prompts}: one prompt cannot be split; add prompts or pass --eval-prompts")
    num_held_out = min(config.num_eval_prompts, max(1, len(train) // 10))
    return train[num_held_out:], train[:num_held_out]


def _lines(path: str, tokenizer: Any) -> Prompts:
    """The prompts of a file as token ids, in its order."""
    return load_prompts(path, tokenizer, vocab_size=len(tokenizer))


def save_adapter(policy: CausalLMPolicy, path: Path) -> None:
    """Leave the policy's adapter at ``path`` for ``PeftModel.from_pretrained``, if it has one; whole or not at all."""
    if policy.adapters is not None:
        write_folder_aside(path, policy.adapters.save)


def _judge() -> Any:
    from reward_models.evaluation.sentiment_judge import Judge

    return Judge.fit_or_load()
