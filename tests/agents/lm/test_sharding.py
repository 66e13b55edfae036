"""A policy, its critic and its reference sharded by layers among processes do what one process does, and so do their
checkpoints; a process that is killed, raises or finds the disk full costs no more than the updates since the last one.

As a script this file trains every case in several processes, which are forked from one that has imported everything,
and leaves the outcomes in the folder that it is told.
"""

import copy
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.lora import AdaptedTrunk, LoraOptions
from agents.lm.memory import Layout, PeakMemory, Workload, held_bytes, plan, resident_bytes
from agents.lm.sharding import mesh_of, shard, with_whole_weights
from agents.recipes.rlhf.config import command_line
from agents.runs import checkpoint
from agents.runs.distributed import ALONE, Processes
from agents.text.agent import TextAgent
from agents.text.collector import TextCollector
from agents.text.config import TextAgentConfig
from tests.agents.runs.test_distributed import STEPS, free_port
from tests.agents.text.test_agent import BETA, EOS, IDS, ROWS, Scorer, T
from textenvs.envs.vector import TokenVectorEnv
from textenvs.wrappers.kl_shaping import KLShaping
from textenvs.wrappers.preference import PreferenceReward

ATOL = 1e-6
"""Sums over rows are taken in another order, and a step is about the learning rate, 0.3, times the gradient (see
STEPS): rounding of numbers below 1, 6e-8, a few times."""
LAYERS = 2
SAVED = ("ppo, full", "ppo, adapters")
"""Cases that leave a checkpoint between their two iterations."""
CASES = {
    "ppo": dict(algorithm="ppo", minibatch_size=8, epochs=2, normalize_advantages="minibatch", critic_warmup=1),
    "grpo, exact kl": dict(
        algorithm="grpo", group_size=6, kl_estimator="full", average="sequence", minibatch_size=12, microbatch_size=3
    ),
    "rloo, adapters": dict(algorithm="rloo", group_size=3, kind="llama", memory="adapters"),
    "reinforce, a row each": dict(algorithm="reinforce", rows=5, microbatch_size=1, recompute=True),
    "ppo, full": dict(algorithm="ppo", kind="llama", memory="full", minibatch_size=8, recompute=True),
    "ppo, adapters": dict(algorithm="ppo", memory="adapters", critic="adapter", microbatch_size=5),
    "ppo, full, branches": dict(algorithm="ppo", memory="full", minibatch_size=8, branches=2),
}
"""What the default tests train in two processes."""
MORE = {
    "empty shares": dict(algorithm="ppo", rows=4, minibatch_size=1),
    "empty shares, branches": dict(algorithm="ppo", rows=4, minibatch_size=1, branches=2),
    "adapters, branches": dict(algorithm="ppo", memory="adapters", critic="adapter", branches=3, recompute=True),
    "early stop": dict(algorithm="ppo", minibatch_size=8, epochs=4, target_kl=1e-3),
    "whole weights in rollouts": dict(algorithm="ppo", memory="full", whole=True),
    "whole weights in rollouts, adapters": dict(algorithm="ppo", memory="adapters", critic="adapter", whole=True),
    "rows one at a time": dict(algorithm="ppo", kind="llama", collecting=dict(max_concurrent_rows=3)),
    "offload": dict(algorithm="ppo", memory="full", offload=True),
    "windows": dict(algorithm="ppo", kind="mistral", minibatch_size=8),
    "windows, recomputed": dict(algorithm="grpo", group_size=3, kind="mistral", recompute=True, microbatch_size=4),
    "dynamic sampling": dict(
        algorithm="grpo", policy_loss="cispo", group_size=2, dynamic_sampling=2, microbatch_size=3
    ),
    "gspo": dict(algorithm="grpo", group_size=4, policy_loss="gspo", average="sequence"),
    "adapters, exact kl": dict(algorithm="rloo", group_size=3, memory="adapters", kl_in="both", kl_estimator="full"),
    "adapters, shared critic": dict(algorithm="ppo", memory="adapters", recompute=True, critic_warmup=1),
    "reinforce, full": dict(algorithm="reinforce", average="constant", entropy_coef=0.01, kind="llama"),
    "rloo": dict(algorithm="rloo", group_size=3, kind="mistral", memory="adapters", recompute=True),
}
"""What the slow ones train besides, in three."""


