"""Decoders of transformers: text in, logits out."""

from functools import partial
from typing import Any

from zoo.family import VOCABULARY, Family, hugging_face, text

LAYERS = 3

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
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
PRE_NORM = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"]
PARALLEL = ["model.layers.*.input_layernorm"]
GPT = ["transformer.h.*.ln_1", "transformer.h.*.ln_2"]


def decoder(name: str, model: str, reads: list[str], config: Any = (), **row: Any) -> Family:
    """A row of two blocks a layer, unless it says otherwise."""
    make = hugging_face(model, **{**SIZES, **dict(config)})
    return Family(name, make, text, reads, **{"blocks": 2 * LAYERS, **row})


parallel = partial(decoder, blocks=LAYERS)

DECODERS = [
    decoder("llama", "LlamaForCausalLM", PRE_NORM, is_deep=True),
    decoder("mistral", "MistralForCausalLM", PRE_NORM, {"sliding_window": 4}),
    decoder("qwen2", "Qwen2ForCausalLM", PRE_NORM),
    decoder(
        "gemma2 (sandwich norms)",
        "Gemma2ForCausalLM",
        ["model.layers.*.input_layernorm", "model.layers.*.pre_feedforward_layernorm"],
        {"head_dim": 8},
        is_deep=True,
    ),
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
        {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
        is_deep=True,
    ),
    decoder(
        "bloom",
        "BloomForCausalLM",
        ["transformer.h.*.input_layernorm", "transformer.h.*.post_attention_layernorm"],
    ),
    decoder(
        "gpt-neox (sequential)",
        "GPTNeoXForCausalLM",
        ["gpt_neox.layers.*.input_layernorm", "gpt_neox.layers.*.post_attention_layernorm"],
        {"use_parallel_residual": False},
    ),
    parallel(
        "gpt-neox (parallel)",
        "GPTNeoXForCausalLM",
        ["gpt_neox.layers.*.input_layernorm", "gpt_neox.layers.*.post_attention_layernorm"],
        is_deep=True,
    ),
    parallel("gpt-j", "GPTJForCausalLM", ["transformer.h.*.ln_1"], {"rotary_dim": 4}),
    parallel("phi", "PhiForCausalLM", PARALLEL),
    decoder("mixtral", "MixtralForCausalLM", PRE_NORM, {"num_local_experts": 4}),
    parallel(
        "mamba",
        "MambaForCausalLM",
        ["backbone.layers.*.norm"],
        {"state_size": 4, "use_associative_scan": False},
        is_deep=True,
    ),
    parallel(
        "mamba (associative scan)",
        "MambaForCausalLM",
        ["backbone.layers.*.norm"],
        {"state_size": 4},
        fault="ops.storages: a vmapped value has no storage",
    ),
]
