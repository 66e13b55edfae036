"""Several processes beside one: the same texts, figures and weights, with every algorithm; one resumes what they began.

As a script this file trains every case in several processes and leaves the outcomes in the file that it is told. They
are forked from one that has imported everything, with the environment that `torchrun` sets; a slow test has torchrun's.
"""

import copy
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.runs.distributed import ALONE, Processes
from tests.agents.text.test_agent import ROWS, agent_of
from textenvs.tokens.rows import PAD

COUNT = 3
STEPS = {"learning_rate": 0.3, "adam_eps": 1.0}
"""Adam divides a gradient by its size plus eps. With an eps far below the gradients a first step is learning_rate times
their sign, so what rounding leaves of a gradient of 0 moves a weight by up to learning_rate / eps times itself: by 1e-4
with the usual 1e-2 / 1e-5, and by how much is the processor's to decide. With an eps far above them (they are clipped
to a norm of 0.5) a step is learning_rate times the gradient, almost, and rounding stays what it was.
"""
ATOL = 1e-5
"""Log-probs of a few nats are sums that rounding moves by some units of 2^-22 = 2.4e-7, gradients of order 1 by less,
and a few steps of 0.3 times such a gradient by some 1e-7. A row left out or counted twice moves weights by 1e-3."""
CASES = {
    "ppo": dict(algorithm="ppo", rows=ROWS - 1, minibatch_size=8, epochs=2, normalize_advantages="minibatch"),
    "max_concurrent_rows": dict(
        algorithm="ppo", kind="llama", rows=ROWS, collecting=dict(max_concurrent_rows=3, missing_eos_penalty=0.5)
    ),
    "branches": dict(algorithm="ppo", rows=ROWS - 1, minibatch_size=8, branches=2),
    "empty shares": dict(algorithm="ppo", rows=4, minibatch_size=1, epochs=1),
    "early stop": dict(algorithm="ppo", rows=ROWS, minibatch_size=8, epochs=4, target_kl=1e-3),
    "grpo": dict(
        algorithm="grpo",
        group_size=6,
        kl_estimator="full",
        average="sequence",
        minibatch_size=12,
        microbatch_size=3,
        epochs=2,
    ),
    "rloo": dict(algorithm="rloo", group_size=3, kind="llama"),
    "cispo, dynamic sampling": dict(
        algorithm="grpo", policy_loss="cispo", group_size=2, dynamic_sampling=2, minibatch_size=12, microbatch_size=3
    ),
    "reinforce": dict(algorithm="reinforce", average="constant", entropy_coef=0.01),
    "a batch ahead": dict(algorithm="rloo", group_size=3, collecting=dict(async_rollouts=1)),
}


def outcome(case, processes):
    """Two iterations: rows and figures of each, the state between them, and the weights after them."""
    options = copy.deepcopy(CASES[case])
    options["collecting"] = {**options.get("collecting", {}), "processes": processes}
    agent = agent_of(**options, **STEPS)
    found = {"rows": [], "figures": []}
    for _ in range(2):
        agent.iterate()
        found["rows"].append(vars(agent.collector.last))
        found["figures"].append(agent.metrics)
        found.setdefault("between", copy.deepcopy(agent.state_dict()))
    writer = agent.collector.writer  # ahead, each process's generator stands where its own share's next batch ended
    generator = torch.zeros(1) if writer.ahead else writer.generator.get_state()
    return {**found, "weights": agent.policy.state_dict(), "generator": generator}


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(COUNT), "-m"]


