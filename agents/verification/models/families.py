"""Tiny models of the families of causal language models in transformers, and what is known of each.

Those of `EXACT` equal plain forward passes of transformers in every path (`family_paths` beside this file); those of
`REFUSED` are refused when they are loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

V = 37
"""Tokens."""
BASE: dict[str, Any] = dict(
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
VISION: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7,
    num_global_layers=1, vision_output_dim=16,
)  # fmt: skip
MAMBA: dict[str, Any] = dict(mamba_n_heads=4, mamba_d_head=8, mamba_expand=2)
MLA: dict[str, Any] = dict(num_key_value_heads=4)  # latent attention: as many keys as queries

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
EXACT: dict[str, dict[str, Any]] = {name: {} for name in PLAIN.split()} | {name: MLA for name in LATENT.split()}
EXACT |= {
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0), num_key_value_heads=None,
        ffn_config=dict(ffn_hidden_size=16, moe_num_experts=4, moe_top_k=2),
    ),
    "diffllama": dict(attention_dropout=0.0),
    "dory": dict(n_input_layers=1, n_output_layers=0),
    "gemma3": dict(
        mm_tokens_per_image=4, image_token_id=36, boi_token_index=35, eoi_token_index=34,
        vision_config=VISION | dict(model_type="siglip_vision_model"),  # else one of 90M parameters
    ),
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
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {}
MESSAGES = {
    RECURRENT: "key-value cache (no recurrent layers)", LATER: "expected a causal model",
    HEAD: "expected logits equal to", ROWS: "for rows of different lengths",
}  # fmt: skip
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
REPRESENTATIVE = {
    "bloom", "deepseek_v3", "dory", "gemma3", "gpt_neo", "hrm_text", "llama4", "mllama", "opt", "phimoe", "bart",
    "bert", "deepseek_v4", "modernbert-decoder", "mamba", "xlstm",
}  # fmt: skip
"""Those that differ in kind."""
TOLERANCE = {"hrm_text": 1e-4}
"""Nats, or relative: 1e-5, ten times that where a few layers run many times."""


def known(table: Iterable[str], *, full: bool = True) -> list[str]:
    """Sorted families of ``table`` that the installed transformers has; those of `REPRESENTATIVE` unless ``full``."""
    return sorted(family for family in table if family in CONFIG_MAPPING and (full or family in REPRESENTATIVE))


def build(family: str, options: Mapping[str, Any]) -> PreTrainedModel:
    """A tiny random model in float32, its norms and biases moved off one and zero."""
    config = CONFIG_MAPPING[family]
    sizes = _accepted(config, BASE)
    for name, part in config.sub_configs.items():
        if name in ("text_config", "vision_config"):
            sizes[name] = _accepted(part, BASE if name == "text_config" else VISION)
    sizes = {name: size for name, size in (sizes | dict(options)).items() if size is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(**sizes)).eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def _accepted(config: type[PretrainedConfig], sizes: Mapping[str, Any]) -> dict[str, Any]:
    names = set(inspect.signature(config.__init__).parameters) | set(getattr(config, "attribute_map", {}))
    names = names.union(*(getattr(base, "__annotations__", {}) for base in config.__mro__))
    return {name: size for name, size in sizes.items() if name in names}
