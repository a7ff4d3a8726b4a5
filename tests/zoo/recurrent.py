"""Decoders of transformers with state-space, recurrent or convolutional layers."""

from zoo.decoders import EXPERTS, LAYERS, PRE_NORM, decoder, parallel

MAMBA = ["backbone.layers.*.norm"]
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
}

RECURRENT = [
    parallel(
        "mamba",
        "MambaForCausalLM",
        MAMBA,
        {"state_size": 4, "use_associative_scan": False},
        is_deep=True,
    ),
    decoder(
        "mamba (associative scan)",
        "MambaForCausalLM",
        MAMBA,
        {"state_size": 4},
        blocks=LAYERS,
    ),
    # Not in the list.
    parallel(
        "mamba2",
        "Mamba2ForCausalLM",
        MAMBA,
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 4},
    ),
    decoder(
        "rwkv (a scan that fills a buffer)",
        "RwkvForCausalLM",
        ["rwkv.blocks.*.ln1", "rwkv.blocks.*.ln2"],
        {"attention_hidden_size": 32, "rescale_every": 0},
    ),
    decoder(
        "bamba",
        "BambaForCausalLM",
        ["model.layers.*.input_layernorm", "model.layers.*.pre_ff_layernorm"],
        {**MAMBA2, "attn_layer_indices": [1]},
    ),
    decoder(
        "granite-moe-hybrid",
        "GraniteMoeHybridForCausalLM",
        PRE_NORM,
        {
            **MAMBA2,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "shared_intermediate_size": 16,
            "residual_multiplier": 0.5,
        },
    ),
    decoder(
        "recurrentgemma",
        "RecurrentGemmaForCausalLM",
        ["model.layers.*.temporal_pre_norm", "model.layers.*.channel_pre_norm"],
        {
            "head_dim": 8,
            "lru_width": 32,
            "attention_window_size": 4,
            "block_types": ["recurrent", "attention"],
        },
    ),
    decoder(
        "lfm2 (convolutions)",
        "Lfm2ForCausalLM",
        ["model.layers.*.operator_norm", "model.layers.*.ffn_norm"],
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    decoder(
        "qwen3-next (linear attention)",
        "Qwen3NextForCausalLM",
        PRE_NORM,
        {
            **EXPERTS,
            "head_dim": 8,
            "num_experts": 4,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    decoder(
        "xlstm",
        "xLSTMForCausalLM",
        ["backbone.blocks.*.norm_mlstm", "backbone.blocks.*.norm_ffn"],
        {"num_heads": 4, "num_blocks": LAYERS, "chunk_size": 4},
    ),
]
