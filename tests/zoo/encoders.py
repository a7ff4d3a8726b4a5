"""Encoders, and encoders with decoders, of transformers."""

from typing import Any

import torch

from zoo.family import VOCABULARY, Family, hugging_face, text, text_to_text

LAYERS = 2

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
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
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}


def encoder(name: str, model: str, reads: list[str], config: Any = (), **row: Any) -> Family:
    """A row of two blocks a layer, unless it says otherwise."""
    make = hugging_face(model, **{**SIZES, **dict(config)})
    return Family(name, make, text, reads, **{"blocks": 2 * LAYERS, **row})


def post_norm(layers: str) -> list[str]:
    """What reads the stream in the layers of BERT and its kin."""
    return [f"{layers}.*.attention.self", f"{layers}.*.intermediate"]


ENCODERS = [
    encoder("bert", "BertForMaskedLM", post_norm("bert.encoder.layer"), is_deep=True),
    encoder(
        "albert (shared weights)",
        "AlbertForMaskedLM",
        [
            f"albert.encoder.albert_layer_groups.*.albert_layers.*.{reader}"
            for reader in ("attention.query", "attention.key", "attention.value", "ffn")
        ],
        {"embedding_size": 16},
        is_deep=True,
    ),
    encoder(
        "distilbert (post-norm)",
        "DistilBertForMaskedLM",
        ["distilbert.transformer.layer.*.attention", "distilbert.transformer.layer.*.ffn"],
        {
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": LAYERS,
            "n_heads": 4,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    Family(
        "t5",
        hugging_face(
            "T5ForConditionalGeneration",
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=LAYERS,
            num_heads=4,
            dropout_rate=0.0,
            use_cache=False,
            decoder_start_token_id=1,
        ),
        text_to_text,
        {
            "encoder": ["encoder.block.*.layer.*.layer_norm"],
            "decoder": ["decoder.block.*.layer.*.layer_norm"],
        },
        blocks=2 * LAYERS + 3 * LAYERS,
        dtype=torch.float64,
        is_deep=True,
    ),
    Family(
        "bart",
        hugging_face("BartForConditionalGeneration", **BART_SIZES),
        text_to_text,
        {
            "encoder": ["model.encoder.layers.*.self_attn", "model.encoder.layers.*.fc1"],
            "decoder": [
                "model.decoder.layers.*.self_attn",
                "model.decoder.layers.*.encoder_attn",
                "model.decoder.layers.*.fc1",
            ],
        },
        blocks=2 * LAYERS + 3 * LAYERS,
        is_deep=True,
    ),
]
