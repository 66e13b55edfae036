"""Collect whole episodes of text: draw prompts, generate completions, score all rows in one call (the batch path).

The environment is a `textenvs.TokenVectorEnv` or a wrapper of it; any object with its `draw_prompts` and `play` serves.
The step path through the same environment gives the same tokens and rewards, more slowly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.functional.advantages import values_of_next_steps
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import Generation, check_max_concurrent_rows, generate
from agents.lm.sampling import uniform
from agents.rollout import Rollout
from agents.runs.distributed import ALONE, Processes
from agents.text.kl_controllers import KLController
from agents.text.score_scaling import ScoreScaler
from textenvs.lm.packed_forward import pack_rows
from textenvs.tokens.rows import PAD, TokenRows, join_rows, last_action_index

REPEATED = 3
"""Length of the n-grams of ``rollout/repetition``: that of Paulus et al. 2017, whose texts are as short as ours."""

METRICS: dict[str, str] = {
    "rollout/score": "mean score of the finished texts before any price, reward units",
    "rollout/score_std": "its standard deviation over the texts",
    "rollout/score_disagreement": "several scorers: mean over texts of the standard deviation over their members, "
    "whatever their weights, reward units",
    "rollout/score_disagreement/NAME": "the same within the ensemble of that name, where it is not all there is",
    "rollout/score/NAME": "several scorers: mean score by the member of that name, before scores are combined; members "
    "of an ensemble are NAME/0, NAME/1, ...",
    "rollout/return_mean": "mean over texts of the sum of the rewards that are learned from: prices, penalties and "
    "scaling of scores included, reward units",
    "rollout/kl_per_sequence": "mean over texts of sum_t (log pi - log pi_ref), nats: the k1 estimate that is charged",
    "rollout/kl_per_token": "the same sum divided by the number of tokens, nats",
    "rollout/beta": "price of a nat in this rollout, reward units",
    "rollout/surprisal": "mean of -log pi of the sampled tokens, nats per token: an estimate of the entropy",
    "rollout/length_mean": "mean tokens per text, the end-of-text token included",
    "rollout/length_p10": "a tenth of the texts has at most so many tokens",
    "rollout/length_p50": "their median",
    "rollout/length_p90": "nine tenths of the texts have at most so many tokens",
    "rollout/share_eos": "share of texts that ended by themselves (stop reason eos), [0, 1]",
    "rollout/share_length": "share of texts that ran out of budget (stop reason length), [0, 1]",
    "rollout/distinct_2": "different bigrams / bigrams in a text, averaged over texts, [0, 1]; low means repetition",
    "rollout/repetition": f"share of a text's {REPEATED}-grams that stood in it before, averaged over texts, [0, 1]",
    "time/generate_s": "seconds of this rollout spent writing",
    "time/score_s": "seconds of this rollout spent in the environment: scores and reference",
}
"""Every figure a rollout of text adds to those of ``agents.runs.logging``, with its formula and unit."""


class TextCollector:
    """One rollout a call: one episode in each sub-environment of ``envs``.

    Args:
        envs: with ``draw_prompts``, ``play``, ``state_dict``, ``load_state_dict`` and, unwrapped, ``max_new_tokens``,
            ``eos_token_id``, ``vocab_size``, ``budget`` and ``group_size``.
        seed: of the prompts' order and of the tokens drawn.
        missing_eos_penalty: reward units taken from the last action of a row that ran out of budget; >= 0.
        kl_controller: moves ``envs.beta``, e.g. ``agents.text.kl_controllers.AdaptiveKL``; None leaves it.
        score_scaler: what the score is turned into before it is paid; figures keep the raw one. None: nothing.
        write: what lets the policy write: ``agents.lm.generation.generate``, or another function of its arguments.
        max_concurrent_rows: texts written at a time, as ``write`` takes it if it is not None; None: all at once.
        processes: that share the work, each with such a collector; see ``agents.runs.distributed``.

    Raises:
        ValueError: for a negative penalty, ``max_concurrent_rows`` below 1, a controller over an environment without
        ``beta``, or
            fewer sub-environments than processes.
    """

    counts = "rows"

    def __init__(
        self,
        envs: Any,
        *,
        seed: int = 0,
        missing_eos_penalty: float = 0.0,
        kl_controller: KLController | None = None,
        score_scaler: ScoreScaler | None = None,
        write: Callable[..., Generation] = generate,
        max_concurrent_rows: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        check_max_concurrent_rows(max_concurrent_rows)
        if not missing_eos_penalty >= 0:
            raise ValueError(f"missing_eos_penalty must be >= 0 reward units, got {missing_eos_penalty}")
        self.envs = envs
        self.base = envs.unwrapped
        self.missing_eos_penalty = float(missing_eos_penalty)
        self.kl_controller = kl_controller
        self.score_scaler = score_scaler
        self.write, self.max_concurrent_rows, self.processes = write, max_concurrent_rows, processes
        if self.base.num_envs < processes.count:
            raise ValueError(f"{self.base.num_envs} texts cannot be shared out among {processes.count} processes")
        self._kl_wrapper = _wrapper_with_beta(envs)
        if kl_controller is not None and self._kl_wrapper is None:
            raise ValueError("kl_controller needs an environment with KLShaping: none of its wrappers has a beta")
        if kl_controller is not None and kl_controller.start is not None:
            self._kl_wrapper.beta = kl_controller.start
        self.beta = 0.0 if self._kl_wrapper is None else float(self._kl_wrapper.beta)
        """Price of a nat in the newest rollout, reward units."""
        self.generator = torch.Generator().manual_seed(seed)
        self._seed: int | None = seed
        self.last: TokenRows | None = None
        """The rows of the newest rollout, for samples to look at."""

    @property
    def group_size(self) -> int:
        """Texts in a row that share their prompt."""
        return int(self.base.group_size)

    @property
    def charges_kl(self) -> bool | None:
        """Whether rewards pay the KL's price; None: it is not measured."""
        return None if self._kl_wrapper is None else bool(self._kl_wrapper.charge)

    def collect(self, policy: CausalLMPolicy) -> tuple[Rollout, dict[str, float]]:
        """Play one episode in each sub-environment.

        Returns:
            The rollout, ``[B, T]`` with prompts ``[B, P]`` as observations, and figures of it, as ``METRICS`` explains.

        Raises:
            ValueError: if the policy's end-of-text token or vocabulary is not the environment's, or if a group does
                not share its prompt (the environment was stepped before).
        """
        self._check(policy)
        began = time.perf_counter()
        drawn = self.envs.draw_prompts() if self._seed is None else self.envs.draw_prompts(seed=self._seed)
        self._seed = None
        groups = drawn.reshape(-1, self.group_size, drawn.shape[1])
        if (groups != groups[:, :1]).any():
            raise ValueError(f"the prompts drawn do not stand in groups of {self.group_size}: reset(seed=...) first")
        part = self.processes.shard(len(drawn))
        written = self._written(policy, torch.from_numpy(drawn[part]).to(policy.device), part, len(drawn))
        wrote = time.perf_counter()
        rows = self.envs.play(drawn[part], written.completions.cpu().numpy(), written.logprobs.cpu().numpy())
        if self.processes.count > 1:
            written, rows = self._all_gather(written, rows)
        self.last = rows
        rollout = self._rollout(policy, torch.from_numpy(drawn).to(policy.device), written, rows)
        metrics = {f"rollout/{name}": value for name, value in figures(rows).items()}
        metrics["rollout/return_mean"] = float(rollout.rewards.sum()) / len(drawn)
        metrics |= {"time/generate_s": wrote - began, "time/score_s": time.perf_counter() - wrote}
        metrics |= self._update_kl_coef(metrics, len(drawn))
        return rollout, metrics

    def state_dict(self) -> dict[str, Any]:
        """All that the next ``collect`` depends on: the generator, an unspent seed, the environment's state."""
        return {
            "generator": self.generator.get_state(),
            "seed": self._seed,
            "envs": self.envs.state_dict(),
            "score_scaler": None if self.score_scaler is None else self.score_scaler.state_dict(),
            "settings": self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict`` was taken.

        Raises:
            ValueError: if it was taken with another penalty, scaling of scores, or way to move the KL's price.
        """
        ours = self._settings()
        other = [
            f"{name} {state['settings'][name]!r} (here {ours[name]!r})"
            for name in ours
            if state["settings"][name] != ours[name]
        ]
        if other:
            raise ValueError(f"the rollouts were collected with other settings: {', '.join(other)}")
        self.generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8).cpu())
        self._seed = state["seed"]
        self.envs.load_state_dict(state["envs"])
        if self.score_scaler is not None:
            self.score_scaler.load_state_dict(state["score_scaler"])

    def _settings(self) -> dict[str, Any]:
        """What decides how rewards are paid, besides the environment; plain values."""
        scaler, controller = self.score_scaler, self.kl_controller
        return {
            "missing_eos_penalty": self.missing_eos_penalty,
            "score_scaler": None if scaler is None else [scaler.standardize, scaler.limit],
            "kl_controller": None if controller is None else [type(controller).__name__, dict(vars(controller))],
        }

    def _written(self, policy: CausalLMPolicy, prompts: Tensor, part: slice, whole: int) -> Generation:
        """What the policy writes for ``prompts``, which are the rows ``part`` of a batch of ``whole``."""
        options: dict[str, Any] = (
            {} if self.max_concurrent_rows is None else {"max_concurrent_rows": self.max_concurrent_rows}
        )
        if self.processes.count > 1:
            options["beside"] = (part.start, whole - part.stop)
        budget = self.base.max_new_tokens
        return self.write(policy, prompts, max_new_tokens=budget, generator=self.generator, **options)

    def _all_gather(self, written: Generation, rows: TokenRows) -> tuple[Generation, TokenRows]:
        """All processes' rows; and the generator stands where the longest completion of all has left it."""
        own = int((written.completions != PAD).sum(1).max())
        shares = self.processes.all_gather(([part.cpu() for part in written], rows))
        device = written.completions.device
        together = Generation(*(torch.cat(parts).to(device) for parts in zip(*(w for w, _ in shares), strict=True)))
        for _ in range(own, int((together.completions != PAD).sum(1).max())):
            uniform(len(together.completions), self.generator, device)
        return together, join_rows([rows for _, rows in shares])

    def _rollout(self, policy: CausalLMPolicy, prompts: Tensor, written: Generation, rows: TokenRows) -> Rollout:
        def tensor(array: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(prompts.device)

        mask = tensor(rows.mask)
        last = last_action_index(rows.mask)
        rewards = rows.rewards.copy()
        if self.score_scaler is not None:
            if rows.scores is None:
                raise ValueError("score_scaler needs scores: wrap the environment in a PreferenceReward, or pass None")
            rewards[np.arange(len(last)), last] += self.score_scaler(rows.scores) - rows.scores
        rewards[np.arange(len(last)), last] -= self.missing_eos_penalty * (rows.stop_reason == "length")
        ended = torch.zeros_like(mask)
        ended[torch.arange(len(last)), torch.from_numpy(last)] = True
        next_values = values_of_next_steps(written.values, mask)
        if rows.truncated.any() and policy.has_critic:
            final = policy.values(pack_rows(prompts, written.completions))
            next_values = torch.where(ended & tensor(rows.truncated)[:, None], final[:, None], next_values)
        return Rollout(
            observations=prompts,
            actions=written.completions,
            logprobs=written.logprobs,
            values=written.values,
            next_values=next_values,
            rewards=tensor(rewards),
            terminated=ended & tensor(rows.terminated)[:, None],
            ended=ended,
            mask=mask,
            ref_logprobs=None if rows.ref_logprobs is None else tensor(rows.ref_logprobs),
        )

    def _update_kl_coef(self, metrics: dict[str, float], episodes: int) -> dict[str, float]:
        if self._kl_wrapper is None:
            return {}
        beta = self.beta = float(self._kl_wrapper.beta)
        if self.kl_controller is not None:
            self._kl_wrapper.beta = self.kl_controller.updated(beta, metrics["rollout/kl_per_sequence"], episodes)
        return {"rollout/beta": beta}

    def _check(self, policy: CausalLMPolicy) -> None:
        if policy.eos_token_id != self.base.eos_token_id:
            raise ValueError(
                f"the policy ends texts with token {policy.eos_token_id}, the environment with {self.base.eos_token_id}"
            )
        if policy.vocab_size > self.base.vocab_size and policy.sampling.allowed_tokens is None:
            raise ValueError(
                f"the policy may write {policy.vocab_size} tokens, the environment knows {self.base.vocab_size}: build "
                "it with vocab_size=policy.vocab_size"
            )
        if policy.vocab_size < self.base.vocab_size:
            raise ValueError(
                f"the policy knows {policy.vocab_size} tokens, the environment's vocabulary has {self.base.vocab_size}"
            )


def figures(rows: TokenRows) -> dict[str, float]:
    """What to log of finished rows, without prefix; masked, so padding never counts. ``METRICS`` explains each."""
    mask = rows.mask
    count = mask.sum()
    found = {
        "length_mean": float(count / len(mask)),
        "share_eos": float((rows.stop_reason == "eos").mean()),
        "share_length": float((rows.stop_reason != "eos").mean()),
        "distinct_2": 1.0 - repetition(rows.completions, mask, 2),
        "repetition": repetition(rows.completions, mask, REPEATED),
    }
    for percent in (10, 50, 90):
        found[f"length_p{percent}"] = float(np.percentile(mask.sum(1), percent, method="inverted_cdf"))
    if rows.scores is not None:
        found |= {"score": float(rows.scores.mean()), "score_std": float(rows.scores.std())}
    found |= _by_member(rows)
    if rows.kl is not None:
        found |= {"kl_per_sequence": float(rows.kl.sum() / len(mask)), "kl_per_token": float(rows.kl.sum() / count)}
    if rows.logprobs is not None:
        found["surprisal"] = float(-rows.logprobs[mask].mean())
    return found


def _by_member(rows: TokenRows) -> dict[str, float]:
    """What each of several scorers says, and how far they are apart; nothing where there is one."""
    members = rows.member_scores or {}
    if len(members) < 2 or rows.score_std is None:
        return {}
    found = {"score_disagreement": float(rows.score_std.mean())}
    found |= {f"score/{name}": float(scores.mean()) for name, scores in members.items()}
    ensembles: dict[str, list[np.ndarray]] = {}
    for name, scores in members.items():
        ensembles.setdefault(name.rpartition("/")[0], []).append(scores)
    alone = ensembles.pop("", [])
    if len(ensembles) + len(alone) > 1:
        found |= {f"score_disagreement/{name}": float(np.std(each, 0).mean()) for name, each in ensembles.items()}
    return found


def repetition(completions: np.ndarray, mask: np.ndarray, n: int) -> float:
    """Share of a text's n-grams that stood in it before, averaged over the texts that have an n-gram; 0 if none has.

        1 - different n-grams / n-grams

    It is the share of tokens that continue a repeated n-gram. Source: Welleck et al. 2020, "seq-rep-n"
    (arXiv:1908.04319), with n = 4; Paulus et al. 2017 forbid what repeats for n = 3 (arXiv:1705.04304).

    Args:
        completions: ``[N, T]`` token ids.
        mask: ``[N, T]`` True on tokens that count.
        n: tokens, >= 1.
    """
    shares = []
    for row, counts in zip(completions, mask, strict=True):
        tokens = row[counts].tolist()
        if len(tokens) >= n:
            grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
            shares.append(1.0 - len(set(grams)) / len(grams))
    return float(np.mean(shares)) if shares else 0.0


def _wrapper_with_beta(envs: Any) -> Any:
    while envs is not None:
        if hasattr(type(envs), "beta"):
            return envs
        envs = getattr(envs, "env", None)
    return None
