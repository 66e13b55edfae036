"""Builds a text run from its configuration: the models and how they share memory, the task, and what learns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from agents.algorithms.token_environments import TokenVectorLike
from agents.evaluation.assessor import Assessor, EpisodeAssessor
from agents.evaluation.metrics import PassingRule, TextJudge
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.critic import start_critic_as_reward
from agents.lm.generation import generate
from agents.lm.lora import LoraOptions
from agents.lm.policy_reference import PolicyReference
from agents.lm.sharding import lent_weights, mesh_of, shard, with_whole_weights
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.episodes import build_episodes
from agents.recipes.rlhf.models import StartModels, build_policy, build_start, model_path
from agents.recipes.rlhf.prompts import prompt_reader, prompt_sets
from agents.recipes.rlhf.rewards import build_scorers, is_checked, passing_rule
from agents.recipes.rlhf.task import TextTask
from agents.runs.distributed import ALONE, Processes
from agents.runs.flags import json_object
from agents.text.collector import TextCollector
from agents.text.writer import engine_options
from textenvs.envs.vector import TokenVectorEnv
from textenvs.tokens.row_files import column_names, statement
from textenvs.tokens.tokenizers import load_tokenizer
from textenvs.wrappers.chat_prompts import ChatTemplate
from textenvs.wrappers.interfaces import Scorer
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A task without a learner: the starting model in its roles, and what it acts in."""

    models: StartModels
    envs: TokenVectorLike
    """What training acts in: over its prompts, with their rewards."""
    scorers: list[Scorer]
    """As the configuration lists them."""
    assessor: Assessor
    """Of any policy on the evaluation prompts, with the environment's preference reward."""
    about: str
    """A line about the prompts, for people."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextParts:
    """A task, and the policy and collector that learn it."""

    task: Task
    policy: CausalLMPolicy
    collector: TextCollector


def build_task(
    config: TextTask,
    *,
    num_envs: int = 1,
    group_size: int = 1,
    max_concurrent_rows: int | None = None,
    lora: LoraOptions | None = None,
    value_adapter: bool = False,
    compile: bool = False,
    judge: bool = True,
    passing: PassingRule | None = None,
    began: str | None = None,
    device: str | None = None,
) -> Task:
    """Load the starting model, prompts and scorers; whatever is wrong with an input is found here.

    ``group_size`` sub-environments in a row share a prompt; ``max_concurrent_rows`` texts are decoded at a time in
    evaluations; ``lora``, ``value_adapter``, ``compile`` and ``device`` are of ``build_start``; without ``judge`` the
    independent judge is left out, whatever ``config`` says; ``began`` is the time that chat templates read, ISO, None:
    the present.

    Raises:
        ValueError, OSError: with a message that names the input.
    """
    tokenizer = load_tokenizer(model_path(config), json_object(config.template_kwargs), began)
    start = partial(
        build_start, config, tokenizer, lora=lora, value_adapter=value_adapter, compile=compile, device=device
    )
    if isinstance(config, TrainTextConfig) and config.plays:
        return _episodes(config, start(), num_envs, group_size, max_concurrent_rows, passing)
    reader = prompt_reader(config, tokenizer)
    train_prompts, eval_rows = prompt_sets(config, reader)
    chat = reader if isinstance(reader, ChatTemplate) and reader.has_chats else None
    models = start()
    env = TokenVectorEnv(
        num_envs,
        prompts=train_prompts,
        tokenizer=tokenizer,
        eos_token_id=models.start.eos_token_id,
        vocab_size=models.start.vocab_size,
        max_new_tokens=config.max_new_tokens,
        group_size=group_size,
    )
    scorers, names = build_scorers(config, models.adapters)
    reward = _reward(config, names)(env, scorers if chat is None else [chat.scorer(scorer) for scorer in scorers])
    assessor = Assessor(
        tokenizer=tokenizer,
        reward=reward,
        reference=PolicyReference(models.plain, tokenizer),
        prompts=eval_rows,
        max_new_tokens=config.max_new_tokens,
        max_concurrent_rows=max_concurrent_rows,
        chat=chat,
        judge=_judge() if config.judge and judge and not is_checked(config) else None,
        passing=passing,
    )
    kind = env.prompts.kind
    about = statement(
        f"{kind} of {column_names(kind)}" if config.rows else "openings of movie reviews",
        len(env.prompts),
        len(eval_rows),
    )
    return Task(models=models, envs=reward, scorers=scorers, assessor=assessor, about=about)


def _reward(config: TextTask, names: list[str]) -> Callable[..., PreferenceReward]:
    """What pays scorers of these ``names`` in an environment."""
    return partial(
        PreferenceReward, combine=config.reward_combine, weights=config.reward_weights or None,
        uncertainty_coef=config.reward_uncertainty_coef, names=names,
    )  # fmt: skip


def _episodes(
    config: TrainTextConfig,
    models: StartModels,
    num_envs: int,
    group_size: int,
    max_concurrent_rows: int | None,
    passing: PassingRule | None,
) -> Task:
    """The task of a run whose episodes are an environment's."""
    scorers, names = build_scorers(config, models.adapters) if config.reward else ([], [])
    start, tokenizer, count = models.start, models.tokenizer, config.num_eval_rows
    tokens: dict[str, Any] = dict(tokenizer=tokenizer, vocab_size=start.vocab_size, eos_token_id=start.eos_token_id)
    build = partial(
        build_episodes, config, scorers=scorers, reward=_reward(config, names), positions=start.max_positions, **tokens
    )
    assessor = EpisodeAssessor(
        tokenizer=tokenizer,
        reference=PolicyReference(models.plain, tokenizer),
        prompts=[""] * count,
        max_new_tokens=config.max_new_tokens,
        max_concurrent_rows=max_concurrent_rows,
        passing=passing,
        envs=build(num_envs=count, group_size=1, held_out=True),
    )
    about = f"episodes of {config.env or config.tools}; {count} others to evaluate on"
    envs = build(num_envs=num_envs, group_size=group_size)
    return Task(models=models, envs=envs, scorers=scorers, assessor=assessor, about=about)


