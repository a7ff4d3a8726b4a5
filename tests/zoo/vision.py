"""Vision models of transformers, and the two towers of CLIP."""

from functools import partial
from typing import Any

from zoo.family import VOCABULARY, Family, hugging_face, image, text

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


def text_and_image() -> dict[str, Any]:
    return {**text(), **image()}


VISION = [
    Family(
        "vit",
        hugging_face("ViTModel", **SIZES),
        image,
        ["layers.*.layernorm_before", "layers.*.layernorm_after"],
        blocks=2 * LAYERS,
    ),
    Family(
        "clip (two towers)",
        hugging_face(
            "CLIPModel",
            text_config={**SIZES, "vocab_size": VOCABULARY, "eos_token_id": 2},
            vision_config=SIZES,
            projection_dim=16,
        ),
        text_and_image,
        {
            "text": [f"text_model.{read}" for read in TOWER],
            "vision": [f"vision_model.{read}" for read in TOWER],
        },
        blocks=2 * LAYERS + 2 * LAYERS,
        is_deep=True,
    ),
    Family(
        "swin",
        hugging_face(
            "SwinModel",
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        image,
        [f"encoder.layers.*.blocks.*.layernorm_{where}" for where in ("before", "after")],
        blocks=2 * (2 + 2),
        is_deep=True,
    ),
    Family(
        "convnext",
        hugging_face("ConvNextModel", hidden_sizes=[16, 32], depths=[2, 3], num_stages=2),
        partial(image, 16),
        ["encoder.stages.*.layers.*.dwconv"],
        blocks=2 + 3,
    ),
    Family(
        "resnet (basic layers)",
        hugging_face(
            "ResNetModel",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[3, 3],
            layer_type="basic",
        ),
        image,
        ["encoder.stages.0.layers.*.layer", "encoder.stages.1.layers.[12].layer"],
        blocks=3 + 2,  # the skip path of a layer that changes the shape mixes
        is_deep=True,
    ),
    Family(
        "resnet (bottlenecks)",
        hugging_face("ResNetModel", embedding_size=8, hidden_sizes=[16, 32], depths=[3, 3]),
        image,
        ["encoder.stages.*.layers.[12].layer"],
        blocks=2 + 2,
    ),
]
