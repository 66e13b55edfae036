"""A text agent from an environment: its policy, its collector and its settings, and the calls that only text has.

What a batch teaches is not here: see ``agents.text``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from gymnasium.vector import VectorEnv

from agents.agent import EnvLike
from agents.algorithms.options import TextOptions
from agents.algorithms.policies import PolicyLike, build_policy, language_model, reward_critic, starting_policy
from agents.algorithms.token_environments import TokenVectorLike, token_vector
from agents.config import check_settings, with_settings
from agents.functional.schedules import Linear
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.saving import save_model
from agents.runs import checkpoint
from agents.runs.devices import check_device
from agents.runs.logging import MetricSink
from agents.text.agent import TextAgent, check_parts
from agents.text.collector import TextCollector, kl_shaping_of
from agents.text.config import PAPERS, Algorithm, Paper, TextAgentConfig, paper_settings
from agents.text.presets import learning_rate_for, preset_settings
from agents.text.stepwise import generate_by_acting
from agents.text.writer import engine_options
from agents.update import Objective, absent_objective
from textenvs.envs.base import TokenVectorBase
from textenvs.tokens.prompts import load_prompts
from textenvs.tokens.tokenizers import decode_rows

Self = TypeVar("Self", bound="TextAlgorithm")


class TextAlgorithm(TextAgent):
    """An algorithm on a token environment; the unit of ``learn``, ``steps`` and the logger is the text.

    Args:
        env: an id, a `textenvs.TokenEnv`, a `textenvs.TokenVectorEnv` or a wrapper of it; None only with ``load``.
        config: settings of the algorithm; None: its preset (``agents.text.presets``).
        policy: directory or name of a causal LM, a transformers model, a ``CausalLMPolicy``, or any module that
            implements ``agents.interfaces.Policy`` over rows of tokens. None: a copy of the language model that the
            environment measures the KL against.
        preset: name in ``agents.text.config.PAPERS`` whose settings to start from, such as "dapo" for GRPO or
            "reinforce++" for REINFORCE; None: the algorithm's own. Not with ``config``.
        logger, objective, verbose: as in ``Agent``.
        settings: fields of ``config`` and of ``TextOptions`` as keywords.

    Raises:
        ValueError: if no policy can be known, if it does not fit the environment, or for settings that are unknown or
            do not apply.
    """

    name: ClassVar[Algorithm]
    """the algorithm's, in ``TextAgentConfig`` and in checkpoints"""

    def __init__(
        self,
        env: EnvLike,
        config: TextAgentConfig | None = None,
        policy: PolicyLike | None = None,
        *,
        preset: Paper | None = None,
        logger: MetricSink | None = None,
        objective: Objective | None = None,
        verbose: int = 0,
        **settings: Any,
    ) -> None:
        if config is not None and not isinstance(config, TextAgentConfig):
            raise ValueError(f"config: expected a TextAgentConfig, received {type(config).__name__}")
        start = self._preset(preset, config)
        options, given = _split(settings)
        group_size = given.get("group_size", PAPERS[start].get("group_size", 1))
        envs = token_vector(env, options.batch_size, group_size if config is None else config.group_size)
        if "batch_size" in settings and options.batch_size != envs.num_envs:
            raise ValueError(
                f"batch_size: expected {envs.num_envs}, the environment's number of rows, received {options.batch_size}"
            )
        model, beta = language_model(envs, policy), None
        own_rate = config is None and "learning_rate" not in given
        if config is None:
            more = reward_critic(start, envs, model, settings | {"objective": objective})
            beta = more.pop("beta", None)
            options, given = _split(more | settings)
        self.options = options = replace(options, batch_size=envs.num_envs)
        config = self._config(envs.num_envs, start, config, given)
        check_device(config.device)
        self.env_id = env if isinstance(env, str) else None
        self.policy_source = os.fspath(policy) if isinstance(policy, str | os.PathLike) else None
        self._own_policy = policy is None
        _set_kl(envs, config, options.beta, suggested=beta)
        module = build_policy(envs, model, config, options)
        if own_rate:
            config = replace(config, learning_rate=_learning_rate(self.name, module))
        super().__init__(
            config, module, _collector(envs, module, config, options), reference=_reference(envs, config, options),
            logger=logger, objective=objective, verbose=verbose,
        )  # fmt: skip
        self.env = envs

    @classmethod
    def _preset(cls, preset: Paper | None, config: TextAgentConfig | None) -> Paper:
        known = [name for name in PAPERS if paper_settings(name)["algorithm"] == cls.name]
        if preset is not None and (preset not in known or config is not None):
            raise ValueError(f"preset: expected one of {', '.join(known)}, without config; received {preset!r}")
        return preset or cls.name

    @classmethod
    def _config(
        cls, rows: int, preset: Paper, config: TextAgentConfig | None, settings: dict[str, Any]
    ) -> TextAgentConfig:
        if config is not None:
            if config.algorithm != cls.name:
                raise ValueError(f"config: expected one of {cls.name}, received one of {config.algorithm}")
            return with_settings(TextAgentConfig, config, settings)
        check_settings(TextAgentConfig, settings)
        chosen = preset_settings(preset, settings)
        if "minibatch_size" not in settings and chosen["minibatch_size"] is not None:
            # The preset is for batches of 256: four optimizer steps a pass, whatever the batch.
            chosen["minibatch_size"] = min(chosen["minibatch_size"], max(1, rows // 4))
        return TextAgentConfig(**chosen)

    def set_env(self, env: EnvLike) -> None:
        """Learn in another token environment from its first prompts on, at the price of the KL that is chosen there, or
        else at the one so far.

        Raises:
            ValueError: if the policy does not fit it.
        """
        envs = token_vector(env, self.options.batch_size, self.config.group_size)
        old = None if self.env is None else kl_shaping_of(self.env)
        _set_kl(envs, self.config, None, suggested=None if old is None else old.beta)
        new = kl_shaping_of(envs)
        price = None if new is None else new.beta
        collector = _collector(envs, self.policy, self.config, self.options)
        if new is not None and price is not None and self.options.kl_controller is not None:
            new.beta = price  # where a controller's line has come to, not its start
        reference = _reference(envs, self.config, self.options)
        check_parts(self.config, self.policy, collector, reference)
        self.collector, self.reference = collector, reference
        self.env, self.env_id = envs, env if isinstance(env, str) else None

    @property
    def _base(self) -> TokenVectorBase:
        assert self.env is not None
        assert isinstance(self.env.unwrapped, TokenVectorBase)
        return self.env.unwrapped

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int | None = None, deterministic: bool = False
    ) -> list[str]:
        """What the policy writes after each of ``prompts``.

        Args:
            prompts: texts, tokenized as the environment's prompts are.
            max_new_tokens: budget; None: the environment's.
            deterministic: always the likeliest token.

        Raises:
            ValueError: if the environment has no tokenizer, or a prompt has no token.
        """
        base = self._base
        if base.tokenizer is None:
            raise ValueError("generate needs text, and this environment has no tokenizer: call policy's own generation")
        if isinstance(prompts, str):
            raise ValueError(
                f"prompts: expected a list of texts, received the text {prompts!r:.80}: write [{prompts!r:.80}]"
            )
        rows = load_prompts(list(prompts), base.tokenizer, vocab_size=base.vocab_size)
        tokens = torch.from_numpy(rows.tokens).to(self.policy.device)
        written = _writer(self.policy)(
            self.policy,
            tokens,
            max_new_tokens=base.max_new_tokens if max_new_tokens is None else max_new_tokens,
            generator=self.predict_generator,
            deterministic=deterministic,
        )
        return decode_rows(base.tokenizer, rows.tokens, written.completions.cpu().numpy())[1]

    def save_pretrained(self, path: str | Path) -> None:
        """Write model and tokenizer to a folder that ``AutoModelForCausalLM.from_pretrained`` loads, whole or not at
        all.

        With adapters, the merged model.

        Raises:
            ValueError: if the policy is no causal LM of transformers.
        """
        if not isinstance(self.policy, CausalLMPolicy):
            raise ValueError(
                f"save_pretrained: expected a CausalLMPolicy, this agent has a {type(self.policy).__name__}"
            )
        tokenizer: Any = self._base.tokenizer  # of transformers, as the policy's
        save_model(self.policy, tokenizer, Path(path))

    def state_dict(self) -> dict[str, Any]:
        """As every agent's, with what ``load`` needs to build environment and policy again."""
        text = {
            "env_id": self.env_id,
            "policy": self.policy_source,
            "own_policy": self._own_policy,
            "options": self.options.to_dict(),
        }
        return {**super().state_dict(), "text": text}

    @classmethod
    def from_state(  # type: ignore[override]  # only these keywords: an unknown one must not be ignored
        cls: type[Self],
        state: dict[str, Any],
        env: EnvLike | None = None,
        *,
        policy: PolicyLike | None = None,
        device: str | None = None,
        logger: MetricSink | None = None,
        objective: Objective | None = None,
    ) -> Self:
        """Build the agent that ``state_dict`` gave ``state`` of; arguments and errors as in ``load``."""
        cls._refuse_other(state)
        objective = objective or absent_objective(state.get("objective"))
        known = state["text"]
        env = known["env_id"] if env is None else env
        policy = known["policy"] if policy is None else policy
        if env is None:
            raise checkpoint.CheckpointError("the agent was trained in an environment without an id: pass env=")
        if policy is None and not known["own_policy"]:
            raise checkpoint.CheckpointError("the agent's policy was handed over as an object: pass policy=")
        config = TextAgentConfig.from_dict(state["config"] | ({} if device is None else {"device": device}))
        options = dict(vars(TextOptions.from_dict(known["options"])))
        if isinstance(env, VectorEnv):  # which has a number of rows
            del options["batch_size"]
        agent = cls(env, config, policy, logger=logger, objective=objective, **options)
        state["config"] = agent.config.to_dict()
        agent.load_state_dict(state)
        return agent

    @classmethod
    def _refuse_other(cls, state: dict[str, Any]) -> None:
        super()._refuse_other(state)
        if state["algorithm"] != cls.name:
            raise checkpoint.CheckpointError(f"the checkpoint is of {state['algorithm']!r}, not {cls.name!r}")


def _split(settings: dict[str, Any]) -> tuple[TextOptions, dict[str, Any]]:
    """The options among ``settings``, and the rest, which are of the algorithm."""
    own = {field.name for field in fields(TextOptions)} & settings.keys()
    options = TextOptions(**{name: settings[name] for name in own})
    return options, {name: value for name, value in settings.items() if name not in own}


def _set_kl(envs: TokenVectorLike, config: TextAgentConfig, beta: float | None, *, suggested: float | None) -> None:
    """Have ``envs`` charge the KL as ``config`` says, at ``beta``; None: its own, or else ``suggested``."""
    shaping = kl_shaping_of(envs)
    if shaping is None:
        if beta is not None:
            raise ValueError("beta: the environment has no KLShaping, so there is no KL to be charged; pass reference=")
        return
    shaping.charge = config.kl_in != "loss"
    shaping.suggest_beta(suggested)
    if beta is not None:
        shaping.beta = beta


def _reference(envs: TokenVectorLike, config: TextAgentConfig, options: TextOptions) -> CausalLMPolicy | None:
    """What ``config`` measures an exact KL or branches against; None if it does neither."""
    exact = config.kl_in != "reward" and config.kl_estimator == "full"
    return starting_policy(envs, config, options) if exact or config.branches else None


def _learning_rate(algorithm: Algorithm, policy: torch.nn.Module) -> Linear:
    adapters = getattr(policy, "adapters", None) is not None
    model = getattr(policy, "model", policy)
    return learning_rate_for(algorithm, sum(each.numel() for each in model.parameters()), adapters=adapters)


def _writer(policy: Any) -> Any:
    return generate if isinstance(policy, CausalLMPolicy) else getattr(type(policy), "generate", generate_by_acting)


def _collector(envs: TokenVectorLike, policy: Any, config: TextAgentConfig, options: TextOptions) -> TextCollector:
    return TextCollector(
        envs, seed=config.seed, missing_eos_penalty=options.missing_eos_penalty,
        overlong_penalty=options.overlong_penalty, overlong_cache=options.overlong_cache,
        kl_controller=options.kl_controller, score_scaler=options.score_scaler, generate=_writer(policy),
        max_concurrent_rows=options.max_concurrent_rows, dynamic_sampling=config.dynamic_sampling,
        **engine_options(config),
    )  # fmt: skip
