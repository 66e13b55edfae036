"""Draws a collector's prompts and has an engine complete them: now, or a batch ahead, while the policy learns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agents.engines.local import LocalEngine
from agents.engines.protocol import Engine, Sampling, Written
from agents.engines.vllm import VLLMEngine
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.decoder import Generation, check_max_concurrent_rows
from agents.lm.generation import generate as generate_completions
from agents.lm.sampling import TokenSampling
from agents.lm.saving import named_weights
from agents.runs.distributed import ALONE, Processes
from agents.text.config import TextEngineConfig
from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.envs.base import TokenVectorBase
from textenvs.envs.wrapper import TokenVectorWrapper
from textenvs.tokens.rows import Columns, Ids

WeightsOf = Callable[..., Iterable[tuple[str, Tensor]]]
"""``agents.lm.saving.named_weights`` or a function with its arguments."""
EVALUATIONS = 2**30
"""Versions of weights in evaluations begin here, so that none is one of training."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A batch of prompts, and their completions once they are written."""

    prompts: Ids
    """``[N, P]``, of all processes."""
    columns: Columns
    """Of this process's rows."""
    written: Future[Written]
    """Of this process's rows."""
    version: int
    """Of the weights that write."""
    position: dict[str, Any]
    """State of the writer before the draw."""