@pytest.fixture(scope="module", params=["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def together(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("processes") / "outcome.pt"
    launcher = TORCHRUN if request.param == "torchrun" else []
    command = [sys.executable, "-m", *launcher, "tests.agents.runs.test_distributed", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(file, weights_only=False)


def assert_same(one, other):
    """But for the seconds, and for rounding, on which it hangs whether returns that are nearly equal are so; and
    ``logprob_drift`` is of the first process's share."""
    for ours, theirs in zip(one["rows"], other["rows"], strict=True):
        assert (ours["completions"] == theirs["completions"]).all()
        for name in ("rewards", "kl", "scores", "logprobs"):
            np.testing.assert_allclose(ours[name], theirs[name], atol=ATOL)
    for ours, theirs in zip(one["figures"], other["figures"], strict=True):
        names = {name for name in ours if not name.startswith("time/")} - {"train/logprob_drift", "train/flat_groups"}
        assert names <= set(theirs)
        expected = {name: theirs[name] for name in names}
        assert {name: ours[name] for name in names} == pytest.approx(expected, rel=1e-4, abs=ATOL)
    assert (one["generator"] == other["generator"]).all()
    torch.testing.assert_close(one["weights"], other["weights"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_several_processes_do_what_one_does(together, case):
    alone = outcome(case, ALONE)
    assert_same(alone, together[case])
    moved = [(alone["between"]["policy"][name] - value).abs().max() for name, value in alone["weights"].items()]
    assert max(moved) > 1e3 * ATOL
    if case != "empty shares":
        lengths = (alone["rows"][0]["completions"] != PAD).sum(1)
        assert lengths.min() < lengths.max()  # so shares end at different times, with one generator all the same
    if case == "early stop":
        assert alone["figures"][0]["train/early_stop"] == 1.0


def test_one_process_goes_on_where_several_stopped(together):
    agent = agent_of(**CASES["max_concurrent_rows"], **STEPS)
    agent.load_state_dict(together["max_concurrent_rows"]["between"])
    agent.iterate()
    torch.testing.assert_close(
        dict(agent.policy.state_dict()), together["max_concurrent_rows"]["weights"], atol=ATOL, rtol=0
    )
    assert (agent.collector.writer.generator.get_state() == together["max_concurrent_rows"]["generator"]).all()


def test_all_begin_as_the_first_and_hear_of_each_other(together):
    heard = together["heard"]
    assert heard["weights"] == [0.0] * COUNT
    assert heard["broadcast"] == ["said by 0"] * COUNT
    assert heard["any"] == [(True, False)] * COUNT
    assert heard["gathered"] == list(range(COUNT))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 3, 16, 23])
def test_shares_are_all_rows_once_and_in_order(count, rows):
    parts = [list(range(rows))[Processes(index, count).shard(rows)] for index in range(count)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_waits_for_nobody():
    assert ALONE.is_main
    assert ALONE.all_gather("mine") == ["mine"]
    assert ALONE.broadcast("mine") == "mine"
    assert ALONE.any(True)
    assert not ALONE.any(False)
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.all_reduce_gradients([parameter])
    ALONE.broadcast_in_place([parameter])
    assert parameter.grad is None


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match=r"index must lie in \[0, 2\), received 2"):
        Processes(2, 2)
    with pytest.raises(ValueError, match="expected 5 rows or more, one a process, received 4"):
        agent_of("ppo", rows=4, collecting={"processes": Processes(0, 5)})


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


FALL = """
import time, sys
from agents.runs.distributed import Processes
processes = Processes.launched("cpu")
with processes.together():
    processes.all_gather(1)
    if processes.index == 1:
        raise ValueError("a fault of one")
    time.sleep(600)
"""


def test_a_process_that_raises_takes_the_others_down_within_seconds(tmp_path):
    """Also those that no connection tells of it, as they compute; and without a launcher that watches them."""
    port = free_port()
    running = []
    for rank in range(2):
        there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {"PYTHONPATH": os.getcwd()} | {name: str(value) for name, value in there.items()}
        running.append(
            subprocess.Popen([sys.executable, "-c", FALL], env=environment, stderr=subprocess.PIPE, text=True)
        )
    ends = [process.communicate(timeout=90)[1] for process in running]
    assert [process.returncode for process in running] == [1, 1]
    assert "process 0 stops, as process 1 raised ValueError: a fault of one" in ends[0]
    assert "Traceback" in ends[1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "received FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "received DeepSpeed"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "received mixed precision bf16"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "received torch.compile by dynamo inductor"),
    ],
)
def test_what_accelerate_is_to_do_beyond_starting_processes_is_refused(asked, said, monkeypatch):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        Processes.launched("cpu")


def test_fsdp_is_taken_where_the_run_is_sharded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="received DeepSpeed: every process holds the whole model, or with --shard"):
        Processes.launched("cpu", sharded=True)


def test_mixed_precision_that_the_run_has_itself_is_taken(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert Processes.launched("cpu", "bfloat16").count == 1


def main(file):
    torch.set_num_threads(1)
    processes = Processes.launched("cpu")
    assert processes.count == COUNT
    begun = torch.full((2,), float(processes.index))
    processes.broadcast_in_place([begun])
    heard = {
        "weights": [float(weights[0]) for weights in processes.all_gather(begun)],
        "broadcast": processes.all_gather(processes.broadcast(f"said by {processes.index}")),
        "any": processes.all_gather((processes.any(processes.index == 1), processes.any(False))),
        "gathered": processes.all_gather(processes.index),
    }
    found = {"heard": heard} | {case: outcome(case, processes) for case in CASES}
    if processes.is_main:
        torch.save(found, file)
    torch.distributed.destroy_process_group()


def launch(file):
    """`main` in forked processes; exits with 1 if one of them did not end well, and ends the others."""
    context = multiprocessing.get_context("fork")
    shared = {"WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = []
    for rank in map(str, range(COUNT)):
        os.environ |= {**shared, "RANK": rank, "LOCAL_RANK": rank}
        running.append(context.Process(target=main, args=(file,), daemon=True))
        running[-1].start()
    while any(process.is_alive() for process in running) and not any(process.exitcode for process in running):
        time.sleep(0.05)
    sys.exit(any(process.exitcode != 0 for process in running))


if __name__ == "__main__":
    main(sys.argv[1]) if "RANK" in os.environ else launch(sys.argv[1])