def _task_and_policy(
    config: TrainTextConfig, processes: Processes, began: str | None, device: str | None = None
) -> tuple[Task, CausalLMPolicy]:
    task = build_task(
        config,
        num_envs=config.batch_size,
        group_size=config.group_size,
        max_concurrent_rows=config.max_concurrent_rows,
        lora=LoraOptions(rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed),
        value_adapter=config.critic(config.memory) == "adapter",
        compile=config.compile,
        judge=processes.is_main,
        passing=passing_rule(config),
        began=began,
        device=device,
    )
    policy = build_policy(config, task.models)
    if config.critic_start == "reward-model":
        base: Any = task.envs.unwrapped
        start_critic_as_reward(policy, task.models.tokenizer, task.scorers[0], base.prompts.row(0).tolist())
    return task, policy


def build_parts(config: TrainTextConfig, processes: Processes = ALONE, began: str | None = None) -> TextParts:
    """Build the task of ``config`` with its learner; arguments and errors as ``build_task``.

    Of ``processes``, among which the run is sharded, the main one alone evaluates, so it alone has the judge.
    """
    if config.shard == "none":
        task, policy = _task_and_policy(config, processes, began)
    else:
        mesh = mesh_of(processes, config.device)
        with processes.in_turn():  # of whole models on the CPU only the parts go to the device
            task, policy = _task_and_policy(config, processes, began, "cpu")
            shard([policy, task.models.start], processes, mesh, offload=config.offload)
    lent: dict[str, Any] = {}
    if config.engine and config.shard != "none":
        lent["weights_of"] = lent_weights([policy, task.models.start], processes)
    assessor = task.assessor
    charge = config.kl_in != "loss"
    assert assessor.reference is not None
    collector = TextCollector(
        KLShaping(task.envs, assessor.reference, config.beta, charge=charge),
        seed=config.seed,
        missing_eos_penalty=config.missing_eos_penalty,
        overlong_penalty=config.overlong_penalty,
        overlong_cache=config.overlong_cache,
        kl_controller=config.kl_controller(config.episodes),
        score_scaler=config.score_scaler(),
        max_concurrent_rows=config.max_concurrent_rows,
        dynamic_sampling=config.dynamic_sampling,
        processes=processes,
        generate=generate if config.shard_rollouts else with_whole_weights(generate, processes),
        **lent,
        **engine_options(config),
    )
    if config.engine:
        task = replace(task, assessor=replace(assessor, engine=collector.writer.evaluating))
    return TextParts(task=task, policy=policy, collector=collector)


def _judge() -> TextJudge:
    from reward_models.evaluation.sentiment_judge import Judge

    return Judge.fit_or_load()
