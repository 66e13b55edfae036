"""Builds a text run from its configuration: the models and how they share memory, the task, and what learns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents.evaluation.assessor import Assessor
from agents.evaluation.metrics import PassingRule, TextJudge
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.loading import DTYPES, autocast_of
from agents.lm.lora import POLICY, AdaptedTrunk, LoraOptions
from agents.lm.policy_reference import PolicyReference
from agents.lm.sampling import TokenSampling
from agents.lm.sharding import mesh_of, shard, with_whole_weights
from agents.recipes.rlhf.config import TrainTextConfig
from agents.recipes.rlhf.prompts import prompt_reader, prompt_sets
from agents.recipes.rlhf.rewards import build_scorers, is_checked, passing_rule, start_critic_as_reward
from agents.recipes.rlhf.task import TextTask
from agents.runs.distributed import ALONE, Processes
from agents.runs.flags import template_variables
from agents.text.collector import TextCollector
from textenvs import assets
from textenvs.envs.vector import TokenVectorEnv
from textenvs.lm.loading import load_causal_lm
from textenvs.tokens.end_of_text import end_of_text
from textenvs.tokens.row_files import column_names, statement
from textenvs.tokens.tokenizers import load_tokenizer
from textenvs.wrappers.chat_prompts import ChatTemplate
from textenvs.wrappers.interfaces import Scorer
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class StartModels:
    """The model that training starts from, frozen, and its tokenizer."""

    path: str
    """Its directory or name."""
    start: CausalLMPolicy
    """With the sampling rules of the task."""
    plain: CausalLMPolicy
    """At temperature 1; the KL is measured against it."""
    adapters: AdaptedTrunk | None
    """The trunk that start, policy and rewards share, or None."""
    tokenizer: PreTrainedTokenizerBase


def model_path(task: TextTask) -> str:
    """Where the language model is loaded from: the task's, or the shipped one."""
    return str(assets.language_model_dir()) if task.model is None else task.model


def build_start(
    task: TextTask,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lora: LoraOptions | None = None,
    value_adapter: bool = False,
    compile: bool = False,
    device: str | None = None,
) -> StartModels:
    """The task's starting model, laid out as ``task.memory`` says; it ends texts where ``tokenizer`` does.

    Args:
        task: whose settings count.
        tokenizer: the model's.
        lora: shape of the adapters that a learner will train (memory adapters).
        value_adapter: whether it will have one for the value.
        compile: run the passes through torch.compile.
        device: of the weights; None: the task's.

    Raises:
        ValueError: if no model or adapter can be loaded.
    """
    path, trunk, device = model_path(task), None, device or task.device
    if task.memory == "adapters":
        # A frozen weight is only ever read, and autocast would round it at each reading.
        model = load_causal_lm(path, dtype=DTYPES[task.dtype]).to(device)
        trunk = AdaptedTrunk(model, lora, value=value_adapter, start=task.adapter)
    else:
        model = load_causal_lm(path).to(device)
        model.requires_grad_(False)

    def frozen(sampling: TokenSampling) -> CausalLMPolicy:
        return CausalLMPolicy(
            model,
            eos_token_id=end_of_text(model, tokenizer),
            critic="none",
            sampling=sampling,
            adapters=trunk,
            role=POLICY if trunk is None else trunk.reference,
            autocast=autocast_of(task.dtype),
            compile=compile,
        )

    start = frozen(TokenSampling(temperature=task.temperature))
    plain = start if task.temperature == 1.0 else frozen(TokenSampling())
    return StartModels(path=path, start=start, plain=plain, adapters=trunk, tokenizer=tokenizer)


def build_policy(config: TrainTextConfig, models: StartModels) -> CausalLMPolicy:
    """The policy that learns: new adapters over the shared trunk, or another copy of the starting model."""
    trunk = models.adapters
    return CausalLMPolicy(
        load_causal_lm(models.path).to(models.start.device) if trunk is None else trunk.model,
        eos_token_id=models.start.eos_token_id,
        critic=config.critic(config.memory),
        sampling=models.start.sampling,
        adapters=trunk,
        role=POLICY,
        autocast=autocast_of(config.dtype),
        recompute=config.gradient_checkpointing,
        compile=config.compile,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A task without a learner: the starting model in its roles, and what it acts in."""

    models: StartModels
    env: TokenVectorEnv
    """Over the training prompts."""
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

    Args:
        config: of the task.
        num_envs: sub-environments.
        group_size: of them in a row that share a prompt.
        max_concurrent_rows: texts decoded at a time in evaluations; None: all.
        lora, value_adapter, compile, device: see ``build_start``.
        judge: False leaves the independent judge out, whatever ``config`` says.
        passing: when a text is right, for accuracy and pass@k.
        began: the time that chat templates read, ISO; None: the present.

    Raises:
        ValueError, OSError: with a message that names the input.
    """
    tokenizer = load_tokenizer(model_path(config), template_variables(config.template_kwargs), began)
    reader = prompt_reader(config, tokenizer)
    train_prompts, eval_rows = prompt_sets(config, reader)
    chat = reader if isinstance(reader, ChatTemplate) and reader.has_chats else None
    models = build_start(config, tokenizer, lora=lora, value_adapter=value_adapter, compile=compile, device=device)
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
    reward = PreferenceReward(
        env,
        scorers if chat is None else [chat.scorer(scorer) for scorer in scorers],
        combine=config.reward_combine,
        weights=config.reward_weights or None,
        uncertainty_coef=config.reward_uncertainty_coef,
        names=names,
    )
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
    what = f"{env.prompts.kind} of {column_names(env.prompts.kind)}"
    about = statement(what if config.rows else "openings of movie reviews", len(env.prompts), len(eval_rows))
    return Task(models=models, env=env, scorers=scorers, assessor=assessor, about=about)


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
        start_critic_as_reward(policy, task.models.tokenizer, task.scorers[0], task.env.prompts.row(0).tolist())
    return task, policy


def build_parts(config: TrainTextConfig, processes: Processes = ALONE, began: str | None = None) -> TextParts:
    """Build the task of ``config`` with its learner.

    Args:
        config: the run's settings.
        processes: among which the run is sharded; the main one alone evaluates, so it alone has the judge.
        began: the time that chat templates read, ISO, of the first process; None: the present.

    Raises:
        ValueError, OSError: with a message that names the input.
    """
    if config.shard == "none":
        task, policy = _task_and_policy(config, processes, began)
    else:
        mesh = mesh_of(processes, config.device)
        with processes.in_turn():  # of whole models on the CPU only the parts go to the device
            task, policy = _task_and_policy(config, processes, began, "cpu")
            shard([policy, task.models.start], processes, mesh, offload=config.offload)
    assessor = task.assessor
    charge = config.kl_in != "loss"
    collector = TextCollector(
        KLShaping(assessor.reward, assessor.reference, config.beta, charge=charge),
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
    )
    return TextParts(task=task, policy=policy, collector=collector)


def _judge() -> TextJudge:
    from reward_models.evaluation.sentiment_judge import Judge

    return Judge.fit_or_load()
