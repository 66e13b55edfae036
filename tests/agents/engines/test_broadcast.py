"""Weights by broadcast, over gloo: they arrive bit by bit, a group lasts, and what is lost or late is named."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.engines import broadcast
from agents.engines.protocol import EngineError
from agents.engines.vllm import VLLMEngine
from agents.lm.saving import named_weights
from agents.recipes.rlhf.config import TrainTextConfig
from agents.text.config import TextEngineConfig
from agents.text.writer import engine_options
from tests.agents.engines.conftest import FakeVLLM
from tests.agents.engines.test_group import alike
from tests.agents.engines.test_vllm import agent_of, agrees, model_of, policy_of, prompts_of, same, sampling_of


def engine_of(fake, **options):
    return VLLMEngine(fake.url, **{"transfer": "broadcast", "patience_s": 5.0, "timeout_s": 20.0, **options})


def merged(packs):
    return {name: weight for pack in packs for name, weight in pack.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_what_arrives_is_what_was_sent_bit_by_bit(serve, monkeypatch, dtype, tied):
    monkeypatch.setattr(broadcast, "PACK_BYTES", 3000)
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=tied)).to(dtype)
    sent = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert ("lm_head.weight" in sent) is not tied
    fake = serve(model_of())
    engine_of(fake).update(sent.items(), 1)
    alike(merged(fake.received), sent)
    packs = [[weight.nbytes for weight in pack.values()] for pack in fake.received]
    assert any(len(pack) > 1 for pack in packs)
    assert all(len(pack) == 1 or sum(pack) <= 3000 for pack in packs)
    assert fake.version == "1"


def test_dtypes_do_not_mix_in_a_broadcast_and_numbers_keep_their_shape(serve):
    fake = serve(model_of())
    sent = {
        "a": torch.randn(3).bfloat16(), "b": torch.randn(2, 5).T, "c": torch.tensor(2.5), "d": torch.randn(1, 2, 3),
        "e": torch.randn(3).half(),
    }  # fmt: skip
    engine_of(fake).update(sent.items(), 0)
    alike(merged(fake.received), sent)
    assert [list(pack) for pack in fake.received] == [["a"], ["b", "c", "d"], ["e"]]


def test_a_group_lasts_and_texts_are_by_the_newest_weights(serve):
    fake = serve(model_of())
    engine = engine_of(fake)
    for version in range(3):
        policy = policy_of(seed=version)
        engine.update(named_weights(policy), version)
        agrees(policy, prompts_of(), engine.generate(prompts_of(), sampling_of()))
    assert fake.joined == 1


def test_no_process_group_of_the_trainers_is_touched(serve):
    engine_of(serve(model_of())).update(named_weights(policy_of()), 0)
    assert not torch.distributed.is_initialized()


def test_weights_are_asked_for_one_after_the_other(serve, monkeypatch):
    monkeypatch.setattr(broadcast, "PACK_BYTES", 100)
    fake, ahead = serve(model_of()), []

    def weights():
        for i in range(10):
            ahead.append(i - len(fake.received))
            yield f"w{i}", torch.full((20,), float(i))

    engine_of(fake).update(weights(), 0)
    assert max(ahead) == 1


@pytest.mark.parametrize(
    "path", ["/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"]
)
@pytest.mark.parametrize("fault", ["oom", "hang up"])
def test_an_update_that_fails_on_its_way_is_done_again_by_the_same_weights(serve, monkeypatch, path, fault):
    monkeypatch.setattr(broadcast, "PACK_BYTES", 3000)
    fake, policy = serve(model_of()), policy_of(seed=8)
    engine = engine_of(fake)
    fake.faults[path] = [None, fault] if path == "/update_weights" else [fault]
    with pytest.warns(UserWarning, match="trying again"):
        engine.update(named_weights(policy), 1)
    assert fake.version == "1"
    agrees(policy, prompts_of(), engine.generate(prompts_of(), sampling_of()))


def test_a_server_started_anew_is_joined_again_and_gets_the_weights_that_wrote(serve):
    fake, policy = serve(model_of()), policy_of(seed=5)
    engine = engine_of(fake)
    engine.update(named_weights(policy), 2)
    undisturbed = engine.generate(prompts_of(), sampling_of())
    with torch.no_grad():  # the policy learns on
        for parameter in policy.model.parameters():
            parameter.add_(1)
    fake.faults["/inference/v1/generate"] = [None, None, "kill"]
    fake.start_when_stopped()
    with pytest.warns(UserWarning, match="no answer"):
        same(engine.generate(prompts_of(), sampling_of(max_concurrent_rows=1)), undisturbed)
    assert fake.version == "2"
    assert fake.joined == 2


def served(port):
    """A server in this process that kills it with the second update; it starts when the port is free, and ends with
    what started it."""
    fake = None
    while fake is None:
        with suppress(OSError):
            fake = FakeVLLM(model_of(), port)
    receive = fake.update

    def update(**about):
        if fake.version == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return receive(**about)

    fake.update = update
    sys.stdin.read()


def test_a_receiver_that_is_killed_is_named_and_its_successor_joined():
    """Takes seconds: two processes start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.agents.engines.test_broadcast", str(port)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[3]) for _ in range(2)]
    engine = VLLMEngine(f"http://127.0.0.1:{port}", transfer="broadcast", timeout_s=20, patience_s=60)
    try:
        engine._recover(loads=False)  # it starts
        engine.update(named_weights(policy_of()), 0)
        policy = policy_of(seed=4)
        with pytest.warns(UserWarning, match=r"update_weights: .*trying again"):
            engine.update(named_weights(policy), 1)
        agrees(policy, prompts_of(), engine.generate(prompts_of(), sampling_of()))
        assert sorted(each.poll() is None for each in running) == [False, True]
    finally:
        engine.close()
        for each in running:
            each.kill()
            each.communicate()


