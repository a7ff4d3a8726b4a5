"""Vision models of transformers: one image in."""

from functools import partial
from typing import Any

import torch

from zoo.family import Family, hugging_face, image

LAYERS = 2

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TOWER = [f"encoder.layers.*.layer_norm{number}" for number in (1, 2)]
VIT = ["layers.*.layernorm_before", "layers.*.layernorm_after"]
OLD_VIT = [f"encoder.layer.*.layernorm_{where}" for where in ("before", "after")]
STAGES = {"depths": [2, 2], "hidden_sizes": [16, 32], "num_encoder_blocks": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0}


def transformer(name: str, model: str, reads: Any, config: Any = (), **row: Any) -> Family:
    """Of two blocks a layer, unless the row says otherwise."""
    make = hugging_face(model, **{**SIZES, **dict(config)})
    return Family(name, make, **{"inputs": image, "reads": reads, "blocks": 2 * LAYERS, **row})


def pyramid(name: str, model: str, reads: list[str], config: Any, **row: Any) -> Family:
    """Of stages that each halve the resolution, so that each is a segment."""
    return Family(name, hugging_face(model, **config), **{"inputs": image, "reads": reads, **row})


VISION = [
    transformer("vit", "ViTModel", VIT),
    pyramid(
        "swin",
        "SwinModel",
        [f"encoder.layers.*.blocks.*.layernorm_{where}" for where in ("before", "after")],
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        blocks=2 * (2 + 2),
        is_deep=True,
    ),
    pyramid(
        "convnext",
        "ConvNextModel",
        ["encoder.stages.*.layers.*.dwconv"],
        {"hidden_sizes": [16, 32], "depths": [2, 3], "num_stages": 2},
        inputs=partial(image, 16),
        blocks=2 + 3,
    ),
    pyramid(
        "resnet (basic layers)",
        "ResNetModel",
        ["encoder.stages.0.layers.*.layer", "encoder.stages.1.layers.[12].layer"],
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [3, 3], "layer_type": "basic"},
        blocks=3 + 2,  # the skip path of a layer that changes the shape mixes
        is_deep=True,
    ),
    pyramid(
        "resnet (bottlenecks)",
        "ResNetModel",
        ["encoder.stages.*.layers.[12].layer"],
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [3, 3]},
        blocks=2 + 2,
    ),
    # Not in the list.
    transformer("beit", "BeitModel", VIT, {"use_relative_position_bias": True}),
    transformer(
        "yolos", "YolosModel", OLD_VIT, {"image_size": [32, 32], "num_detection_tokens": 4}
    ),
    transformer(
        "dinov2 (gated, registers)",
        "Dinov2WithRegistersModel",
        ["encoder.layer.*.norm1", "encoder.layer.*.norm2"],
        {"use_swiglu_ffn": True},
    ),
    transformer("dinov3", "DINOv3ViTModel", ["model.layer.*.norm1", "model.layer.*.norm2"]),
    transformer(
        "vitdet (windows)",
        "VitDetModel",
        ["encoder.layer.*.norm1", "encoder.layer.*.norm2"],
        {"window_size": 2, "window_block_indices": [0], "pretrain_image_size": 32},
    ),
    transformer(
        "siglip (a residual block in the head)",
        "SiglipVisionModel",
        [TOWER, ["head.layernorm"]],
        blocks=2 * LAYERS + 1,
    ),
    transformer(
        "sam (vision)",
        "SamVisionModel",
        ["vision_encoder.layers.*.layer_norm1", "vision_encoder.layers.*.layer_norm2"],
        {"mlp_dim": 48, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1]},
    ),
    pyramid(
        "segformer",
        "SegformerModel",
        ["stages.*.blocks.*.layernorm_before", "stages.*.blocks.*.layernorm_after"],
        {
            **STAGES,
            **NO_DROPOUT,
            "num_attention_heads": [2, 4],
            "sr_ratios": [2, 1],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "mlp_ratios": [2, 2],
        },
        blocks=2 * (2 + 2),
    ),
    pyramid(
        "poolformer",
        "PoolFormerModel",
        ["encoder.block.*.*.before_norm", "encoder.block.*.*.after_norm"],
        {
            **STAGES,
            "patch_sizes": [4, 3],
            "strides": [2, 2],
            "padding": [1, 1],
            "drop_path_rate": 0,
        },
        blocks=2 * (2 + 2),
        dtype=torch.float64,
    ),
    pyramid(
        "focalnet",
        "FocalNetModel",
        ["encoder.stages.*.layers.*.norm1", "encoder.stages.*.layers.*.norm2"],
        {
            **NO_DROPOUT,
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "hidden_sizes": [16, 32],
            "depths": [2, 2],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        blocks=2 * (2 + 2),
    ),
    pyramid(
        "cvt",
        "CvtModel",
        ["encoder.stages.*.layers.*.layernorm_before", "encoder.stages.*.layers.*.layernorm_after"],
        {
            "patch_sizes": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [2, 1],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "depth": [2, 2],
            "mlp_ratio": [2.0, 2.0],
            "attention_drop_rate": [0.0, 0.0],
            "drop_rate": [0.0, 0.0],
            "drop_path_rate": [0.0, 0.0],
            "qkv_bias": [True, True],
            "cls_token": [False, True],
            "qkv_projection_method": ["dw_bn", "dw_bn"],
            "kernel_qkv": [3, 3],
            "padding_kv": [1, 1],
            "stride_kv": [2, 2],
            "padding_q": [1, 1],
            "stride_q": [1, 1],
        },
        blocks=2 * (2 + 2),
    ),
    pyramid(
        "regnet",
        "RegNetModel",
        ["encoder.stages.*.layers.[12].layer"],
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [3, 3], "groups_width": 8},
        blocks=2 + 2,
    ),
    pyramid(
        "bit (pre-activation)",
        "BitModel",
        ["encoder.stages.*.layers.[12].norm1"],
        {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [3, 3], "num_groups": 4},
        blocks=2 + 2,
    ),
]
