"""Every family of causal language models in transformers is exact in every path, or refused when it is loaded.

`python tests/agents/lm/test_families.py` prints the table of docs/verification.md.
"""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from agents.lm.causal_lm import CausalLMPolicy
from agents.lm.generation import generate
from agents.lm.lora import AdaptedTrunk, LoraOptions
from reward_models.model import RewardModel
from textenvs.lm.packed_forward import trunk_of
from textenvs.tokens.rows import PAD
from textenvs.wrappers.reference import CausalLMReference

DOCS = Path(__file__).parents[3] / "docs" / "verification.md"
V = 37
BASE = dict(
    vocab_size=V, vocab_size_per_layer_input=V, bos_token_id=1, eos_token_id=0, pad_token_id=0, initializer_range=0.3,
    init_std=0.3, dropout=0.1, attention_dropout=0.1, hidden_size=16, n_embd=16, d_model=16, word_embed_proj_dim=16,
    embedding_size=16, hidden_size_per_layer_input=8, intermediate_size=32, ffn_dim=32, ffn_hidden_size=32,
    decoder_ffn_dim=32, num_hidden_layers=2, n_layer=2, n_layers=2, num_layers=2, decoder_layers=2,
    num_attention_heads=4, n_head=4, n_heads=4, num_heads=4, decoder_attention_heads=4, num_key_value_heads=2,
    head_dim=8, rotary_dim=4, max_position_embeddings=32, n_positions=32, max_seq_len=32, n_ctx=32, sliding_window=5,
    q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=6, qk_head_dim=8,
    moe_intermediate_size=16, expert_ffn_hidden_size=16, shared_expert_intermediate_size=16, num_experts=4,
    num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
    n_shared_experts=1,
)  # fmt: skip
"""Sizes by the names that configurations have for them; each takes those it has."""
VISION = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7,
    num_global_layers=1, vision_output_dim=16,
)  # fmt: skip
MAMBA = dict(mamba_n_heads=4, mamba_d_head=8, mamba_expand=2)
MLA = dict(num_key_value_heads=4)  # latent attention: as many keys as queries

PLAIN = """
    afmoe apertus apertus1p5_text arcee aria_text beam biogpt bitnet bloom codegen cohere cohere2 cohere2_moe ctrl cwm
    doge dots1 emu3 ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe falcon flex_olmo flint gemma gemma2
    gemma3_text gemma4_unified_text glm glm4 glm4_moe gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj
    granite granite_swa granitemoe granitemoe_swa granitemoeshared hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4
    hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna lfm2 llama llama4 llama4_text mellum mimo_v2_flash
    minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mllama mpt nanochat nemotron olmo olmo2 olmo3
    olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe sarvam_moe seed_oss smollm3 solar_open stablelm
    starcoder2 vaultgemma xglm
"""
LATENT = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa sarvam_mla youtu"
EXACT: dict[str, dict] = {name: {} for name in PLAIN.split()} | {name: MLA for name in LATENT.split()}
EXACT |= {
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0), num_key_value_heads=None,
        ffn_config=dict(ffn_hidden_size=16, moe_num_experts=4, moe_top_k=2),
    ),
    "diffllama": dict(attention_dropout=0.0),
    "dory": dict(n_input_layers=1, n_output_layers=0),
    "gemma3": dict(mm_tokens_per_image=4, image_token_id=36, boi_token_index=35, eoi_token_index=34),
    "gemma3n_text": dict(num_kv_shared_layers=0, laurel_rank=4, activation_sparsity_pattern=None, altup_num_inputs=2),
    "gemma4_text": dict(num_kv_shared_layers=0),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=5),
    "granitemoehybrid": MAMBA | dict(layer_types=["full_attention"] * 2),
    "helium": dict(head_dim=4, num_key_value_heads=4),
    "lfm2_moe": dict(layer_types=["full_attention"] * 2, num_dense_layers=1),
    "longcat_flash": MLA | dict(head_dim=4, num_hidden_layers=None),
    "hrm_text": dict(L_cycles=1),
    "moshi": dict(sliding_window=32),
    "opt": dict(word_embed_proj_dim=8),
}  # fmt: skip
RECURRENT, LATER = "recurrent layers, or no key-value cache", "later tokens change earlier logits"
HEAD, ROWS = "logits that are not the output embedding of the last states", "no cache for rows of different lengths"
REFUSED: dict[str, tuple[str, dict]] = {}
MESSAGES = {
    RECURRENT: "key-value cache (no recurrent layers)",
    LATER: "expected a causal model",
    HEAD: "expected logits equal to",
    ROWS: "for rows of different lengths",
}
for reason, names in {
    RECURRENT: """
        bailing_hybrid bart bigbird_pegasus blenderbot blenderbot-small falcon_mamba jamba kimi_linear lara_mini lfm3
        mamba mamba2 marian mbart minimax mvp nemotron_h olmo_hybrid openai-gpt pegasus plbart prophetnet qwen3_5
        qwen3_5_text qwen3_5_moe qwen3_5_moe_text qwen3_next qwen4_exp_text recurrent_gemma rwkv trocr whisper xlnet
    """,
    LATER: """
        bert bert-generation big_bird camembert data2vec-text ernie megatron-bert roberta roberta-prelayernorm roformer
        xlm xlm-roberta xlm-roberta-xl
    """,
    HEAD: "inkling_text modernbert-decoder",
    ROWS: "cpmant deepseek_v4 falcon_h1 xlstm",
}.items():
    REFUSED |= {name: (reason, {}) for name in names.split()}
