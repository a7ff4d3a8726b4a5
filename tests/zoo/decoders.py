"""Decoders of transformers that attend: token ids in, logits out. Two blocks a layer, or one."""

from typing import Any

import torch
from helpers.reads import HEAD

from zoo.family import VOCABULARY, Family, hugging_face, random_generator, text

LAYERS = 2
PARALLEL_LAYERS = 3  # one block each

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_SIZES = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    **EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 3}
PRE_NORM = HEAD["llama"]
SANDWICH = HEAD["gemma2"]
NORMED_BRANCH = ["model.layers.*.self_attn", "model.layers.*.mlp"]
GPT = HEAD["gpt2"]
GPT_NEOX = HEAD["gpt-neox"]
FALCON = ["transformer.h.*.input_layernorm", "transformer.h.*.post_attention_layernorm"]
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}


def decoder(name: str, model: str, reads: list[str], config: Any = (), **row: Any) -> Family:
    """Of two blocks a layer, unless the row says otherwise."""
    make = hugging_face(model, **{**SIZES, **dict(config)})
    return Family(name, make, **{"inputs": text, "reads": reads, "blocks": 2 * LAYERS, **row})


def parallel(name: str, model: str, reads: list[str], config: Any = (), **row: Any) -> Family:
    """Of one block a layer."""
    sizes = {"num_hidden_layers": PARALLEL_LAYERS, **dict(config)}
    return decoder(name, model, reads, sizes, blocks=PARALLEL_LAYERS, **row)


def text_and_context() -> dict[str, Any]:
    context = torch.randn(2, 5, 32, generator=random_generator(2))
    return {**text(), "encoder_hidden_states": context}


