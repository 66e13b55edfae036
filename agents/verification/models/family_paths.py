"""Compare tiny models of the families in `families`, path by path, with plain transformers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.verification.checks import Check
from agents.verification.models.families import EXACT, MESSAGES, NOT_RECOMPUTED, REFUSED, TOLERANCE, V, build, known
from reward_models.model import RewardModel
from textenvs.lm.packed_forward import trunk_of
from textenvs.tokens.rows import PAD
from textenvs.wrappers.reference import CausalLMReference

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NoTokenizer:
    """Stands in a reward model whose rows are given as ids."""

    eos_token_id, bos_token_id = 0, None

    def __len__(self) -> int:
        return V


def family_line(*, full: bool) -> Check:
    """Count the families (all, or those that differ in kind) that are exact in every path, or refused with reason."""
    exact, refused = known(EXACT, full=full), known(REFUSED, full=full)
    worst = {family: max(path_errors(family).items(), key=lambda item: item[1]) for family in exact}
    wrong = [f"{family}: {path}, {error:.3g} x tolerance" for family, (path, error) in worst.items() if not error <= 1]
    accepted = [family for family in refused if not refused_with_reason(family)]
    found = f"{len(exact) - len(wrong)} exact, {len(refused) - len(accepted)} refused"
    measured = "; ".join([found, *wrong, *(f"{family}: not refused for its reason" for family in accepted)])
    return Check("", f"{len(exact)} exact, {len(refused)} refused", measured, not wrong and not accepted)


def refused_with_reason(family: str) -> bool:
    """Whether a policy refuses a family of `REFUSED` by the name of its class and for the documented reason."""
    reason, options = REFUSED[family]
    model = build(family, options)
    try:
        CausalLMPolicy(model, eos_token_id=None, critic="none")
    except ValueError as error:
        return type(model).__name__ in str(error) and MESSAGES[reason] in str(error)
    return False


def path_errors(family: str) -> dict[str, float]:
    """By path, the largest difference from one row at a time by the transformers model alone, over the tolerance."""
    with torch.random.fork_rng(devices=[]):
        return _Paths(family).errors()


class _Paths:
    """A model of a family, prompts, completions that its policy wrote, and their plain log-probs."""

    def __init__(self, family: str) -> None:
        self.family, self.model = family, build(family, EXACT[family])
        torch.manual_seed(0)
        ends = tuple(range(18)) if family == "youtu" else (0, 3, 5, 7, 9)  # rows end at different times
        self.policy = CausalLMPolicy(copy.deepcopy(self.model), eos_token_id=ends, critic="none")
        self.prompts = torch.randint(1, V, (5, 5), generator=torch.Generator().manual_seed(0))
        self.prompts[1, 4:] = self.prompts[2, 2:] = PAD
        self.prompts[3] = self.prompts[1]  # which generation prefills once
        generator = torch.Generator().manual_seed(1)
        self.written = generate(self.policy, self.prompts, max_new_tokens=8, generator=generator)
        self.mask = self.written.completions != PAD
        assert self.mask.sum(1).unique().numel() > 1  # so that rows leave the cache one after the other
        self.rows = [
            (prompt[prompt != PAD], completion[completion != PAD])
            for prompt, completion in zip(self.prompts, self.written.completions, strict=True)
        ]
        self.expected = self.plain_logprobs(self.model)
        self.gradient = _gradient(self.expected, self.model)

    def errors(self) -> dict[str, float]:
        """By path, over the tolerance; twice that for gradients, three times for merged weights (rounded once more)."""
        tolerance = TOLERANCE.get(self.family, 1e-5)

        def gap(found: Tensor, wanted: Tensor, times: int = 1) -> float:
            return float((found.detach() - wanted.detach()).abs().max()) / (times * tolerance)

        prompts, completions = self.prompts.numpy(), self.written.completions.numpy()
        evaluated = self.evaluate(self.policy)
        reference = CausalLMReference(copy.deepcopy(self.model))
        rows = torch.from_numpy(reference(prompts, completions))[self.mask]
        steps = _stepped(reference, prompts, completions)[self.mask]
        found = {
            "generation": gap(self.written.logprobs[self.mask], self.expected),
            "evaluation": gap(evaluated, self.expected),
            "gradient": gap(_gradient(evaluated, self.policy.model), self.gradient, 2),
            "reference": gap(rows, self.expected),
            "reference, token by token": gap(steps, self.expected),
            "reward model": gap(*self.scores()),
        }
        if self.family not in NOT_RECOMPUTED:
            policy = CausalLMPolicy(copy.deepcopy(self.model), critic="none", recompute=True)
            recomputed = _gradient(self.evaluate(policy), policy.model)
            found["gradient, recomputed"] = gap(recomputed, self.gradient, 2)
        with_adapter, without, merged = self.adapted()
        found |= {"adapter": gap(with_adapter, merged, 3), "adapter switched off": gap(without, self.expected)}
        return found | {"adapter has an effect": 0.01 / float((merged - self.expected).detach().abs().max())}

    def evaluate(self, policy: CausalLMPolicy) -> Tensor:
        """Log-probs of the tokens that were sampled, ``[N]`` nats."""
        return policy.evaluate(self.prompts, self.written.completions).logprobs[self.mask]

    def plain_logprobs(self, model: PreTrainedModel) -> Tensor:
        """``[N]`` nats of the same tokens, a row at a time, by the transformers model alone."""
        found = []
        for prompt, completion in self.rows:
            tokens = torch.cat([prompt, completion])[None]
            logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1]
            found.append(logits.float().log_softmax(-1).gather(1, completion[:, None])[:, 0])
        return torch.cat(found)

    def scores(self) -> tuple[Tensor, Tensor]:
        """A reward model's raw scores and its head on plain last states, over the largest, ``[B]`` each."""
        tokenizer: Any = NoTokenizer()
        scorer, trunk = RewardModel(copy.deepcopy(trunk_of(self.model)), tokenizer), trunk_of(self.model)
        rows = [torch.cat(row) for row in self.rows]
        scores = scorer.raw(*scorer.pad([row.tolist() for row in rows]))
        lasts = [trunk(input_ids=row[None], use_cache=False).last_hidden_state[0, -1] for row in rows]
        wanted = scorer.head(torch.stack(lasts))[:, 0]
        return scores / wanted.abs().max(), wanted / wanted.abs().max()

    def adapted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs ``[N]``: with a random adapter, with it switched off, and of plain merged weights."""
        trunk = AdaptedTrunk(copy.deepcopy(self.model), LoraOptions(rank=2), value=False)
        for parameter in trunk.parameters("policy"):
            torch.nn.init.normal_(parameter, std=0.1)
        with_adapter = self.evaluate(CausalLMPolicy(trunk.model, critic="none", adapters=trunk))
        without = self.evaluate(CausalLMPolicy(trunk.model, critic="none", adapters=trunk, role=None))
        return with_adapter, without, self.plain_logprobs(trunk.merged())


def _gradient(logprobs: Tensor, model: torch.nn.Module) -> Tensor:
    """``[P]`` of all parameters, over the largest, so that differences are relative to it."""
    model.zero_grad()
    (logprobs * torch.sin(torch.arange(1.0, 1 + len(logprobs)))).sum().backward()
    flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    return flat / flat.abs().max()


def _stepped(reference: CausalLMReference, prompts: np.ndarray, completions: np.ndarray) -> Tensor:
    """``[B, T]`` log-probs by the reference's step path."""
    num_steps = completions.shape[1]
    lengths = (prompts != PAD).sum(1)
    tokens = np.pad(prompts, ((0, 0), (0, num_steps)), constant_values=PAD)
    found = np.zeros(completions.shape, np.float32)
    for step in range(num_steps):
        running = completions[:, step] != PAD
        found[:, step] = reference.step(tokens, lengths, np.where(running, completions[:, step], 0), running)
        tokens[running, lengths[running]] = completions[running, step]
        lengths = lengths + running
    return torch.from_numpy(found)