def model_of(kind):
    torch.manual_seed(0)
    if kind == "gpt2":  # one matrix for embedding and output
        return GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=16, n_layer=LAYERS, n_head=2, **IDS))
    shape = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=16, **IDS,
    )  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    return MistralForCausalLM(MistralConfig(**shape, sliding_window=3))  # whose rows cannot be packed


def agent_of(
    processes, algorithm="ppo", kind="gpt2", memory="shared", critic=None, rows=ROWS - 1, recompute=False, whole=False,
    collecting=None, model=None, offload=False, autocast=None, **options,
):  # fmt: skip
    settings = dict(minibatch_size=None, epochs=1) | STEPS | (dict(value_coef=0.1) if algorithm == "ppo" else {})
    config = TextAgentConfig.for_algorithm(algorithm, **(settings | options))
    rows -= rows % config.group_size
    critic = ("separate" if memory == "full" else critic or "shared") if config.uses_critic else "none"
    model = model_of(kind) if model is None else model
    if memory == "adapters":
        trunk = AdaptedTrunk(model, LoraOptions(rank=2), value=critic == "adapter")
        start = CausalLMPolicy(model, critic="none", adapters=trunk, role=None, autocast=autocast)
    else:
        trunk, start = None, CausalLMPolicy(copy.deepcopy(model).requires_grad_(False), critic="none")
    policy = CausalLMPolicy(model, critic=critic, adapters=trunk, recompute=recompute, autocast=autocast)
    if processes.count > 1:
        shard([policy, start], processes, mesh_of(processes, "cpu"), offload=offload)

    def reference(prompts, completions):
        return start.completion_logprobs(torch.from_numpy(prompts), torch.from_numpy(completions)).numpy()

    prompts = [[1 + i % 5] * (1 + i % 3) for i in range(20)]
    vocab = model.config.vocab_size
    envs = TokenVectorEnv(
        rows, prompts=prompts, eos_token_id=EOS, vocab_size=vocab, max_new_tokens=T, group_size=config.group_size
    )
    envs = KLShaping(PreferenceReward(envs, Scorer()), reference, BETA, charge=config.kl_in != "loss")
    writer = with_whole_weights(generate, processes) if whole and processes.count > 1 else generate
    collector = TextCollector(
        envs, seed=2, dynamic_sampling=config.dynamic_sampling, processes=processes, generate=writer,
        **(collecting or {}),
    )  # fmt: skip
    return TextAgent(config, policy, collector=collector, reference=start)


def outcome(case, processes, keep=None):
    """Two iterations: rows and figures of each, and the whole weights after them; ``keep``: where to save between."""
    agent = agent_of(processes, **(CASES | MORE)[case])
    found = {"rows": [], "figures": []}
    for _ in range(2):
        agent.iterate()
        found["rows"].append(vars(agent.collector.last))
        found["figures"].append(agent.metrics)
        if keep is not None and agent.updates == 1:
            agent.save(keep)
    weights = {
        name: getattr(each, "full_tensor", lambda e=each: e)() for name, each in agent.policy.state_dict().items()
    }
    return {**found, "weights": weights, "generator": agent.collector.writer.generator.get_state()}


