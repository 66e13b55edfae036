"""Score, accuracy and pass@k on held-out rows along ``learn``: the figures of ``train-text --eval-rows``, in Python."""

from __future__ import annotations

from typing import Any

from agents.evaluation.assessor import Assessor
from agents.evaluation.metrics import PassingRule
from textenvs.envs.base import check_whole
from textenvs.envs.vector import TokenVectorEnv
from textenvs.envs.wrapper import found_in
from textenvs.tokens.prompts import PromptSource, load_prompts
from textenvs.wrappers.preference import PreferenceReward


class EvalRows:
    """A callback of ``learn``; ``EvalRows(...)(agent)`` measures at once.

    Args:
        rows: held out from training, with the columns that the environment's scorers ask for.
        every: updates between two evaluations, >= 1.
        samples: texts sampled for each row, n of pass@k.
        pass_score: least score by the environment's first scorer with which a text is right, reward units.

    Raises:
        ValueError: if ``every`` or ``samples`` is below 1; when called, if the agent's environment has no tokenizer or
            no scorer, or plays dialogues.
    """

    def __init__(self, rows: PromptSource, *, every: int = 1, samples: int = 4, pass_score: float = 1.0) -> None:
        check_whole(1, every=every, samples=samples)
        self.rows, self.every = rows, every
        self.rule = PassingRule(least=float(pass_score), samples=samples)
        self.points: list[dict[str, float]] = []
        """Of each evaluation: ``steps``, ``score``, ``accuracy`` and ``pass_at_K``, as ``eval/...`` in the log."""

    def __call__(self, agent: Any) -> None:
        """Evaluate, if it is time; training is not changed."""
        if agent.updates % self.every:
            return
        base, reward = agent.env.unwrapped, found_in(agent.env, PreferenceReward)
        if reward is None or not isinstance(base, TokenVectorEnv) or base.tokenizer is None:
            raise ValueError(f"EvalRows: expected texts after prompts, a tokenizer and a scorer, received {agent.env}")
        tokenizer: Any = base.tokenizer  # of transformers, as the policy's
        assessor = Assessor(
            tokenizer=tokenizer,
            reward=reward,
            prompts=load_prompts(self.rows, tokenizer, vocab_size=agent.policy.vocab_size),
            max_new_tokens=base.max_new_tokens,
            max_concurrent_rows=agent.options.max_concurrent_rows,
            engine=agent.collector.writer.evaluating,
        )
        found = assessor.figures(agent.policy, self.rule)
        self.points.append({"steps": agent.steps, **found})
        agent.logger.write({f"eval/{name}": value for name, value in found.items()}, agent.steps)
