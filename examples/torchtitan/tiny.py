"""torchtitan configurations that train in seconds on CPU: `--module tiny --config llama3`.

The models are torchtitan's own debug flavors with fewer layers and experts. Tokens are bytes.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.components.validate import Validator
from torchtitan.config import TrainingConfig
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models import llama3 as llama3_flavors
from torchtitan.models import qwen3 as qwen3_flavors
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.module import Module
from torchtitan.trainer import Trainer

HERE = Path(__file__).parent
LAYERS, EXPERTS, EXPERTS_PER_TOKEN = 2, 4, 2


class PlainAttention(Module):
    """Attention over `[B, L, N, H]`, in ops with a backward on CPU, also in checkpointed layers.

    torchtitan's own attention, FlexAttention, has no backward pass on CPU.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        pass

    def __init__(self, config: Config) -> None:  # noqa: ARG002
        super().__init__()

    def forward(  # torchtitan shards the arguments by their names
        self,
        q_BLNH: Tensor,
        k_BLNH: Tensor,
        v_BLNH: Tensor,
        *,
        scale: float | None = None,
        **_: Any,
    ) -> Tensor:
        q, groups = q_BLNH, q_BLNH.shape[2] // k_BLNH.shape[2]
        k, v = (part.repeat_interleave(groups, 2) for part in (k_BLNH, v_BLNH))
        scores = torch.einsum("blnh,bmnh->bnlm", q, k) * (scale or q.shape[-1] ** -0.5)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        return torch.einsum("bnlm,bmnh->blnh", weights, v)


class Bytes(BaseTokenizer):
    """One token per byte; 256 begins and 257 ends a document."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, *, tokenizer_path: str) -> None:  # noqa: ARG002
        super().__init__()
        self.eos_id = 257

    def encode(self, text: str, *, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        return [*[256] * add_bos, *text.encode(), *[257] * add_eos]

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def get_vocab_size(self) -> int:
        return 258


def llama3() -> Trainer.Config:
    return training(llama3_flavors.model_registry("debugmodel"))


def qwen3_moe() -> Trainer.Config:
    """A Qwen3 with a mixture of experts in each layer."""
    spec = qwen3_flavors.model_registry("debugmodel_moe")
    for layer in spec.model.layers:
        experts = layer.moe.routed_experts
        for part in (layer.moe, layer.moe.router, experts.inner_experts, experts.token_dispatcher):
            part.num_experts = EXPERTS
        layer.moe.router.gate.out_features = EXPERTS
        layer.moe.router.top_k = experts.token_dispatcher.top_k = EXPERTS_PER_TOKEN
        experts.inner_experts.hidden_dim = 64
    return training(spec)


def training(spec: ModelSpec) -> Trainer.Config:
    """Ten training steps of four sequences of 32 bytes."""
    model: Any = spec.model
    model.layers = model.layers[:LAYERS]
    # Small embeddings, so that the blocks' sums matter from the first step on.
    model.tok_embeddings.param_init = {"weight": functools.partial(nn.init.normal_, std=0.02)}
    for layer in model.layers:
        layer.attention.inner_attention = PlainAttention.Config()
    text = HuggingFaceTextDataLoader.Config(
        dataset="c4_test",
        dataset_path=str(HERE / "text"),  # in the format of that data set
    )
    return Trainer.Config(
        loss=ChunkedLossWrapper.Config(
            loss_fn=CrossEntropyLoss.Config(global_vocab_size=model.vocab_size)
        ),
        model_spec=spec,
        tokenizer=Bytes.Config(),
        hf_assets_path=str(HERE),
        dataloader=text,
        validator=Validator.Config(freq=5, steps=1, dataloader=text),  # with --validator.enable
        optimizer=default_adamw(lr=1e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=4, seq_len=32, steps=10, mixed_precision_param="float32"
        ),
        metrics=MetricsProcessor.Config(log_freq=1, disable_color_printing=True),
    )
