"""Encoders with decoders of transformers, and models of sound: 2 blocks a layer, 3 with a cross."""

from typing import Any

import torch

from zoo.family import VOCABULARY, Family, hugging_face, random_generator, text_to_text, token_ids

LAYERS = 2

T5_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": LAYERS,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "use_cache": False,
    "decoder_start_token_id": 1,
}
BART_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
PROPHETNET_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_encoder_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "max_position_embeddings": 64,
    "ngram": 2,
    "num_buckets": 8,
    "relative_max_distance": 16,
    "use_cache": False,
}
WAV2VEC2_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "apply_spec_augment": False,
}
WHISPER = {
    "num_mel_bins": 8,
    "max_source_positions": 8,
    "max_target_positions": 16,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
POST_NORM = {
    "encoder": ["model.encoder.layers.*.self_attn", "model.encoder.layers.*.fc1"],
    "decoder": [f"model.decoder.layers.*.{read}" for read in ("self_attn", "encoder_attn", "fc1")],
}
PRE_NORM = {
    "encoder": [f"model.encoder.layers.*.{read}_layer_norm" for read in ("self_attn", "final")],
    "decoder": [
        f"model.decoder.layers.*.{read}_layer_norm"
        for read in ("self_attn", "encoder_attn", "final")
    ],
}
T5 = {
    "encoder": ["encoder.block.*.layer.*.layer_norm"],
    "decoder": ["decoder.block.*.layer.*.layer_norm"],
}


def translator(name: str, model: str, reads: Any, config: Any, **row: Any) -> Family:
    make = hugging_face(model, **config)
    blocks = 2 * LAYERS + 3 * LAYERS
    return Family(name, make, **{"inputs": text_to_text, "reads": reads, "blocks": blocks, **row})


def spectrogram_to_text() -> dict[str, Any]:
    features = torch.randn(2, 8, 16, generator=random_generator(1))
    return {"input_features": features, "decoder_input_ids": token_ids(length=5)}


def sound() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 800, generator=random_generator(1))}


ENCODER_DECODERS = [
    translator(
        "t5",
        "T5ForConditionalGeneration",
        T5,
        T5_SIZES,
        dtype=torch.float64,
        is_deep=True,
    ),
    translator("bart", "BartForConditionalGeneration", POST_NORM, BART_SIZES, is_deep=True),
    # Not in the list.
    translator("mbart", "MBartForConditionalGeneration", PRE_NORM, BART_SIZES),
    translator(
        "prophetnet",
        "ProphetNetModel",
        {
            "encoder": ["encoder.layers.*.self_attn", "encoder.layers.*.feed_forward"],
            "decoder": [
                f"decoder.layers.*.{read}" for read in ("self_attn", "cross_attn", "feed_forward")
            ],
        },
        PROPHETNET_SIZES,
    ),
    translator(
        "whisper",
        "WhisperForConditionalGeneration",
        PRE_NORM,
        {**BART_SIZES, **WHISPER},
        inputs=spectrogram_to_text,
    ),
    # The convolution that makes positions is a block in no layer: the first layer reads its sum.
    translator(
        "wav2vec2",
        "Wav2Vec2Model",
        ["encoder.layers.*.attention", "encoder.layers.*.feed_forward"],
        WAV2VEC2_SIZES,
        inputs=sound,
        blocks=2 * LAYERS,
        prologue=1,
    ),
    translator(
        "wav2vec2 (pre-norm)",
        "Wav2Vec2Model",
        [
            "encoder.layers.*.layer_norm",
            "encoder.layers.*.final_layer_norm",
        ],
        {**WAV2VEC2_SIZES, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
        inputs=sound,
        blocks=2 * LAYERS,
        prologue=1,
    ),
    translator(
        "wav2vec2-conformer",
        "Wav2Vec2ConformerModel",
        [
            f"encoder.layers.*.{read}"
            for read in (
                "ffn1_layer_norm",
                "self_attn_layer_norm",
                "conv_module",
                "ffn2_layer_norm",
            )
        ],
        {**WAV2VEC2_SIZES, "conv_depthwise_kernel_size": 3, "conformer_conv_dropout": 0.0},
        inputs=sound,
        blocks=4 * LAYERS,
    ),
]
