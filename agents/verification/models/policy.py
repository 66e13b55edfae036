"""Checks of a causal language model as a policy: rows, caches, causality, distributions, precision, edge rows.

The checks in text environments are in ``text``.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agents.functional.masked import whiten
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.sampling import TokenSampling, token_logprobs
from agents.verification.checks import Check, Checking, Part, about, at_most, larger, not_applicable
from textenvs.lm.packed_forward import trunk_forward
from textenvs.tokens.end_tokens import end_tensor, end_tokens
from textenvs.tokens.rows import PAD
from textenvs.wrappers.reference import CausalLMReference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 5e-4
"""Nats, or units of V: above float32 rounding, below any real error."""
ROWS, PROMPT, BUDGET, LONGEST = 6, 5, 6, 2048
"""Rows; widths in tokens; models with more positions than LONGEST are not filled to the last one."""


class Model:
    """A causal LM, a policy and a reference that wrap it, and rows of tokens to evaluate.

    Only token ids are used, no tokenizer; the value head is random: one of zeros would pass every comparison.

    Raises:
        ValueError: it is one that the policy refuses.
    """

    def __init__(self, model: PreTrainedModel, *, seed: int = 0) -> None:
        self.model = model
        self.eos = None if getattr(model.config, "eos_token_id", None) is None else "model"
        self.policy = self.policy_with()
        ends = end_tokens(self.policy.eos_token_id)
        self.eos_token_id = ends[0] if ends else None
        other = next(token for token in range(1, self.policy.vocab_size) if token not in ends)
        self.reference = CausalLMReference(copy.deepcopy(self.model))
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randint, 1, self.policy.vocab_size, generator=generator)
        self.prompts, self.completions = draw((ROWS, PROMPT)), draw((ROWS, BUDGET))
        for rows in (self.prompts, self.completions):
            rows[torch.isin(rows, end_tensor(ends, rows.device))] = other
        for i in range(ROWS):
            self.prompts[i, 1 + i % PROMPT :] = PAD
            length = 1 + (3 * i + 1) % BUDGET
            self.completions[i, length:] = PAD
            if self.eos_token_id is not None and i % 2:
                self.completions[i, length - 1] = self.eos_token_id
        self.mask = self.completions != PAD

    def policy_with(self, **options: Any) -> CausalLMPolicy:
        """A policy over the same weights, its random value head always the same."""
        policy = CausalLMPolicy(self.model, eos_token_id=self.eos, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            torch.nn.init.normal_(policy.value_head.weight, std=policy.value_head.in_features**-0.5)
        return policy

    @torch.no_grad()
    def evaluate(self, prompts: Tensor, completions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, values and the reference's log-probabilities, ``[B, T]``."""
        evaluation = self.policy.evaluate(prompts, completions)
        reference = torch.from_numpy(self.reference(prompts.numpy(), completions.numpy()))
        return evaluation.logprobs, evaluation.values, reference

    @torch.no_grad()
    def next_logits(self, tokens: list[int]) -> Tensor:
        """The model's plain logits ``[V]`` after ``tokens``, straight from a forward pass."""
        return self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float()


def model_checks(model: Model) -> list[Checking]:
    """All checks of the model itself."""
    parts: list[Part] = [
        ("dropout is off in every module (T9)", dropout),
        ("a row alone = padded = in a batch (T1)", alone),
        ("each token is scored from its own prefix (T3)", shift),
        ("changing token t changes nothing at or before t (T3)", causality),
        ("cached steps, full forward pass and decoding agree (T2)", caches),
        ("behavior = logged policy under temperature, top-k, top-p (T8)", behavior),
        ("log-softmax is taken in float32 (T10)", precision),
        ("entropy lies within [0, log V], whatever the padding (T15)", entropy),
        ("edge rows give finite numbers (T17)", edges),
    ]
    return about(model, parts)


def steady(model: PreTrainedModel) -> list[Check]:
    """Two forward passes of a ``transformers`` model, before a policy is built around it, agree: nothing is random."""
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.arange(4)[None] % embeddings.num_embeddings
    model.eval()
    with torch.no_grad():
        one, other = (model(input_ids=tokens, use_cache=False).logits.float() for _ in range(2))
    infinite = int((~torch.isfinite(one)).sum())
    return [
        at_most("in evaluation mode the model returns the same twice (T9)", float((one - other).abs().max()), 0.0),
        at_most("logits that are not finite", infinite, 0, f" of {one.numel()}"),
    ]