REFUSED |= {
    "bamba": (RECURRENT, MAMBA),
    "minicpm3": (HEAD, MLA),
    "electra": (HEAD, dict(is_decoder=True)),
    "rembert": (HEAD, dict(input_embedding_size=16, output_embedding_size=16, is_decoder=True)),
}
NOT_RECOMPUTED = {"ctrl", "gpt_neox_japanese"}
"""Without layers that transformers can checkpoint: refused with ``recompute=True`` only."""
DEFAULT = {
    "bloom", "deepseek_v3", "dory", "gemma3", "gpt_neo", "hrm_text", "llama4", "mllama", "opt", "phimoe", "bart",
    "bert", "deepseek_v4", "modernbert-decoder", "mamba", "xlstm",
}  # fmt: skip
"""Those that differ in kind; the others are slow tests."""
TOLERANCE = {"hrm_text": 1e-4}
"""Nats, or relative: 1e-5, ten times that where a few layers run many times."""


def accepted(config, sizes):
    names = set(inspect.signature(config.__init__).parameters) | set(getattr(config, "attribute_map", {}))
    names = names.union(*(getattr(base, "__annotations__", {}) for base in config.__mro__))
    return {name: size for name, size in sizes.items() if name in names}


def build(family, options):
    config = CONFIG_MAPPING[family]
    sizes = accepted(config, BASE)
    for name, part in config.sub_configs.items():
        if name in ("text_config", "vision_config"):
            sizes[name] = accepted(part, BASE if name == "text_config" else VISION)
    sizes = {name: size for name, size in (sizes | options).items() if size is not None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**sizes)).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def cases(table):
    return [
        pytest.param(family, marks=() if family in DEFAULT else pytest.mark.slow)
        for family in sorted(table) if family in CONFIG_MAPPING
    ]  # fmt: skip


