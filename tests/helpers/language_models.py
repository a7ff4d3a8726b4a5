"""Tiny language models with heads, tied or not."""

import torch
import transformers
from torch import nn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "use_cache": False,
}

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}

FAMILIES = {  # class, configuration, the vocabulary's parameters
    "llama": ("LlamaForCausalLM", {}, {"model.embed_tokens.weight", "lm_head.weight"}),
    "llama, tied": (
        "LlamaForCausalLM",
        {"tie_word_embeddings": True},
        {"model.embed_tokens.weight"},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2, {"transformer.wte.weight"}),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 8}, {"model.embed_tokens.weight"}),
    "bert": (
        "BertForMaskedLM",
        {},
        {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias"},
    ),
}

TOP_2 = {"num_experts_per_tok": 2}
SMALL = {"moe_intermediate_size": 24, "head_dim": 8}
LOW_RANK = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
MIXTURES = {  # class, configuration; four experts (DeepSeek eight), of which a token takes two
    "mixtral": ("MixtralForCausalLM", TOP_2 | {"num_local_experts": 4}),
    "qwen3": ("Qwen3MoeForCausalLM", TOP_2 | SMALL | {"num_experts": 4}),
    "deepseek": (  # a shared expert; a token chooses within groups
        "DeepseekV3ForCausalLM",
        TOP_2
        | {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "n_shared_experts": 1}
        | LOW_RANK
        | {"moe_intermediate_size": 24, "first_k_dense_replace": 0},
    ),
    "gpt-oss": (  # biases of every expert
        "GptOssForCausalLM",
        TOP_2 | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 16},
    ),
    "llama4": (  # every expert sees every token; a shared expert
        "Llama4ForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
        },
    ),
    "glm4": (
        "Glm4MoeForCausalLM",
        TOP_2 | SMALL | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 0},
    ),
    "olmoe": ("OlmoeForCausalLM", TOP_2 | {"num_experts": 4, "num_key_value_heads": 4}),
}


def language_model(name, **options):
    family, sizes, _ = FAMILIES[name]
    model = _make(family, sizes | options)
    model.loss_type = model.loss_type or "ForCausalLM"  # GPT-2 has none, and warns of it
    return model


def mixture(name, **options):
    """A mixture of experts of one layer."""
    family, sizes = MIXTURES[name]
    return _make(family, sizes | {"num_hidden_layers": 1} | options)


def _make(family, sizes):
    torch.manual_seed(0)
    cls = getattr(transformers, family)
    model = cls(cls.config_class(**SIZES | sizes)).eval()
    for parameter in model.parameters():  # transformers' weights are small: no loss would tell
        nn.init.normal_(parameter, std=0.3)
    return model
