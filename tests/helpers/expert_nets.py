"""Tiny mixtures of experts, and hand-written FarSkip connectivity for them (arXiv 2511.11505).

attention reads the stream without the routed experts of the previous layer
experts read the stream before the attention add of their layer
"""

import math
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "use_cache": False,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPS = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
LLAMA4 = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
MODELS = {
    "DeepseekV3": {**EXPERTS, **GROUPS, **LATENT},
    "Glm4Moe": {**EXPERTS, **GROUPS, "head_dim": 8},
    "Llama4": {**LLAMA4, "head_dim": 8, "moe_layers": [1, 2]},
    "Qwen3Moe": {**EXPERTS, "num_experts": 4, "head_dim": 8},
}
"""Of all but Qwen3-MoE, whose experts are all routed, the first layer is dense."""


def expert_model(name):
    """A transformers model in float64, with weights so large that a wrong read shows."""
    import transformers

    kind = "Llama4Text" if name == "Llama4" else name
    config = getattr(transformers, f"{kind}Config")(**SIZES, **MODELS[name])
    config._experts_implementation = "batched_mm"  # the grouped one has no float64
    return enlarged(getattr(transformers, f"{name}ForCausalLM")(config).double().eval())


def enlarged(model):
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.5 / math.sqrt(parameter.shape[-1]))
    return model


def farskip_logits(model, ids, chosen=None):
    """The logits of a transformers model if the `chosen` blocks (None: all) read as in FarSkip.

    Dense layers read the full stream.
    """
    inner, positions = model.model, torch.arange(ids.shape[1])[None]
    x = inner.embed_tokens(ids)
    embedded = inner.rotary_emb(x, positions)
    without_routed = x
    for number, layer in enumerate(inner.layers):
        reads = [chosen is None or 2 * number + i in chosen for i in range(2)]
        read = without_routed if reads[0] else x
        attended = layer.self_attn(
            layer.input_layernorm(read), position_embeddings=embedded, attention_mask=None
        )[0]
        mlp = getattr(layer, "mlp", None) or layer.feed_forward
        is_early = reads[1] and hasattr(mlp, "experts")
        normed = layer.post_attention_layernorm(x if is_early else x + attended)
        added, shared = _run_mlp(mlp, normed)
        x, without_routed = x + attended + added, x + attended + shared
    return model.lm_head(inner.norm(x))


def _run_mlp(mlp, read):
    """What the MLP adds, with and without the routed experts."""
    shared_module = next(
        (m for name, m in mlp.named_children() if name.startswith("shared_expert")), None
    )
    with _results_of(shared_module) as shared:
        added = mlp(read)
    added = added[0] if isinstance(added, tuple) else added
    added = added.reshape(read.shape)
    if not hasattr(mlp, "experts"):
        return added, added
    return added, shared[0].reshape(read.shape) if shared else torch.zeros_like(added)


@contextmanager
def _results_of(module):
    results = []
    if module is None:
        yield results
        return
    handle = module.register_forward_hook(lambda *call: results.append(call[2].clone()))
    try:
        yield results
    finally:
        handle.remove()


# ---- a net in the shape of Instella-MoE: a gate in the attention, dense layers, shared experts


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.gate, self.out = (
            nn.Linear(width, size, bias=False) for size in (3 * width, width, width)
        )

    def forward(self, u):
        q, k, v = (part.unsqueeze(1) for part in self.qkv(u).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        return self.out(seen * torch.sigmoid(self.gate(u)))


class Dense(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, u):
        return self.down(F.silu(self.up(u)))


class Experts(nn.Module):
    def __init__(self, width, number=4):
        super().__init__()
        self.router = nn.Linear(width, number, bias=False)
        self.up = nn.Parameter(torch.randn(number, width, 16))
        self.down = nn.Parameter(torch.randn(number, 16, width))

    def forward(self, u):
        chosen = self.router(u).softmax(-1).topk(2, -1)
        weights = torch.zeros(*u.shape[:-1], len(self.up), dtype=u.dtype)
        weights = weights.scatter(-1, chosen.indices, chosen.values)
        hidden = F.silu(torch.einsum("bsd,edi->ebsi", u, self.up))
        return torch.einsum("ebsi,eid,bse->bsd", hidden, self.down, weights)


class Mixture(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.experts, self.shared = Experts(width), Dense(width, 24)

    def forward(self, u):
        return self.experts(u) + self.shared(u)


class InstellaLayer(nn.Module):
    def __init__(self, width, *, is_dense, post_norm=False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = Dense(width, 48) if is_dense else Mixture(width)
        self.post = nn.LayerNorm(width) if post_norm else nn.Identity()

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return self.post(x + self.mlp(self.norm2(x)))


class InstellaNet(nn.Module):
    """Layers 0 and 3 are dense; with `post_norm` a norm of the stream ends each layer."""

    def __init__(self, width=16, *, post_norm=False):
        super().__init__()
        self.layers = nn.ModuleList(
            InstellaLayer(width, is_dense=i in (0, 3), post_norm=post_norm) for i in range(4)
        )
        enlarged(self.double())

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def farskip(self, x, *, dense_reads_early):
        """As in AMD's decoder layer: the stream, and the stream without routed experts."""
        without_routed = x
        for layer in self.layers:
            attended = layer.attention(layer.norm1(without_routed))
            is_early = dense_reads_early or isinstance(layer.mlp, Mixture)
            u = layer.norm2(x if is_early else x + attended)
            residual = x + attended
            if isinstance(layer.mlp, Mixture):
                shared = layer.mlp.shared(u)
                without_routed = layer.post(residual + shared)
                x = layer.post(residual + (layer.mlp.experts(u) + shared))
            else:
                x = without_routed = layer.post(residual + layer.mlp(u))
        return x