@pytest.mark.parametrize("path", ["/init_weight_transfer_engine", "/update_weights"])
def test_a_receiver_that_never_comes_is_an_error_in_time(serve, path):
    fake = serve(model_of())
    engine = engine_of(fake, timeout_s=0.5, retries=0)
    fake.faults[path] = ["absent"] * 9
    with pytest.raises(EngineError, match=rf"{path}: the broadcast failed"):  # more than the sockets' buffers hold
        engine.update([("w", torch.zeros(2**24))], 0)


def test_what_is_no_vllm_server_is_named(serve):
    fake = serve(model_of())
    fake.faults["/get_world_size"] = ["absent"] * 9
    with pytest.raises(EngineError, match="expected the number of workers"):
        engine_of(fake, retries=0).update(named_weights(policy_of()), 0)


def test_adapters_do_not_go_by_broadcast():
    with pytest.raises(ValueError, match='transfer: expected "folder", or "broadcast" of whole models'):
        VLLMEngine("http://x", transfer="broadcast", adapter_only=True)
    engine = {"run_dir": "x", "engine": "http://x", "engine_transfer": "broadcast"}
    with pytest.raises(ValueError, match='engine_transfer needs engine_weights "full"'):
        TrainTextConfig.preset("rloo", memory="adapters", engine_weights="adapter", **engine)
    with pytest.raises(ValueError, match='engine_folder needs engine_transfer "folder"'):
        TrainTextConfig.preset("rloo", engine_folder="x", **engine)
    with pytest.raises(ValueError, match="engine_transfer needs an engine"):
        TrainTextConfig.preset("rloo", run_dir="x", engine_transfer="broadcast")


def test_training_by_broadcast_is_that_by_a_folder_bit_for_bit(serve):
    found = {}
    for transfer in ("folder", "broadcast"):
        fake = serve(model_of())
        options = engine_options(TextEngineConfig(engine=fake.url, engine_transfer=transfer))
        agent = agent_of(fake, policy_of(), **options)
        for _ in range(3):
            agent.iterate()
        assert (fake.joined, fake.version) == (int(transfer == "broadcast"), "2")
        found[transfer] = agent.policy.state_dict()
    alike(found["broadcast"], found["folder"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    served(int(sys.argv[1]))