def assert_same(one, other):
    """But for the seconds, and for rounding, on which it hangs whether returns that are nearly equal are so; and
    ``logprob_drift`` is of the first process's share."""
    for ours, theirs in zip(one["rows"], other["rows"], strict=True):
        assert (ours["completions"] == theirs["completions"]).all()
        for name in ("rewards", "kl", "scores", "logprobs"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
    for ours, theirs in zip(one["figures"], other["figures"], strict=True):
        names = {name for name in ours if not name.startswith("time/")} - {"train/logprob_drift", "train/flat_groups"}
        expected = {name: theirs[name] for name in names}
        assert {name: ours[name] for name in names} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert (one["generator"] == other["generator"]).all()
    assert one["weights"].keys() == other["weights"].keys()
    torch.testing.assert_close(one["weights"], other["weights"], atol=ATOL, rtol=0)


def launched(what, folder, count):
    """What ``what`` left in ``folder``, run by this file in ``count`` processes."""
    command = [sys.executable, "-m", "tests.agents.lm.test_sharding", what, str(folder), str(count)]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return torch.load(folder / "outcome.pt", weights_only=False)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return launched("cases", folder, 2), folder


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return launched("all_cases", tmp_path_factory.mktemp("three"), 3)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(two, case):
    alone = outcome(case, ALONE)
    assert_same(alone, two[0][case])
    other = agent_of(ALONE, **CASES[case]).policy.state_dict()
    assert max((other[name] - value).abs().max() for name, value in alone["weights"].items()) > 1e3 * ATOL


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES | MORE)
def test_three_processes_do_what_one_does(three, case):
    assert_same(outcome(case, ALONE), three[case])


@pytest.mark.parametrize("case", SAVED)
def test_one_process_goes_on_from_a_sharded_checkpoint(two, case):
    found, folder = two
    agent = agent_of(ALONE, **CASES[case])
    agent.restore(folder / case / "checkpoint.safetensors")
    agent.iterate()
    torch.testing.assert_close(dict(agent.policy.state_dict()), found[case]["weights"], atol=ATOL, rtol=0)


def test_what_is_half_written_is_refused(two, tmp_path):
    written = two[1] / "ppo, full" / "checkpoint.safetensors"
    kept = json.loads(_header(written)["state"])["__shards__"]["folder"]
    for path in (written, *(written.parent / kept).iterdir()):
        (tmp_path / path.relative_to(written.parent)).parent.mkdir(exist_ok=True)
        (tmp_path / path.relative_to(written.parent)).write_bytes(path.read_bytes())
    checkpoint.load(tmp_path / written.name)
    part = next((tmp_path / kept).iterdir())
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match=r"shards_\d+/shard-0000.*is missing or half-written"):
        checkpoint.load(tmp_path / written.name)
    part.unlink()
    with pytest.raises(checkpoint.CheckpointError, match="is missing or half-written"):
        checkpoint.load(tmp_path / written.name)


def _header(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_a_full_disk_leaves_the_last_checkpoint_whole(two):
    full = two[0]["full disk"]
    assert full["said"] == ["cannot write the checkpoint"] * 2
    assert full["before"] == full["after"]  # and no half-written folder is left


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_process_holds_its_part(count, tmp_path, request):
    """Weights, gradients and optimizer states at rest."""
    found = request.getfixturevalue("two")[0]["memory"] if count == 2 else launched("memory", tmp_path, count)["memory"]
    alone = memory(ALONE)
    for held in found:
        assert sum(held["held"].values()) <= 1.25 / count * sum(alone["held"].values())
    work = Workload(rollout_rows=4, update_rows=4, prompt_tokens=3, new_tokens=T)
    planned = plan(wide(64), Layout(memory="full", critic="separate", processes=count), work)
    held = found[0]["held"]
    assert planned["policy_weights"] + planned["critic_weights"] == held["weights"]
    assert (planned["gradients"], planned["adam_states"]) == (held["gradients"], held["adam_states"])


@pytest.mark.slow
def test_the_run_goes_on_after_a_kill_and_after_a_fault(tmp_path):
    found = launched("faults", tmp_path, 2)
    assert found["killed"]["seconds"] < 15
    assert 0 not in found["killed"]["codes"] + found["raised"]["codes"] + found["three"]["codes"]
    assert "process 0 stops, as process 1 (pid" in found["killed"]["said"][0]
    assert ") was killed" in found["killed"]["said"][0]
    assert "process 0 stops, as process 1 raised RewardError" in found["raised"]["said"][0]
    # Three processes went on, until one was killed, then one alone, from what two had left.
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("undisturbed", "run"))
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_products_round_and_the_master_weights_do_not(two):
    for case, types in two[0]["types"].items():
        expected = {"torch.float32"} | ({"torch.bfloat16"} if "adapters" in case else set())
        assert types["weights"] == expected  # a frozen trunk is loaded as the type of products
        assert types["gradients"] == types["states"] == {"torch.float32"}
        np.testing.assert_allclose(types["logprobs"], types["alone"], atol=0.1)