def plain_logprobs(model, prompts, completions):
    """``[N]`` nats of all tokens, a row at a time, by the transformers model alone."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        prompt, completion = prompt[prompt != PAD], completion[completion != PAD]
        logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        found.append(logits.float().log_softmax(-1).gather(1, completion[:, None])[:, 0])
    return torch.cat(found)


def gradient(logprobs, model):
    """``[P]`` of all parameters, over the largest, so that differences are relative to it."""
    model.zero_grad()
    (logprobs * torch.sin(torch.arange(1.0, 1 + len(logprobs)))).sum().backward()
    flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    return flat / flat.abs().max()


def stepped(reference, prompts, completions):
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


class NoTokenizer:
    """Rows are given as ids."""

    eos_token_id, bos_token_id = 0, None

    def __len__(self):
        return V


@pytest.mark.parametrize("family", cases(EXACT))
def test_every_path_of_a_family_equals_the_plain_model(family):
    model = build(family, EXACT[family])
    ends = tuple(range(18)) if family == "youtu" else (0, 3, 5, 7, 9)  # rows end at different times
    policy = CausalLMPolicy(copy.deepcopy(model), eos_token_id=ends, critic="none")
    prompts = torch.randint(1, V, (5, 5), generator=torch.Generator().manual_seed(0))
    prompts[1, 4:] = prompts[2, 2:] = PAD
    prompts[3] = prompts[1]  # which generation prefills once
    written = generate(policy, prompts, max_new_tokens=8, generator=torch.Generator().manual_seed(1))
    completions = written.completions
    mask = completions != PAD
    assert mask.sum(1).unique().numel() > 1  # so that rows leave the cache one after the other
    expected = plain_logprobs(model, prompts, completions)
    of_weights = gradient(expected, model)
    tolerance = TOLERANCE.get(family, 1e-5)

    def check(found, wanted=expected, times=1):
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=0, atol=times * tolerance)

    check(written.logprobs[mask])
    evaluated = policy.evaluate(prompts, completions).logprobs[mask]
    check(evaluated)
    check(gradient(evaluated, policy.model), of_weights, 2)
    reference = CausalLMReference(copy.deepcopy(model))
    check(torch.from_numpy(reference(prompts.numpy(), completions.numpy()))[mask])
    check(stepped(reference, prompts.numpy(), completions.numpy())[mask])
    if family in NOT_RECOMPUTED:
        with pytest.raises(ValueError, match="expected layers that support gradient checkpointing"):
            CausalLMPolicy(copy.deepcopy(model), critic="none", recompute=True)
    else:
        policy = CausalLMPolicy(copy.deepcopy(model), critic="none", recompute=True)
        check(gradient(policy.evaluate(prompts, completions).logprobs[mask], policy.model), of_weights, 2)

    rows = [torch.cat([p[p != PAD], c[c != PAD]]) for p, c in zip(prompts, completions, strict=True)]
    scorer = RewardModel(copy.deepcopy(trunk_of(model)), NoTokenizer())
    scores = scorer.raw(*scorer.pad([row.tolist() for row in rows]))
    lasts = [trunk_of(model)(input_ids=row[None], use_cache=False).last_hidden_state[0, -1] for row in rows]
    wanted = scorer.head(torch.stack(lasts))[:, 0]
    check(scores / wanted.abs().max(), wanted / wanted.abs().max())

    trunk = AdaptedTrunk(copy.deepcopy(model), LoraOptions(rank=2), value=False)
    for parameter in trunk.parameters("policy"):
        torch.nn.init.normal_(parameter, std=0.1)
    with_adapter = CausalLMPolicy(trunk.model, critic="none", adapters=trunk).evaluate(prompts, completions)
    without = CausalLMPolicy(trunk.model, critic="none", adapters=trunk, role=None).evaluate(prompts, completions)
    check(without.logprobs[mask])
    merged = plain_logprobs(trunk.merged(), prompts, completions)
    assert (merged - expected).abs().max() > 0.01
    check(with_adapter.logprobs[mask], merged, 3)  # merged weights are rounded once more


@pytest.mark.filterwarnings("ignore:.*runs without")
@pytest.mark.parametrize("family", cases(REFUSED))
def test_other_families_are_refused_with_the_reason(family):
    reason, options = REFUSED[family]
    model = build(family, options)
    with pytest.raises(ValueError, match=type(model).__name__) as refusal:
        CausalLMPolicy(model, eos_token_id=None, critic="none")
    assert MESSAGES[reason] in str(refusal.value)


@pytest.mark.filterwarnings("ignore:.*runs without")
def test_a_cache_that_forgets_what_the_model_attends_to_is_refused():
    """Moshi's mask has no window, but transformers caches one."""
    with pytest.raises(ValueError, match="states with a key-value cache are those without"):
        CausalLMPolicy(build("moshi", dict(sliding_window=3)), critic="none")


def table():
    """Markdown."""
    lines = ["| families | language models |", "|---|---|"]
    lines.append(f"| exact in every path ({len(EXACT)}) | {', '.join(sorted(EXACT))} |")
    for reason in MESSAGES:
        names = sorted(name for name, (why, _) in REFUSED.items() if why == reason)
        lines.append(f"| refused: {reason} ({len(names)}) | {', '.join(names)} |")
    lines.append(f"| exact, but refused with gradient checkpointing | {', '.join(sorted(NOT_RECOMPUTED))} |")
    return "\n".join(lines)


def test_the_documented_table_is_that_of_these_tests():
    assert table() in DOCS.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