def alone(model: Model) -> list[Check]:
    """Every row alone, with more padding on either side, and in the batch."""
    pad = torch.nn.functional.pad
    among = model.evaluate(model.prompts, model.completions)
    right = model.evaluate(pad(model.prompts, (0, 4), value=PAD), pad(model.completions, (0, 3), value=PAD))
    left = model.evaluate(pad(model.prompts, (4, 0), value=PAD), model.completions)
    checks = []
    for number, name in enumerate(("log-probs", "values", "reference")):
        worst = 0.0
        for i in range(ROWS):
            length = int(model.mask[i].sum())
            prompt = model.prompts[i : i + 1][:, model.prompts[i] != PAD]
            one = model.evaluate(prompt, model.completions[i : i + 1, :length])[number][0]
            others = torch.stack([every[number][i, :length] for every in (among, right, left)])
            worst = larger(worst, (others - one).abs().max())
        checks.append(at_most(f"a row alone = padded = in a batch: {name} (T1)", worst, TOLERANCE))
    return checks


def shift(model: Model) -> Check:
    """``log softmax(logits[t - 1])[token t]`` of plain forward passes, one prefix at a time."""
    logprobs, worst = model.evaluate(model.prompts, model.completions)[0], 0.0
    for row, prompt in enumerate(model.prompts):
        tokens = prompt[prompt != PAD].tolist()
        for t, action in enumerate(model.completions[row][model.mask[row]].tolist()):
            by_hand = model.next_logits(tokens).double().log_softmax(-1)[action]
            worst = larger(worst, (logprobs[row, t] - by_hand).abs())
            tokens.append(action)
    return at_most("", worst, TOLERANCE)


def causality(model: Model) -> list[Check]:
    """Change each token of one row in turn."""
    row = torch.randint(1, model.policy.vocab_size, (1, BUDGET), generator=torch.Generator().manual_seed(3))
    prompts = model.prompts[:1]
    before, early, late = model.evaluate(prompts, row), 0.0, math.inf
    for t in range(BUDGET):
        changed = row.clone()
        changed[0, t] = (changed[0, t] + 1) % model.policy.vocab_size
        after = model.evaluate(prompts, changed)
        gaps = [(a - b).abs()[0] for a, b in zip(before, after, strict=True)]
        early = larger(early, torch.cat([gaps[0][:t], gaps[1][: t + 1], gaps[2][:t], torch.zeros(1)]).max())
        if t + 1 < BUDGET:
            late = min(late, float(gaps[1][t + 1 :].max()))
    return [at_most("", early, TOLERANCE), Check("and changes V after t", "> 0", f"{late:.3g}", late > 0)]


def caches(model: Model) -> list[Check]:
    """Values logged while decoding against one full pass; the reference's cached steps against its full pass."""
    written = generate(model.policy, model.prompts, max_new_tokens=BUDGET, generator=torch.Generator().manual_seed(0))
    logprobs, values, reference = model.evaluate(model.prompts, written.completions)
    mask = written.completions != PAD
    rows = torch.nn.functional.pad(model.prompts, (0, BUDGET), value=PAD).numpy()
    lengths, worst = (rows != PAD).sum(1), 0.0
    for t in range(BUDGET):
        running = mask[:, t].numpy()
        actions = np.where(running, written.completions[:, t].numpy(), 0)
        step = model.reference.step(rows, lengths, actions, running)
        worst = larger(worst, np.abs(step - reference[:, t].numpy())[running].max(initial=0.0))
        rows[np.flatnonzero(running), lengths[running]] = actions[running]
        lengths = lengths + running
    return [
        at_most("log-probs while decoding = full forward (T2)", _gap(written.logprobs, logprobs, mask), TOLERANCE),
        at_most("values while decoding = full forward (T2)", _gap(written.values, values, mask), TOLERANCE),
        at_most("reference's cached steps = full forward (T2)", worst, TOLERANCE),
    ]


def behavior(model: Model) -> list[Check]:
    """Three samplings; the distribution once more by hand, from the model's plain logits, by sorting in numpy."""
    checks = []
    for sampling in (TokenSampling(temperature=0.7), TokenSampling(top_k=5), TokenSampling(top_p=0.8)):
        policy = model.policy_with(sampling=sampling)
        written = generate(policy, model.prompts, max_new_tokens=3, generator=torch.Generator().manual_seed(4))
        mask = written.completions != PAD
        with torch.no_grad():
            evaluation = policy.evaluate(model.prompts, written.completions).logprobs
        plain = [model.next_logits(prompt[prompt != PAD].tolist()).numpy() for prompt in model.prompts]
        firsts = written.completions[:, 0].tolist()
        expected = np.array([_shaped(x, sampling)[a] for x, a in zip(plain, firsts, strict=True)])
        by_hand = np.abs(expected - written.logprobs[:, 0].numpy()).max()
        worst = larger(_gap(written.logprobs, evaluation, mask), by_hand)
        name = f"temperature {sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}"
        checks.append(at_most(f"behavior = logged = evaluated policy at {name} (T8)", worst, TOLERANCE))
    return checks


