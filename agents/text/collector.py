"""Collects whole episodes of text: draw prompts, generate completions, score all rows in one call (the batch path).

The step path through the same environment gives the same tokens and rewards, more slowly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from agents.engines.protocol import Engine
from agents.functional.advantages import values_of_next_steps
from agents.functional.masked import fill_masked
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decoder import Generation
from agents.lm.generation import generate as generate_completions
from agents.lm.policy_reference import check_apart
from agents.lm.sampling import uniform
from agents.lm.saving import named_weights
from agents.rollout import Rollout
from agents.runs.distributed import ALONE, Processes
from agents.text.behavior import corrected, texts_of
from agents.text.config import Correction, correction_of
from agents.text.dynamic_sampling import fill_rollout
from agents.text.kl_controllers import KLController
from agents.text.rollout_metrics import rollout_metrics
from agents.text.score_scaling import ScoreScaler, overlong_punishment
from agents.text.writer import WeightsOf, Writer
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.wrapper import TokenVectorWrapper, found_in
from textenvs.lm.packed_forward import pack_rows
from textenvs.tokens.end_tokens import end_tokens
from textenvs.tokens.rows import TokenRows, join_rows, last_action_index
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward


class TextCollector:
    """One rollout a call: one episode in each sub-environment of ``envs``.

    Args:
        envs: a `textenvs.TokenVectorEnv` or one of textenvs' wrappers around it.
        seed: of the prompts' order and of the sampled tokens.
        missing_eos_penalty: subtracted from the last reward of a row that reached the token budget, reward units, >= 0.
        overlong_penalty: times ``overlong_punishment``, added to the last reward of long rows, reward units, >= 0.
        overlong_cache: tokens before the budget over which it grows; None: a fifth of the budget, as in its paper.
        kl_controller: adapts the KL coefficient between rollouts; None: it is constant.
        score_scaler: applied to scores before they are paid; metrics keep the raw scores. None: no scaling.
        generate: the policy's own: ``agents.lm.generation.generate`` or a function with its arguments.
        engine: writes in its place (``agents.engines``); None: the policy itself.
        async_rollouts: updates by which what wrote a batch may be behind; 1: the next one is written in the meantime.
        correction: importance weights; None: "sequence_truncate" unless the policy itself writes; see
            ``agents.functional.correction``. Without, the writer's log-probs count as the policy's own.
        correction_bounds: of their ratio.
        max_concurrent_rows: rows decoded at a time, passed to ``generate`` unless it is None; None: all at once.
        dynamic_sampling: most batches drawn beside the first; see ``agents.text.dynamic_sampling``.
        processes: that share the work, each with its own collector; see ``agents.runs.distributed``.
        weights_of: what an engine is sent of the policy; ``agents.lm.sharding.lent_weights`` of a sharded one.

    Raises:
        ValueError: for another environment, a negative penalty, ``max_concurrent_rows`` below 1, a controller over an
            environment without KLShaping, a scaler over one without a scorer, or fewer sub-environments than processes.
    """

    counts = "rows"

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        *,
        seed: int = 0,
        missing_eos_penalty: float = 0.0,
        overlong_penalty: float = 0.0,
        overlong_cache: int | None = None,
        kl_controller: KLController | None = None,
        score_scaler: ScoreScaler | None = None,
        generate: Callable[..., Generation] = generate_completions,
        engine: Engine | None = None,
        async_rollouts: int = 0,
        correction: Correction | None = None,
        correction_bounds: tuple[float, float] = (0.0, 3.0),
        max_concurrent_rows: int | None = None,
        dynamic_sampling: int = 0,
        processes: Processes = ALONE,
        weights_of: WeightsOf = named_weights,
    ) -> None:
        for name, penalty in (("missing_eos_penalty", missing_eos_penalty), ("overlong_penalty", overlong_penalty)):
            if not penalty >= 0:
                raise ValueError(f"{name}: expected reward units >= 0, received {penalty}")
        if not isinstance(envs, TokenVectorBase | TokenVectorWrapper):
            raise ValueError(f"envs: expected a TokenVectorEnv or one of textenvs' wrappers, received {envs}")
        self.envs = envs
        self.base = envs if isinstance(envs, TokenVectorBase) else envs.base
        self.missing_eos_penalty = float(missing_eos_penalty)
        if overlong_cache is not None and not overlong_penalty:
            raise ValueError("overlong_cache needs overlong_penalty, which is 0")
        self.overlong_penalty, budget = float(overlong_penalty), self.base.max_sampled_tokens
        self.overlong_cache = max(1, budget // 5) if overlong_cache is None else overlong_cache
        if not 1 <= self.overlong_cache <= budget:
            raise ValueError(f"overlong_cache: expected 1 to {budget} tokens, the budget, received {overlong_cache}")
        if score_scaler is not None and found_in(envs, PreferenceReward) is None:
            raise ValueError(
                "score_scaler (normalize_scores, score_clip): expected an environment with a scorer, received none"
            )
        self.dynamic_sampling = dynamic_sampling
        self.kl_controller, self.score_scaler = kl_controller, score_scaler
        self.processes = processes
        self.writer = Writer(
            envs, seed=seed, engine=engine, generate=generate, max_concurrent_rows=max_concurrent_rows,
            ahead=async_rollouts, processes=processes, weights_of=weights_of,
        )  # fmt: skip
        self.correction = correction_of(correction, on_policy=self.writer.on_policy)
        self.correction_bounds = correction_bounds
        if self.base.num_envs < processes.count:
            raise ValueError(f"expected {processes.count} rows or more, one a process, received {envs.num_envs}")
        self._kl_shaping = kl_shaping_of(envs)
        if kl_controller is not None:
            if self._kl_shaping is None:
                raise ValueError("kl_controller: expected an environment with KLShaping, received one without")
            if kl_controller.start is not None:
                self._kl_shaping.beta = kl_controller.start
        self._charges_kl = self.charges_kl
        self._suggested_beta = None if self._kl_shaping is None else self._kl_shaping.suggested_beta
        self.beta = 0.0 if self._kl_shaping is None else self._kl_shaping.beta
        """KL coefficient of the newest rollout, reward units per nat."""
        self.last: TokenRows | None = None
        """The rows of the newest rollout, to show samples from."""

    @property
    def group_size(self) -> int:
        """Consecutive rows that share a prompt."""
        return self.base.group_size

    @property
    def charges_kl(self) -> bool | None:
        """Whether rewards include the KL penalty; None: the KL is not measured."""
        return None if self._kl_shaping is None else self._kl_shaping.charge

    def collect(self, policy: CausalLMPolicy) -> tuple[Rollout, dict[str, float]]:
        """Play one episode in each sub-environment; with ``dynamic_sampling`` several, of which some are returned.

        Returns:
            The rollout, ``[B, T]`` with prompts ``[B, P]`` as observations, and its metrics
            (``agents.text.rollout_metrics.METRICS``).

        Raises:
            ValueError: if the policy's end-of-text token or vocabulary is not the environment's, or if the rows of a
                group do not share their prompt (the environment was stepped before).
        """
        self.check_fits(policy)
        if self._kl_shaping is not None:  # another agent in the same environment may have set it for itself
            self._kl_shaping.charge = bool(self._charges_kl)
            self._kl_shaping.suggest_beta(self._suggested_beta)
        draw = partial(self._draw, policy)
        rollout, self.last, metrics = fill_rollout(draw, self.group_size, self.dynamic_sampling)
        metrics |= self._update_kl_coef(metrics, rollout.num_rows)
        self.writer.advance(policy)
        return rollout, metrics

    def _draw(self, policy: CausalLMPolicy) -> tuple[Rollout, TokenRows, dict[str, float]]:
        """One episode in each sub-environment, as a rollout and as rows, and its metrics."""
        start = time.perf_counter()
        draft = self.writer.draft(policy)
        generated = time.perf_counter()
        prompts, shard = draft.prompts, self.processes.shard(len(draft.prompts))
        here = torch.from_numpy(prompts[shard]).to(policy.device)
        written, itself = draft.written.result(), self.writer.on_policy
        texts = texts_of(policy, here, written, correction=self.correction, on_policy=itself)
        completions, logprobs = texts["actions"].cpu().numpy(), texts["logprobs"].cpu().numpy()
        rows = self.envs.play(prompts[shard], completions, logprobs, columns=draft.columns)
        if self.processes.count > 1:
            texts, rows = self._all_gather(texts, rows)
        rollout = self._rollout(policy, torch.from_numpy(prompts).to(policy.device), texts, rows)
        rollout, mismatch = corrected(
            rollout, mode=self.correction, bounds=self.correction_bounds, version=self.writer.version
        )
        metrics = {f"rollout/{name}": value for name, value in (rollout_metrics(rows) | mismatch).items()}
        metrics["rollout/return_mean"] = float(rollout.rewards.sum()) / len(prompts)
        metrics |= {"time/generate_s": generated - start, "time/score_s": time.perf_counter() - generated}
        return rollout, rows, metrics

    def state_dict(self) -> dict[str, Any]:
        """All that the next ``collect`` depends on: the generator, an unused seed, the environment's state."""
        return {
            **self.writer.state_dict(),
            "score_scaler": None if self.score_scaler is None else self.score_scaler.state_dict(),
            "settings": self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from ``state_dict``; ValueError if it has another penalty, score scaler or KL
        controller."""
        ours, theirs = self._settings(), {"overlong": None, **state["settings"]}
        other = [f"{name} {theirs[name]!r} (here {ours[name]!r})" for name in ours if theirs[name] != ours[name]]
        if other:
            raise ValueError(f"the rollouts were collected with other settings: {', '.join(other)}")
        self.writer.load_state_dict(state)
        if self.score_scaler is not None:
            self.score_scaler.load_state_dict(state["score_scaler"])

    def _settings(self) -> dict[str, Any]:
        """What determines rewards besides the environment, as plain values."""
        scaler, controller = self.score_scaler, self.kl_controller
        return {
            "missing_eos_penalty": self.missing_eos_penalty,
            "overlong": [self.overlong_penalty, self.overlong_cache] if self.overlong_penalty else None,
            "score_scaler": None if scaler is None else [scaler.standardize, scaler.limit],
            "kl_controller": None if controller is None else [type(controller).__name__, dict(vars(controller))],
        }

    def _all_gather(self, own: dict[str, Tensor], rows: TokenRows) -> tuple[dict[str, Tensor], TokenRows]:
        """All processes' rows; a local engine's generator advances to where the longest of all leaves it."""
        steps = int(rows.mask.sum(1).max())
        shards = self.processes.all_gather(({name: part.cpu() for name, part in own.items()}, rows))
        device = own["actions"].device
        whole = {name: torch.cat([each[name] for each, _ in shards]).to(device) for name in own}
        joined = join_rows([rows for _, rows in shards])
        for _ in range(steps, int(joined.mask.sum(1).max()) if self.writer.local else 0):
            uniform(len(joined.mask), self.writer.generator, device)
        return whole, joined

    def _rollout(self, policy: CausalLMPolicy, prompts: Tensor, texts: dict[str, Tensor], rows: TokenRows) -> Rollout:
        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(prompts.device)

        mask = tensor(rows.mask)
        last = last_action_index(rows.mask)
        rewards = rows.rewards.copy()
        if self.score_scaler is not None:
            assert rows.scores is not None
            rewards[np.arange(len(last)), last] += self.score_scaler(rows.scores) - rows.scores
        rewards[np.arange(len(last)), last] -= self.missing_eos_penalty * (rows.stop_reason == "length")
        if self.overlong_penalty:
            limit, lengths = self.base.max_sampled_tokens, rows.mask.sum(1)
            punished = overlong_punishment(lengths, limit=limit, cache=self.overlong_cache)
            rewards[np.arange(len(last)), last] += self.overlong_penalty * punished
        ended = torch.zeros_like(mask)
        ended[torch.arange(len(last)), torch.from_numpy(last)] = True
        values = fill_masked(texts.pop("values"), mask)
        next_values = values_of_next_steps(values, mask)
        if rows.truncated.any() and policy.has_critic:
            final = policy.values(pack_rows(prompts, texts["actions"]))
            next_values = torch.where(ended & tensor(rows.truncated)[:, None], final[:, None], next_values)
        return Rollout(
            observations=prompts,
            actions=texts.pop("actions"),
            logprobs=fill_masked(texts.pop("logprobs"), mask),
            values=values,
            next_values=next_values,
            rewards=tensor(rewards),
            terminated=ended & tensor(rows.terminated)[:, None],
            ended=ended,
            mask=mask,
            ref_logprobs=None if rows.ref_logprobs is None else tensor(rows.ref_logprobs),
            turns=None if rows.turns is None else tensor(rows.turns),
            states=None if rows.states is None else tensor(rows.states),
            **texts,
        )

    def _update_kl_coef(self, metrics: dict[str, float], episodes: int) -> dict[str, float]:
        if self._kl_shaping is None:
            return {}
        beta = self.beta = self._kl_shaping.beta
        if self.kl_controller is not None:
            self._kl_shaping.beta = self.kl_controller.updated(beta, metrics["rollout/kl_per_sequence"], episodes)
        return {"rollout/beta": beta}

    def check_fits(self, policy: Any) -> None:  # a `TextPolicy` with a vocab_size
        """Raise ValueError unless ``policy`` has the environment's end of text and vocabulary, and trains another model
        than its reference."""
        if self._kl_shaping is not None:
            check_apart(policy, self._kl_shaping.reference)
        if end_tokens(policy.eos_token_id) != end_tokens(self.base.eos_token_id):
            raise ValueError(
                f"policy: expected the environment's end of text {self.base.eos_token_id}, received "
                f"{policy.eos_token_id}"
            )
        excess = policy.vocab_size - self.base.vocab_size
        sampling = getattr(policy, "sampling", None)  # a policy of one's own need not have any
        if excess < 0 or (excess > 0 and getattr(sampling, "allowed_tokens", None) is None):
            raise ValueError(
                f"policy: expected the environment's vocabulary of {self.base.vocab_size} tokens, received "
                f"{policy.vocab_size}: build the environment with vocab_size=policy.vocab_size"
            )


def kl_shaping_of(envs: VectorEnv[Any, Any, Any]) -> KLShaping | None:
    """The `KLShaping` among the wrappers of ``envs``; None if there is none."""
    return found_in(envs, KLShaping)
