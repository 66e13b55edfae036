"""A real vLLM server on the CPU: `make test-vllm` installs it, and says by TEXTENVS_VLLM which Python has it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agents.engines.protocol import Sampling
from agents.engines.vllm import VLLMEngine
from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.lm.sampling import TokenSampling
from agents.lm.saving import named_weights
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from textenvs import assets
from textenvs.dialogues.vector import DialogueVectorEnv
from textenvs.envs.vector import TokenVectorEnv
from textenvs.tokens.rows import PAD
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

PYTHON = os.environ.get("TEXTENVS_VLLM")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PYTHON is None, reason="needs make test-vllm")]
ROOT = Path(__file__).parents[3]
EOS, T = 0, 24


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    def __init__(self, model, port, *flags):
        words = [sys.executable, "-c", "import sys; from agents.cli import main; sys.exit(main(sys.argv[1:]))", "serve"]
        words += ["--model", str(model), "--port", str(port), "--python", PYTHON, "--dtype", "float32", *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines, self.url = [], f"http://127.0.0.1:{port}"
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("ready: "):
                break
        else:
            raise RuntimeError("".join(self.lines[-40:]))
        threading.Thread(target=self.lines.extend, args=(self.process.stdout,), daemon=True).start()

    def kill(self):
        """End it and all its processes at once, as a lack of memory would."""
        for child in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            os.kill(child.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


@pytest.fixture(scope="module")
def gpt2():
    server = Server(assets.language_model_dir(), free_port())
    yield server
    server.stop()


def policy_of(**options):
    return CausalLMPolicy.from_pretrained(assets.language_model_dir(), **{"critic": "none", **options})


def moved(policy, seed=0, scale=0.01):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return policy


def prompts_of(count=64, vocabulary=2000):
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((count, 8), PAD)
    for i in range(count):
        rows[i, : 2 + i % 7] = torch.randint(1, vocabulary, (2 + i % 7,), generator=generator)
    return rows


def gap(policy, engine, **options):
    """Mean and largest ``|log pi - log mu|`` over the sampled tokens, nats."""
    sampling = Sampling(
        max_new_tokens=T, eos_token_id=policy.eos_token_id, generator=torch.Generator().manual_seed(1), **options
    )
    written = engine.generate(prompts_of(vocabulary=policy.vocab_size), sampling)
    own = policy.completion_logprobs(prompts_of(vocabulary=policy.vocab_size), written.ids)
    off = (own - written.logprobs)[written.ids != PAD].abs()
    return float(off.mean()), float(off.max())


def test_sampled_logprobs_are_the_trainers_also_after_updates(gpt2):
    engine = VLLMEngine(gpt2.url)
    for version in range(3):
        policy = moved(policy_of(), seed=version, scale=0.01 * version)
        engine.update(named_weights(policy), version)
        mean, largest = gap(policy, engine)
        print(f"vLLM, float32, update {version}: mean {mean:.2e}, max {largest:.2e} nats")
        assert mean < 1e-4


@pytest.mark.parametrize(
    "rules", [{"temperature": 0.7}, {"top_k": 20}, {"min_new_tokens": 5}, {"allowed_tokens": tuple(range(300))}]
)
def test_so_are_they_under_the_policys_sampling(gpt2, rules):
    policy = policy_of(sampling=TokenSampling(**rules))
    engine = VLLMEngine(gpt2.url)
    engine.update(named_weights(policy), 0)
    assert gap(policy, engine, rules=policy.sampling)[0] < 1e-4


class CountsEven:
    def score_tokens(self, prompts, completions):
        return (completions % 2 == 0).sum(1)


def test_an_agent_learns_by_the_server_also_a_batch_ahead(gpt2):
    for ahead in (0, 1):
        reference = policy_of()
        envs = TokenVectorEnv(
            32, prompts=[row[row != PAD].tolist() for row in prompts_of(16)], eos_token_id=EOS, vocab_size=2048,
            max_new_tokens=12, group_size=4,
        )  # fmt: skip

        def ref_logprobs(prompts, completions, reference=reference):
            return reference.completion_logprobs(torch.from_numpy(prompts), torch.from_numpy(completions))

        shaped = KLShaping(PreferenceReward(envs, CountsEven()), ref_logprobs, 0.1)
        config = TextAgentConfig.for_algorithm(
            "grpo", group_size=4, learning_rate=1e-4, kl_in="reward", kl_estimator=None, epochs=1
        )
        collector = TextCollector(shaped, seed=0, engine=VLLMEngine(gpt2.url), async_rollouts=ahead)
        agent = TextAgent(config, policy_of(), collector)
        for update in range(3):
            agent.iterate()
            assert agent.metrics["rollout/staleness"] == min(update, ahead)
            print(ahead, update, {name: each for name, each in agent.metrics.items() if "mismatch" in name})
            if agent.metrics["rollout/staleness"]:
                assert agent.metrics["rollout/mismatch_mean"] > 1e-5
            else:
                assert agent.metrics["rollout/mismatch_mean"] < 1e-4
                assert agent.metrics["rollout/effective_sample_size"] > 0.999


class Echo:
    def reset(self, seed=None):
        self.turns = 0
        return [5 + (seed or 0) % 3, 6, 7], {}

    def step(self, said):
        self.turns += 1
        return [9, 10, 11], float(len(said)), self.turns == 3, False, {}


def test_dialogues_go_turn_by_turn_through_its_cache_of_prefixes(gpt2):
    envs = DialogueVectorEnv(
        16, env=Echo, eos_token_id=EOS, vocab_size=2048, max_turns=3, max_turn_tokens=12, max_tokens=100
    )
    collector = TextCollector(envs, seed=0, engine=VLLMEngine(gpt2.url))
    rollout, metrics = collector.collect(policy_of())
    assert int(rollout.turns.max()) == 2
    assert metrics["rollout/mismatch_mean"] < 1e-4


def test_a_server_that_is_killed_while_it_writes_costs_no_text(tmp_path):
    server = Server(assets.language_model_dir(), free_port())
    port = int(server.url.rpartition(":")[2])
    try:
        engine, policy = VLLMEngine(server.url, patience_s=300), moved(policy_of())
        engine.update(named_weights(policy), 5)
        undisturbed = engine.generate(prompts_of(), sampling_of(policy))

        def kill_and_revive():
            nonlocal server
            while len(engine._finished) < 8:
                time.sleep(0.01)
            server.kill()
            server = Server(assets.language_model_dir(), port)

        reviver = threading.Thread(target=kill_and_revive)
        reviver.start()
        with pytest.warns(UserWarning, match=r"rows are missing: .*no answer"):
            again = engine.generate(prompts_of(), sampling_of(policy, max_concurrent_rows=2))
        reviver.join()
        assert torch.equal(undisturbed.ids, again.ids)
        torch.testing.assert_close(undisturbed.logprobs, again.logprobs, atol=1e-4, rtol=1e-4)
    finally:
        server.stop()


def test_weights_by_broadcast_are_the_trainers_also_after_a_kill():
    server = Server(assets.language_model_dir(), free_port(), "--transfer", "broadcast")
    port = int(server.url.rpartition(":")[2])
    try:
        engine = VLLMEngine(server.url, transfer="broadcast", timeout_s=120, patience_s=300)
        for version in range(3):
            policy = moved(policy_of(), seed=version, scale=0.01 * version)
            begun = time.monotonic()
            engine.update(named_weights(policy), version)
            took = time.monotonic() - begun
            mean, largest = gap(policy, engine)
            print(f"broadcast, float32, update {version}: {took:.2f} s, mean {mean:.2e}, max {largest:.2e} nats")
            assert mean < 1e-4
        server.kill()
        server = Server(assets.language_model_dir(), port, "--transfer", "broadcast")
        with pytest.warns(UserWarning, match=r"expected weights of version 2"):
            assert gap(policy, engine)[0] < 1e-4
        server.kill()
        server = Server(assets.language_model_dir(), port, "--transfer", "broadcast")
        policy = moved(policy_of(), seed=3)
        with pytest.warns(UserWarning, match=r"trying again"):  # it has no group yet
            engine.update(named_weights(policy), 3)
        assert gap(policy, engine)[0] < 1e-4
    finally:
        server.stop()


def sampling_of(policy, **options):
    generator = torch.Generator().manual_seed(1)
    return Sampling(max_new_tokens=T, eos_token_id=policy.eos_token_id, generator=generator, **options)


def test_an_adapter_alone_is_loaded(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    for file in assets.language_model_dir().glob("tokenizer*"):
        shutil.copy(file, tmp_path / "llama")
    trunk = AdaptedTrunk(
        LlamaForCausalLM.from_pretrained(tmp_path / "llama"), LoraOptions(rank=4, alpha=12), value=False
    )
    policy = CausalLMPolicy(trunk.model, critic="none", adapters=trunk)
    server = Server(tmp_path / "llama", free_port(), "--lora-rank", "8")
    try:
        for adapter_only in (True, False):
            engine = VLLMEngine(server.url, adapter_only=adapter_only)
            for version in range(2):
                with torch.no_grad():
                    for parameter in trunk.parameters("policy"):
                        parameter.normal_(std=0.2)
                engine.update(named_weights(policy, adapter_only=adapter_only), version)
                mean, largest = gap(policy, engine)
                print(f"Llama, adapter_only {adapter_only}: mean {mean:.2e}, max {largest:.2e} nats")
                assert mean < 1e-4
    finally:
        server.stop()