def dropout(model: Model) -> list[Check]:
    """Two forward passes after ``train()`` agree."""
    model.policy.train()
    training = [name for name, module in model.policy.named_modules() if module.training]
    one, other = (model.evaluate(model.prompts, model.completions)[0] for _ in range(2))
    return [
        at_most("modules in training mode after train() (T9)", len(training), 0),
        at_most("two forward passes differ by (T9)", _gap(one, other, model.mask), 0.0),
    ]


def precision(model: Model) -> list[Check]:
    """A bfloat16 copy: its own logits, normalized in float64 by hand; and its distance from float32."""
    half: Any = copy.deepcopy(model.model)
    half.to(torch.bfloat16)
    policy = CausalLMPolicy(half, eos_token_id=model.eos)
    with torch.no_grad():
        hidden = trunk_forward(policy.trunk, model.prompts[:, :1])[:, 0]
        logits, tokens = policy.head_logits(hidden), model.completions[:, 0]
        ours = token_logprobs(policy.sampling.shape(logits, 0, model.eos_token_id), tokens)[0]
        by_hand = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        drift = policy.evaluate(model.prompts, model.completions).logprobs
    exact = model.evaluate(model.prompts, model.completions)[0]
    worst = float((ours - by_hand).abs().max())
    note = f", {ours.dtype}".replace("torch.", "")
    moved = f"{_gap(drift, exact, model.mask):.3g} nats"
    return [
        at_most("log-softmax of bfloat16 logits is taken in float32 (T10)", worst, 1e-4, note),
        _finite("bfloat16 moves log-probs by, at most", moved, drift),
    ]


def entropy(model: Model) -> Check:
    """Entropy in every state of rows of unequal length."""
    with torch.no_grad():
        found = model.policy.evaluate(model.prompts, model.completions).entropy[model.mask]
    low, high, bound = float(found.min()), float(found.max()), math.log(model.policy.vocab_size)
    return Check("", f"[0, {bound:.4g}]", f"[{low:.4g}, {high:.4g}]", low >= -1e-5 and high <= bound + 1e-4)


def edges(model: Model) -> list[Check]:
    """End of text at once, never, one token alone, a prompt as long as the model allows, equal rewards."""
    policy, checks = model.policy, []
    rows = {"one token alone": torch.ones_like(model.completions[:1, :1])}
    rows["no end of text"] = model.completions[:1].clamp(min=1)
    if model.eos_token_id is not None:
        rows["end of text first"] = torch.full((1, 1), model.eos_token_id)
    with torch.no_grad():
        for name, completion in rows.items():
            evaluation = policy.evaluate(model.prompts[:1], completion)
            total = f"{float(evaluation.logprobs.sum()):.4g}"
            checks.append(_finite(f"{name}: finite numbers (T17)", total, *evaluation[:3]))
    advantages = whiten(torch.full((ROWS, BUDGET), 0.3), model.mask)
    checks.append(at_most("equal rewards: advantages are (T14, T17)", float(advantages.abs().max()), 0.0))
    claim = "a prompt one token short of the context length works, a longer one is refused (T17)"
    limit = policy.max_positions
    if limit is None or limit > LONGEST:
        return [*checks, not_applicable(claim, f"the model has {limit} positions")]
    longest = torch.ones(1, limit - 1, dtype=torch.int64)
    logprob, refused = float(generate(policy, longest, max_new_tokens=1).logprobs), "not refused"
    try:
        generate(policy, torch.ones(1, limit, dtype=torch.int64), max_new_tokens=1)
    except ValueError:
        refused = "refused"
    passed = math.isfinite(logprob) and refused == "refused"
    return [*checks, Check(claim, "finite, refused", f"{logprob:.4g}, {refused}", passed)]


def _shaped(logits: np.ndarray, sampling: TokenSampling) -> np.ndarray:
    """Log-probabilities ``[V]`` under temperature, then top-k, then top-p; independent of ``TokenSampling``."""
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    ranked = np.exp(scaled[order] - scaled.max())
    if sampling.top_k is not None:
        ranked[sampling.top_k :] = 0.0
    ranked /= ranked.sum()
    kept = int((np.cumsum(ranked) - ranked < sampling.top_p).sum())
    ranked[kept:] = 0.0
    found = np.empty_like(ranked)
    with np.errstate(divide="ignore"):
        found[order] = np.log(ranked / ranked.sum())
    return found


def _finite(claim: str, measured: str, *found: Tensor) -> Check:
    return Check(claim, "finite", measured, all(bool(torch.isfinite(part).all()) for part in found))


def _gap(one: Tensor, other: Tensor, mask: Tensor) -> float:
    return float((one - other)[mask].abs().max())
