"""Evaluations by an engine: what the policy itself would write, by its weights, whatever the engine held before."""

import copy

import numpy as np
import pytest
import torch

from agents.engines.local import LocalEngine
from agents.engines.vllm import VLLMEngine
from agents.evaluation.assessor import Assessor
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.recipes.rlhf.config import command_line
from agents.text.collector import TextCollector
from tests.agents.engines.test_train_text import PATH, words
from textenvs import assets
from textenvs.envs.vector import TokenVectorEnv
from textenvs.lm.loading import load_causal_lm
from textenvs.tokens.tokenizers import load_tokenizer

OPENINGS = ["the film", "a very good", "nobody", "it is"]


def policies(memory):
    """What training starts from, and a policy whose weights have moved."""
    model = load_causal_lm(assets.language_model_dir())
    if memory == "full":
        start, trunk = CausalLMPolicy(copy.deepcopy(model), critic="none"), None
    else:
        trunk = AdaptedTrunk(model, LoraOptions(rank=2), value=False)
        start = CausalLMPolicy(model, critic="none", adapters=trunk, role=None)
    policy = CausalLMPolicy(model, critic="none", adapters=trunk)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.actor_parameters():
            weight += 0.03 * torch.randn_like(weight)
    return start, policy


def assessor_of(engine=None):
    tokenizer = load_tokenizer(assets.language_model_dir())
    return Assessor(tokenizer=tokenizer, prompts=OPENINGS, max_new_tokens=6, engine=engine)


@pytest.mark.parametrize("memory", ["full", "adapters", "adapter only"])
def test_an_engine_writes_evaluations_by_the_weights_of_the_policy_that_is_evaluated(serve, memory):
    start, policy = policies(memory)
    engine = VLLMEngine(serve(start.model if memory == "full" else load_causal_lm(assets.language_model_dir())).url,
                        adapter_only=memory == "adapter only", patience_s=5.0)  # fmt: skip
    envs = TokenVectorEnv(
        4, prompts=[[5, 6], [7]], eos_token_id=start.eos_token_id, vocab_size=start.vocab_size, max_new_tokens=4
    )
    collector = TextCollector(envs, engine=engine)
    served, local = assessor_of(collector.writer.evaluating), assessor_of()
    likeliest = []
    for each in (start, policy, start):
        greedy, own = (assessor.write(each, deterministic=True) for assessor in (served, local))
        assert (greedy.completions == own.completions).all()
        sampled = served.write(each)
        expected = each.completion_logprobs(torch.from_numpy(sampled.prompts), torch.from_numpy(sampled.completions))
        np.testing.assert_allclose(sampled.logprobs, expected.numpy(), atol=1e-4)
        likeliest.append(greedy.endings)
    assert likeliest[0] == likeliest[2] != likeliest[1]
    _, metrics = collector.collect(policy)
    assert metrics["rollout/mismatch_max"] < 1e-4  # training goes on with its own weights


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_local_engine_writes_what_the_policy_itself_does_bit_for_bit(deterministic):
    _, policy = policies("full")
    engine = LocalEngine(copy.deepcopy(policy), generate)
    found = assessor_of(lambda policy: engine).write(policy, deterministic=deterministic)
    own = assessor_of().write(policy, deterministic=deterministic)
    assert (found.completions == own.completions).all()
    assert (found.logprobs == own.logprobs).all()


def test_a_run_asks_its_engine_for_all_its_texts(serve, tmp_path, monkeypatch):
    fake = serve(load_causal_lm(assets.language_model_dir()))
    assert command_line(words(tmp_path / "run", fake)) == 0
    assert fake.calls[PATH] == 16 + 2 * 4  # texts of training, and held-out prompts before and after it
