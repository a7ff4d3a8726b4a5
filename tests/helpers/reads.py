"""The modules that read the residual stream in the tiny models, for `eager_ladder`.

`BODY` is for models without a head (`LlamaModel`), `HEAD` for those with one (`LlamaForCausalLM`).
"""

BODY = {
    "llama": ["layers.*.input_layernorm", "layers.*.post_attention_layernorm"],
    "gpt2": ["h.*.ln_1", "h.*.ln_2"],
    "gpt-neox": ["layers.*.input_layernorm", "layers.*.post_attention_layernorm"],
    "gemma2": ["layers.*.input_layernorm", "layers.*.pre_feedforward_layernorm"],
    "bert": ["encoder.layer.*.attention.self", "encoder.layer.*.intermediate"],
}
_BODY_NAMES = {"gpt2": "transformer", "gpt-neox": "gpt_neox", "bert": "bert"}

HEAD = {
    name: [f"{_BODY_NAMES.get(name, 'model')}.{pattern}" for pattern in patterns]
    for name, patterns in BODY.items()
}

HEAD["llama, tied"] = HEAD["llama"]
