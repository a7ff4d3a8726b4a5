"""Tiny models with random weights as Hugging Face checkpoints, and answers of their ladders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ladderize.testing import eager_ladder

SIZES = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", {}, "post_attention_layernorm"),
    "qwen3": ("Qwen3ForCausalLM", {}, "post_attention_layernorm"),
    "gemma2": ("Gemma2ForCausalLM", {"tie_word_embeddings": True}, "pre_feedforward_layernorm"),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}, "post_attention_layernorm"),
}


class Checkpoint:
    """A family's model, on disk at `folder`."""

    def __init__(self, family: str, folder: Path, **config: Any) -> None:
        name, sizes, second = FAMILIES[family]
        cls = getattr(transformers, name)
        torch.manual_seed(0)
        self.model: nn.Module = cls(cls.config_class(**SIZES | sizes | config)).eval()
        for parameter in self.model.parameters():  # transformers' are small: a ladder is near them
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
        self.reads = ["model.layers.*.input_layernorm", f"model.layers.*.{second}"]
        self.folder = folder
        self.model.save_pretrained(folder)  # type: ignore[operator]  # of transformers

    def answers(
        self, prompts: Sequence[Sequence[int]], new: int, **ladder: Any
    ) -> list[dict[str, list[Any]]]:
        """The eager ladder's scores of the prompts, and its continuations."""
        found = []
        with torch.no_grad(), eager_ladder(self.model, self.reads, **ladder):
            for prompt in prompts:
                ids = list(prompt)
                for _ in range(new):
                    ids.append(int(self._scores(ids)[-1].argmax()))
                scores = self._scores(prompt)[:-1]
                picked = scores.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
                found.append({"scores": picked.tolist(), "tokens": ids[len(prompt) :]})
        return found

    def _scores(self, ids: Sequence[int]) -> Tensor:
        logits: Tensor = self.model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits.log_softmax(-1)
