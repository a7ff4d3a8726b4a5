"""Models of transformers for images and text, video, sound, time series, moves."""

from functools import partial
from typing import Any

import torch

from zoo.family import VOCABULARY, Family, hugging_face, image, random_generator, text, token_ids
from zoo.vision import LAYERS, OLD_VIT, SIZES, TOWER, VIT, transformer

LLAVA_TEXT = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "use_cache": False,
}
IMAGE_TOKEN = VOCABULARY - 1


def tensor(name: str, *shape: int) -> Any:
    return lambda: {name: torch.randn(shape, generator=random_generator(1))}


def text_and_image() -> dict[str, Any]:
    return {**text(), **image()}


def text_with_image() -> dict[str, Any]:
    images = torch.full((2, 4), IMAGE_TOKEN)
    words = token_ids(length=4).clamp(max=IMAGE_TOKEN - 1)
    return {"input_ids": torch.cat([images, words], 1), **image(16)}


def trajectory() -> dict[str, Any]:
    random = partial(torch.randn, generator=random_generator(1))
    return {
        "states": random(2, 4, 3),
        "actions": random(2, 4, 2),
        "returns_to_go": random(2, 4, 1),
        "timesteps": torch.arange(4).repeat(2, 1),
        "attention_mask": torch.ones(2, 4),
    }


MODALITIES = [
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
    # Not in the list.
    Family(
        "llava",
        hugging_face(
            "LlavaModel",
            text_config=LLAVA_TEXT,
            vision_config={**SIZES, "image_size": 16, "model_type": "clip_vision_model"},
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-1,
        ),
        text_with_image,
        {
            "vision": [f"vision_tower.{read}" for read in TOWER],
            "text": [
                f"language_model.layers.*.{read}_layernorm" for read in ("input", "post_attention")
            ],
        },
        blocks=2 * LAYERS + 2 * LAYERS,
    ),
    transformer(
        "videomae",
        "VideoMAEModel",
        OLD_VIT,
        {"image_size": 16, "num_frames": 4, "tubelet_size": 2},
        inputs=tensor("pixel_values", 2, 4, 3, 16, 16),
    ),
    transformer(
        "timesformer (joint attention)",
        "TimesformerModel",
        OLD_VIT,
        {"image_size": 16, "num_frames": 2, "attention_type": "joint_space_time"},
        inputs=tensor("pixel_values", 2, 2, 3, 16, 16),
    ),
    transformer(
        "ast (spectrograms)",
        "ASTModel",
        VIT,
        {
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            "max_length": 16,
            "num_mel_bins": 8,
        },
        inputs=tensor("input_values", 2, 16, 8),
    ),
    Family(
        "patchtst (time series)",
        hugging_face(
            "PatchTSTModel",
            num_input_channels=2,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            d_model=32,
            num_attention_heads=4,
            num_hidden_layers=LAYERS,
            ffn_dim=48,
            norm_type="layernorm",
            channel_attention=False,
        ),
        tensor("past_values", 2, 16, 2),
        ["encoder.layers.*.norm_sublayer1", "encoder.layers.*.norm_sublayer3"],
        blocks=2 * LAYERS,
    ),
    Family(
        "decision transformer",
        hugging_face(
            "DecisionTransformerModel",
            hidden_size=32,
            n_layer=LAYERS,
            n_head=4,
            state_dim=3,
            act_dim=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        trajectory,
        ["encoder.h.*.ln_1", "encoder.h.*.ln_2"],
        blocks=2 * LAYERS,
    ),
    Family(
        # Its stream starts from a parameter; what reads the input is in no layer.
        "perceiver",
        hugging_face(
            "PerceiverModel",
            num_latents=4,
            d_latents=32,
            d_model=16,
            num_blocks=1,
            num_self_attends_per_block=LAYERS,
            num_self_attention_heads=4,
            num_cross_attention_heads=4,
            attention_probs_dropout_prob=0.0,
        ),
        tensor("inputs", 2, 8, 16),
        [
            "encoder.self_attends.*.attention.self.layernorm1",
            "encoder.self_attends.*.layernorm",
        ],
        blocks=2 * LAYERS,
        prologue=2,
    ),
]
