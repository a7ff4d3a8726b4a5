"""Encoders of transformers: token ids in."""

from typing import Any

from zoo.family import VOCABULARY, Family, hugging_face, text, token_ids

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
XLM_SIZES = {"emb_dim": 32, "n_layers": LAYERS, "n_heads": 4, "dropout": 0.0}


def encoder(name: str, model: str, reads: Any, config: Any = (), **row: Any) -> Family:
    """Of two blocks a layer, unless the row says otherwise."""
    make = hugging_face(model, **{**SIZES, **dict(config)})
    return Family(name, make, **{"inputs": text, "reads": reads, "blocks": 2 * LAYERS, **row})


def post_norm(layers: str) -> list[str]:
    """What reads the stream in the layers of BERT and its kin."""
    return [f"{layers}.*.attention.self", f"{layers}.*.intermediate"]


def characters() -> dict[str, Any]:
    return {"input_ids": token_ids(length=8)}


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
    # Not in the list.
    encoder("roberta", "RobertaForMaskedLM", post_norm("roberta.encoder.layer")),
    encoder(
        "roberta (pre-norm)",
        "RobertaPreLayerNormForMaskedLM",
        [
            f"roberta_prelayernorm.encoder.layer.*.{reader}.LayerNorm"
            for reader in ("attention", "intermediate")
        ],
    ),
    encoder(
        "electra",
        "ElectraForMaskedLM",
        post_norm("electra.encoder.layer"),
        {"embedding_size": 16},
    ),
    encoder(
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        post_norm("deberta.encoder.layer"),
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    encoder(
        "modernbert",
        "ModernBertForMaskedLM",
        ["model.layers.*.attn_norm", "model.layers.*.mlp_norm"],
        {"global_attn_every_n_layers": 2, "local_attention": 4},
    ),
    encoder(
        "esm",
        "EsmForMaskedLM",
        ["esm.encoder.layer.*.attention.LayerNorm", "esm.encoder.layer.*.LayerNorm"],
        {"mask_token_id": 3, "position_embedding_type": "rotary", "token_dropout": False},
    ),
    encoder(
        "mpnet",
        "MPNetForMaskedLM",
        ["mpnet.encoder.layer.*.attention.attn", "mpnet.encoder.layer.*.intermediate"],
    ),
    encoder(
        "fnet (fourier transforms)",
        "FNetForMaskedLM",
        ["fnet.encoder.layer.*.fourier.self", "fnet.encoder.layer.*.intermediate"],
    ),
    encoder(
        "squeezebert",
        "SqueezeBertForMaskedLM",
        [f"transformer.encoder.layers.*.{reader}" for reader in ("attention", "intermediate")],
        {"embedding_size": 32},
    ),
    encoder(
        "convbert",
        "ConvBertForMaskedLM",
        post_norm("convbert.encoder.layer"),
        {"embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3},
    ),
    encoder(
        "big-bird (full attention)",
        "BigBirdForMaskedLM",
        post_norm("bert.encoder.layer"),
        {"attention_type": "original_full"},
    ),
    encoder(
        "mobilebert",
        "MobileBertForMaskedLM",
        [
            *post_norm("mobilebert.encoder.layer"),
            "mobilebert.encoder.layer.*.ffn.*.intermediate",
        ],
        {
            "embedding_size": 16,
            "use_bottleneck": False,
            "true_hidden_size": 32,
            "num_feedforward_networks": 2,
        },
        blocks=3 * LAYERS,
    ),
    encoder(
        # A skip around each layer; inside of it, behind a projection, a stream of two blocks.
        "mobilebert (bottlenecks)",
        "MobileBertForMaskedLM",
        [
            [
                f"mobilebert.encoder.layer.{layer}.ffn.*.intermediate",
                f"mobilebert.encoder.layer.{layer}.intermediate",
            ]
            for layer in range(LAYERS)
        ],
        {
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "true_hidden_size": 16,
            "num_feedforward_networks": 2,
        },
    ),
    encoder(
        "canine (three encoders)",
        "CanineModel",
        [
            post_norm(f"{name}.layer")
            for name in ("initial_char_encoder", "encoder", "final_char_encoder")
        ],
        {
            "num_hash_functions": 4,
            "num_hash_buckets": 64,
            "downsampling_rate": 2,
            "upsampling_kernel_size": 2,
            "local_transformer_stride": 8,
        },
        inputs=characters,
        blocks=2 * (1 + LAYERS + 1),
    ),
    encoder(
        "xlm (layers in lists by kind)",
        "XLMWithLMHeadModel",
        ["transformer.attentions.*", "transformer.ffns.*"],
        {**XLM_SIZES, "attention_dropout": 0.0},
    ),
]
