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


def language_model(name, **options):
    family, sizes, _ = FAMILIES[name]
    torch.manual_seed(0)
    cls = getattr(transformers, family)
    model = cls(cls.config_class(**SIZES | sizes | options)).eval()
    model.loss_type = model.loss_type or "ForCausalLM"  # GPT-2 has none, and warns of it
    for parameter in model.parameters():  # transformers' weights are small: no loss would tell
        nn.init.normal_(parameter, std=0.3)
    return model
