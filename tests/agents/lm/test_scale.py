"""Parts of an update on many GPUs, beside sums by hand and what the meta device holds."""

import pytest
import torch
from transformers import LlamaConfig

from agents.cli import main
from agents.lm.memory import Layout, Workload, plan
from agents.lm.scale import Machine, Run, Shape, update_parts

SHAPE = Shape(parameters=1_000_000_000, layers=10, hidden=2000, kv_width=500, vocabulary=50_000)
ROUND = Machine(
    gpus_per_node=8, memory_gb=100, tflops=1000, products_share=0.5, bandwidth_gb_s=2000, bandwidth_share=0.5,
    link_gb_s=100, network_gb_s=10, link_share=1.0,
)  # fmt: skip
RUN = Run(rows=100, prompt_tokens=100, new_tokens=300, epochs=2, pass_tokens=10_000, scoring_passes=1)


def test_one_gpu_by_hand():
    found = update_parts(SHAPE, RUN, ROUND, 1)
    assert found["gb_weights_gradients_adam"] == 16  # 4 + 4 + 8 bytes
    assert found["gb_frozen"] == 2
    assert found["sent_gb_gathered"] == found["sent_gb_gradients"] == found["sent_gb_to_engine"] == 0
    forward = 100 * 400 * (2e9 + 2 * 10 * 2000 * 400)
    assert found["s_score"] == pytest.approx(forward / 5e14)
    assert found["s_update"] == pytest.approx(2 * 4 * forward / 5e14)  # forward, again, and twice backward
    cache = 2 * 2 * 10 * 500 * 400  # of a row, bytes
    step = (2e9 + 100 * cache / 2) / 1e12
    assert found["s_generate"] == pytest.approx(300 * step + 2e9 * 100 * 100 / 5e14)
    assert found["s_adam"] == pytest.approx(28e9 / 1e12)


def test_what_is_sent_by_hand():
    found = update_parts(SHAPE, RUN, ROUND, 4)
    passes = 2 * 1  # epochs; 40,000 tokens over 4 GPUs are one pass of 10,000
    assert found["sent_gb_gathered"] == pytest.approx(passes * 2 * 2 * 0.75)
    assert found["sent_gb_gradients"] == pytest.approx(passes * 4 * 0.75)
    across = update_parts(SHAPE, RUN, ROUND, 16)
    sent = across["sent_gb_gathered"] + across["sent_gb_gradients"]
    assert across["s_update"] == pytest.approx(sent / 10)  # the network is what it waits for
    both = update_parts(SHAPE, Run(**{**vars(RUN), "critic": True}), ROUND, 16)
    assert both["s_update"] == pytest.approx(2 * across["s_update"])


def test_unsharded_gpus_hold_all_and_sum_gradients_once_a_step():
    found = update_parts(SHAPE, Run(**{**vars(RUN), "shard": "none"}), ROUND, 4)
    assert (found["gb_weights_gradients_adam"], found["gb_frozen"], found["gb_gathered"]) == (16, 2, 0)
    assert found["sent_gb_gathered"] == 0
    assert found["sent_gb_gradients"] == pytest.approx(2 * 2 * 4 * 0.75)  # two epochs; there and back; float32


def test_weights_gradients_and_states_are_those_of_the_meta_device():
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    work = Workload(rollout_rows=2, update_rows=2, prompt_tokens=2, new_tokens=2)
    planned = plan(config, Layout(memory="shared", critic="none", dtype=torch.float32), work)
    shape = Shape(parameters=planned["policy_weights"] // 4, layers=2, hidden=24, kv_width=24, vocabulary=50)
    held = sum(planned[name] for name in ("policy_weights", "gradients", "adam_states"))
    found = 1e9 * update_parts(shape, RUN, ROUND, 1)["gb_weights_gradients_adam"]
    assert found == pytest.approx(held, rel=0.01)  # and a step count for each tensor


def test_the_command_prints_a_column_for_each_number_of_gpus(capsys, model_dir):
    assert main(["plan", "--gpus", "1", "64", "--size", "70B"]) == 0
    out = capsys.readouterr().out
    assert "70.55 billion" in out
    assert next(line for line in out.splitlines() if line.startswith("fits")).split() == ["fits", "0", "1"]
    assert main(["plan", "--model", str(model_dir), "--gpus", "2"]) == 0
    with pytest.raises(SystemExit):
        main(["plan", "--gpus", "0"])


@pytest.mark.parametrize(("name", "layers", "hidden", "inner", "heads", "tied"), [
    ("1B", 16, 2048, 8192, 32, True), ("8B", 32, 4096, 14336, 32, False), ("70B", 80, 8192, 28672, 64, False),
])  # fmt: skip
def test_sizes_are_those_of_the_shapes(name, layers, hidden, inner, heads, tied):
    from agents.recipes.commands.plan import LLAMA

    keys, vocabulary = 8 * hidden // heads, 128_256
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    parameters = layers * layer + hidden + vocabulary * hidden * (1 if tied else 2)
    assert LLAMA[name] == Shape(
        parameters=parameters, layers=layers, hidden=hidden, kv_width=keys, vocabulary=vocabulary
    )