class Writer:
    """The next batch of ``envs``, on request; arguments as `TextCollector`'s.

    Raises:
        ValueError: for ``max_concurrent_rows`` below 1, or ``ahead`` other than 0 or 1.
    """

    def __init__(
        self,
        envs: TokenVectorBase | TokenVectorWrapper,
        *,
        seed: int = 0,
        engine: Engine | None = None,
        generate: Callable[..., Generation] = generate_completions,
        max_concurrent_rows: int | None = None,
        ahead: int = 0,
        processes: Processes = ALONE,
        weights_of: WeightsOf = named_weights,
    ) -> None:
        check_max_concurrent_rows(max_concurrent_rows)
        self.envs = envs
        self.base = envs if isinstance(envs, TokenVectorBase) else envs.base
        if ahead not in (0, 1):
            raise ValueError(f"async_rollouts: expected 0 or 1 updates, received {ahead!r}")
        self.engine, self.generate, self.max_concurrent_rows = engine, generate, max_concurrent_rows
        self.ahead, self.processes, self._weights_of = ahead, processes, weights_of
        self.generator = torch.Generator().manual_seed(seed)
        self._seed: int | None = seed
        self.version = 0
        """Updates that the policy has seen, one a rollout."""
        self._sent: object = None  # the version that the engine holds, or whose weights in an evaluation
        self._next: Draft | None = None
        self._background = ThreadPoolExecutor(1, "rollout") if ahead else None
        shared = ahead and processes.count > 1 and not self.local
        self._waiting = processes.offer(self._wait) if shared else None

    @property
    def local(self) -> bool:
        """Whether the project's own decoder writes."""
        return self.engine is None or self.engine.local

    @property
    def on_policy(self) -> bool:
        """Whether the policy itself writes."""
        return self.engine is None and not self.ahead

    def draft(self, policy: CausalLMPolicy) -> Draft:
        """The next batch, by ``policy`` or, a batch ahead, by what it was an update before."""
        found, self._next = self._next, None
        if found is None or self.version - found.version > self.ahead:
            found = self._begin(policy)
        found.written.result()
        return found

    def advance(self, policy: CausalLMPolicy) -> None:
        """A rollout is complete, and an update of ``policy`` follows: begin the next batch if it is written ahead."""
        if self.ahead:
            self._next = self._begin(policy, self._background)
        self.version += 1

    def _begin(self, policy: CausalLMPolicy, background: ThreadPoolExecutor | None = None) -> Draft:
        position = self._position() if background is not None else {}
        prompts, shard = self._draw_prompts()
        sampling = Sampling(
            max_new_tokens=self.base.max_new_tokens,
            rules=policy.sampling if isinstance(policy, CausalLMPolicy) else TokenSampling(),
            eos_token_id=policy.eos_token_id,
            generator=self.generator,
            max_concurrent_rows=self.max_concurrent_rows,
            other_rows=(shard.start, len(prompts) - shard.stop),
            dialogue=self.base if isinstance(self.base, DialogueVectorEnv) else None,
        )
        engine = self._loaded(policy)
        write = partial(engine.generate, torch.from_numpy(prompts[shard]).to(policy.device), sampling)
        columns = self.base.drawn_columns[shard]
        written = _done(write()) if background is None else background.submit(write)
        return Draft(prompts, columns, written, self.version, position)

    def _draw_prompts(self) -> tuple[Ids, slice]:
        prompts = self.envs.draw_prompts() if self._seed is None else self.envs.draw_prompts(seed=self._seed)
        self._seed = None
        groups = prompts.reshape(-1, self.base.group_size, prompts.shape[1])
        if (groups != groups[:, :1]).any():
            raise ValueError(
                f"expected prompts in groups of {self.base.group_size} equal rows: call reset(seed=...) first"
            )
        return prompts, self.processes.shard(len(prompts))

    def _loaded(self, policy: CausalLMPolicy) -> Engine:
        """The engine, with the weights of ``policy``."""
        if self.on_policy:
            return LocalEngine(policy, self.generate, self.version)
        if self.engine is None:
            self.engine = LocalEngine(copy.deepcopy(policy), self.generate)
        if self._sent != self.version:
            if self.engine.local:
                self.engine.update(policy.state_dict().items(), self.version)
            else:
                named: Iterable[tuple[str, Tensor]] = ()
                if self.processes.is_main:
                    named = self._weights_of(policy, adapter_only=self.engine.adapter_only)
                self.engine.update(named, self.version)
                self.processes.any(False)  # the others wait until it is sent, and lend their parts
            self._sent = self.version
        return self.engine

    def evaluating(self, policy: CausalLMPolicy) -> Engine:
        """What writes texts by ``policy`` beside the rollouts: the engine, once it holds its weights, or the policy."""
        if self.engine is None or self.engine.local:
            return LocalEngine(policy, partial(generate_completions, with_values=False))
        held = (id(policy), self.version)
        if self._sent != held:
            if self._waiting is None:
                self._wait()
            else:
                self.processes.call(self._waiting)
            named = self._weights_of(policy, adapter_only=self.engine.adapter_only)
            self.engine.update(named, EVALUATIONS + self.version)
            self._sent = held
        return self.engine

    def _wait(self) -> None:
        """Until what is written ahead has been, by the weights that the engine holds."""
        if self._next is not None:
            self._next.written.exception()

    def _position(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "seed": self._seed, "envs": self.envs.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """All that the next ``draft`` depends on; waits for what is being written ahead, and keeps it.

        Several processes keep none of it, nor do dialogues: they are written again after a resume.
        """
        draft, ahead = self._next, None
        if draft is None:
            return {**self._position(), "version": self.version}
        whole = not isinstance(self.base, DialogueVectorEnv) and self.processes.count == 1
        if draft.written.exception() is None and whole:
            ahead = {"written": tuple(draft.written.result()), "generator": self.generator.get_state()}
        return {**draft.position, "version": self.version, "ahead": ahead}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from ``state_dict``."""
        self._wait()  # it draws from the generator until it is done
        self._next = self._sent = None
        self.generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8).cpu())
        self._seed, self.version = state["seed"], state.get("version", 0)
        self.envs.load_state_dict(state["envs"])
        ahead = state.get("ahead")
        if ahead is not None and self.ahead:
            position = self._position()
            prompts, shard = self._draw_prompts()
            self.generator.set_state(torch.as_tensor(ahead["generator"], dtype=torch.uint8).cpu())
            written = _done(Written(*ahead["written"]))
            self._next = Draft(prompts, self.base.drawn_columns[shard], written, self.version - 1, position)


def engine_options(config: TextEngineConfig) -> dict[str, Any]:
    """The arguments of `TextCollector` that ``config`` asks for."""
    engine = config.engine and VLLMEngine(
        config.engine,
        transfer=config.engine_transfer,
        folder=config.engine_folder,
        adapter_only=config.engine_weights == "adapter",
    )
    return {
        "engine": engine,
        "async_rollouts": config.async_rollouts,
        "correction": config.correction,
        "correction_bounds": (config.correction_low, config.correction_high),
    }


def _done(written: Written) -> Future[Written]:
    future: Future[Written] = Future()
    future.set_result(written)
    return future