DECODERS = [
    decoder("llama", "LlamaForCausalLM", PRE_NORM, is_deep=True),
    decoder("mistral", "MistralForCausalLM", PRE_NORM, {"sliding_window": 4}),
    decoder("qwen2", "Qwen2ForCausalLM", PRE_NORM),
    decoder("gemma2 (sandwich norms)", "Gemma2ForCausalLM", SANDWICH, {"head_dim": 8}),
    decoder(
        "granite (residual multiplier)",
        "GraniteForCausalLM",
        PRE_NORM,
        {"residual_multiplier": 0.5},
    ),
    decoder("gpt2", "GPT2LMHeadModel", GPT, is_deep=True),
    decoder(
        "opt",
        "OPTForCausalLM",
        ["model.decoder.layers.*.self_attn_layer_norm", "model.decoder.layers.*.final_layer_norm"],
        OPT,
        is_deep=True,
    ),
    decoder(
        "opt (post-norm)",
        "OPTForCausalLM",
        ["model.decoder.layers.*.self_attn", "model.decoder.layers.*.fc1"],
        {**OPT, "do_layer_norm_before": False},
    ),
    decoder("bloom", "BloomForCausalLM", FALCON),
    decoder(
        "bloom (skip of the normed)",
        "BloomForCausalLM",
        ["transformer.h.*.self_attention.query_key_value", "transformer.h.*.mlp.dense_h_to_4h"],
        {"apply_residual_connection_post_layernorm": True},
    ),
    decoder(
        "gpt-neox (sequential)", "GPTNeoXForCausalLM", GPT_NEOX, {"use_parallel_residual": False}
    ),
    parallel("gpt-neox (parallel)", "GPTNeoXForCausalLM", GPT_NEOX, is_deep=True),
    parallel("gpt-j", "GPTJForCausalLM", ["transformer.h.*.ln_1"], {"rotary_dim": 4}),
    parallel("phi", "PhiForCausalLM", PRE_NORM[:1]),
    decoder("mixtral", "MixtralForCausalLM", PRE_NORM, {"num_local_experts": 4}),
    # Not in the list.
    decoder("gemma3", "Gemma3ForCausalLM", SANDWICH, {"head_dim": 8, "sliding_window": 4}),
    decoder("glm4", "Glm4ForCausalLM", PRE_NORM, {"head_dim": 8}),
    decoder("olmo2 (normed branches)", "Olmo2ForCausalLM", NORMED_BRANCH),
    decoder("exaone4", "Exaone4ForCausalLM", NORMED_BRANCH, {"sliding_window": 4}),
    decoder("qwen3-moe", "Qwen3MoeForCausalLM", PRE_NORM, {**EXPERTS, "num_experts": 4}),
    decoder("deepseek-v3", "DeepseekV3ForCausalLM", PRE_NORM, DEEPSEEK),
    decoder(
        "glm-moe-dsa (shared indexer)",
        "GlmMoeDsaForCausalLM",
        PRE_NORM,
        {
            **DEEPSEEK,
            **INDEXER,
            "num_hidden_layers": 2 * LAYERS,
            "indexer_types": ["full", "shared"] * LAYERS,
        },
        blocks=4 * LAYERS,
    ),
    decoder("gpt-oss", "GptOssForCausalLM", PRE_NORM, {"num_local_experts": 4, "head_dim": 8}),
    decoder("llama4", "Llama4ForCausalLM", PRE_NORM, {"head_dim": 8, "num_local_experts": 2}),
    decoder("phi3 (fused projections)", "Phi3ForCausalLM", PRE_NORM),
    decoder("nemotron", "NemotronForCausalLM", PRE_NORM),
    decoder("starcoder2", "Starcoder2ForCausalLM", PRE_NORM),
    decoder("persimmon", "PersimmonForCausalLM", PRE_NORM),
    decoder("doge (scaled skip)", "DogeForCausalLM", PRE_NORM),
    decoder("jetmoe", "JetMoeForCausalLM", PRE_NORM, {"num_local_experts": 4, "kv_channels": 8}),
    decoder(
        "minimax (skip of the normed)",
        "MiniMaxForCausalLM",
        NORMED_BRANCH,
        {
            "num_local_experts": 4,
            "layer_types": ["full_attention", "linear_attention"],
            "head_dim": 8,
            "block_size": 4,
        },
    ),
    parallel("cohere", "CohereForCausalLM", PRE_NORM[:1]),
    parallel(
        "stablelm (parallel)", "StableLmForCausalLM", PRE_NORM[:1], {"use_parallel_residual": True}
    ),
    decoder(
        "falcon (sequential)",
        "FalconForCausalLM",
        FALCON,
        {"parallel_attn": False, "alibi": True, "multi_query": False},
    ),
    parallel("falcon (parallel)", "FalconForCausalLM", FALCON[:1]),
    parallel(
        "falcon (two norms)",
        "FalconForCausalLM",
        ["transformer.h.*.ln_attn", "transformer.h.*.ln_mlp"],
        {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    parallel("codegen", "CodeGenForCausalLM", ["transformer.h.*.ln_1"], {"rotary_dim": 4}),
    decoder(
        "gpt (post-norm)",
        "OpenAIGPTLMHeadModel",
        ["transformer.h.*.attn", "transformer.h.*.mlp"],
        GPT_SIZES,
    ),
    decoder(
        "gpt2 (cross attention)",
        "GPT2LMHeadModel",
        ["transformer.h.*.ln_1", "transformer.h.*.ln_cross_attn", "transformer.h.*.ln_2"],
        {**GPT_SIZES, "add_cross_attention": True},
        inputs=text_and_context,
        blocks=3 * LAYERS,
    ),
    decoder(
        "gpt-neo",
        "GPTNeoForCausalLM",
        GPT,
        {
            "num_layers": LAYERS,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "window_size": 4,
        },
    ),
    decoder("gpt-bigcode", "GPTBigCodeForCausalLM", GPT, GPT_SIZES),
    decoder(
        "mpt",
        "MptForCausalLM",
        ["transformer.blocks.*.norm_1", "transformer.blocks.*.norm_2"],
        {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 64},
    ),
]