def types_of(processes, memory):
    """The types of what a process holds under ``--dtype bfloat16``, and log-probs with those of one process."""
    dtype = torch.bfloat16 if memory == "adapters" else torch.float32

    def agent(processes):
        return agent_of(
            processes, kind="llama", memory=memory, autocast=torch.bfloat16, model=model_of("llama").to(dtype), rows=8
        )

    ours, alone = agent(processes), agent(ALONE)
    ours.iterate()
    alone.iterate()
    same = alone.collector.last.completions == ours.collector.last.completions
    agreed = same.cumprod(1).astype(bool) & (alone.collector.last.completions >= 0)
    assert agreed.sum() > 10
    held = ours.optimizer.state.values()
    return {
        "weights": {str(each.dtype) for each in ours.policy.parameters()},
        "gradients": {str(each.grad.dtype) for each in ours.policy.parameters() if each.grad is not None},
        "states": {str(each.dtype) for state in held for each in state.values()},
        "logprobs": ours.collector.last.logprobs[agreed],
        "alone": alone.collector.last.logprobs[agreed],
    }


def wide(width):
    return GPT2Config(n_positions=16, n_embd=width, n_layer=8, n_head=2, **IDS)


def memory(processes, width=64):
    """Bytes that a process holds after two updates, and those that it grew by at the peak of the second one."""
    torch.manual_seed(0)
    before = resident_bytes()
    agent = agent_of(processes, "ppo", memory="full", model=GPT2LMHeadModel(wide(width)), rows=8)
    agent.iterate()
    peak = PeakMemory()
    agent.iterate()
    return {"held": held_bytes(agent.policy, agent.optimizer), "peak": peak.start + peak.bytes() - before}


def full_disk(processes, folder):
    """A second checkpoint that process 1 cannot write, as files may only be so large."""
    agent = agent_of(processes)
    path = folder / "disk" / "checkpoint.safetensors"
    agent.save(path)
    processes.all_gather(None)
    before = checkpoint.load(path)["generators"]["learn"].sum().item(), len(list(path.parent.iterdir()))
    agent.iterate()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    if processes.index == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    said = ""
    try:
        agent.save(path)
    except OSError as fault:
        said = str(fault)[:27]
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    said = processes.all_gather(said)
    after = checkpoint.load(path)["generators"]["learn"].sum().item(), len(list(path.parent.iterdir()))
    return {"said": said, "before": before, "after": after}


def cases(processes, folder, names=CASES):
    found = {}
    for case in names:
        path = folder / case / "checkpoint.safetensors" if case in SAVED else None
        own = Processes(processes.index, processes.count)  # with the operations of this agent only
        found[case] = outcome(case, own, path)
    own = Processes(processes.index, processes.count)
    found["memory"] = processes.all_gather(memory(own))
    if names is CASES:
        kinds = ("shared", "adapters")
        found["types"] = {kind: types_of(Processes(processes.index, processes.count), kind) for kind in kinds}
        found["full disk"] = full_disk(Processes(processes.index, processes.count), folder)
    return found


def score(prompts, completions):
    """A reward that fails in the process that FALL names, at its fifth batch."""
    score.calls += 1
    if os.environ.get("FALL") == os.environ.get("RANK", "alone") and score.calls == 5:
        raise RuntimeError("a fault of one")
    return [float(len(text) % 7) for text in completions]


score.calls = 0


def command(folder, name, *more):
    """A short run of train-text, whose steps rounding does not turn (STEPS)."""
    (folder / "rows.txt").write_text("\n".join(f"a film number {number}" for number in range(40)))
    numbers = dict(
        episodes=64, batch_size=8, minibatch_size=8, epochs=1, max_new_tokens=6, num_eval_rows=4, learning_rate=0.03,
        adam_eps=1, checkpoint_every=1, evaluate_every=0, eval_samples=1, seed=1,
    )  # fmt: skip
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in numbers.items()]
    which = ["--rows", str(folder / "rows.txt"), "--reward", "tests.agents.lm.test_sharding:score"]
    return ["--run-dir", str(folder / name), "--quiet", *which, *flags, *more]


def run_command(arguments, count, until=None, fall=None):
    """The exit codes of ``count`` processes, what each said, and the seconds since the last one was killed, once
    ``until`` had been written; or since the start."""
    environment = {"FALL": str(fall)} if fall is not None else {"FALL": ""}
    running, said = forked(lambda: sys.exit(command_line(arguments)), count, environment)
    began, now = time.monotonic(), time.time()
    if until is not None:
        while any(each.is_alive() for each in running) and not (until.exists() and until.stat().st_mtime > now):
            time.sleep(0.02)
        began = time.monotonic()
        os.kill(running[-1].pid, signal.SIGKILL)
    for each in running:
        each.join()
    spoken = [file.read_text().strip() for file in said]
    return {"codes": [each.exitcode for each in running], "said": spoken, "seconds": time.monotonic() - began}


def faults(folder):
    sharded = ["--shard", "fsdp"]
    undisturbed = run_command(command(folder, "undisturbed"), 1)
    assert undisturbed["codes"] == [0], undisturbed
    file = folder / "run" / "checkpoint.safetensors"
    killed = run_command(command(folder, "run", *sharded), 2, until=file)
    raised = run_command(command(folder, "run", *sharded, "--resume"), 2, fall=1)
    three = run_command(command(folder, "run", *sharded, "--resume"), 3, until=file)
    rest = run_command(command(folder, "run", "--resume"), 1)
    assert rest["codes"] == [0], rest
    return {"killed": killed, "raised": raised, "three": three}


def forked(what, count, environment=None):
    """``what`` in ``count`` processes, as a launcher starts them; each one's errors go to a file of its own."""
    context, port, files = multiprocessing.get_context("fork"), str(free_port()), []
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = []

    def begin(file):
        with open(file, "w") as sink:
            os.dup2(sink.fileno(), 2)
        torch.set_num_threads(1)
        what()

    for rank in map(str, range(count)):
        files.append(Path(f"/tmp/said_{os.getpid()}_{port}_{rank}"))
        launcher = {**shared, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
        os.environ |= launcher | (environment or {})
        running.append(context.Process(target=begin, args=(files[-1],)))
        running[-1].start()
        for name in launcher:
            del os.environ[name]
    return running, files


def main(what, folder, count):
    if what == "faults":
        torch.save(faults(folder), folder / "outcome.pt")
        return

    def work():
        processes = Processes.launched("cpu")
        assert processes.count == count
        if what == "memory":
            found = {"memory": processes.all_gather(memory(Processes(processes.index, processes.count)))}
        else:
            found = cases(processes, folder, CASES if what == "cases" else [*CASES, *MORE])
        if processes.is_main:
            torch.save(found, folder / "outcome.pt")
        torch.distributed.destroy_process_group()

    running, said = forked(work, count)
    while any(each.is_alive() for each in running) and not any(each.exitcode for each in running):
        time.sleep(0.05)
    codes = [each.exitcode for each in running]
    for each in running:
        each.kill()
    sys.exit("\n".join(file.read_text()[-2000:] for file in said) if any(codes) else 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
