"""The kind of a branch is read from its operations: all kinds, in modules with equal names."""

import pytest
import torch
from helpers.eager_ladders import tokens
from torch import Tensor, nn
from torch.nn.functional import gelu, one_hot, scaled_dot_product_attention, silu, softmax
from torch.utils.checkpoint import checkpoint
from transformers import (
    GPTJConfig,
    GPTJForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import ladderize

WIDTH = 8


class Parts(nn.Module):
    """What the branches below are made of; the names say nothing about them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, 2 * WIDTH)
        self.b = nn.Linear(2 * WIDTH, WIDTH)
        self.c = nn.Linear(WIDTH, 3 * WIDTH)
        self.d = nn.Linear(WIDTH, WIDTH)
        self.e = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.f = nn.Linear(WIDTH, 4)


def mlp(p: Parts, x: Tensor) -> Tensor:
    return p.b(gelu(p.a(x)))


def gated_mlp(p: Parts, x: Tensor) -> Tensor:
    gate, value = p.a(x).chunk(2, -1)
    return p.d(silu(gate) * value)


def checkpointed_mlp(p: Parts, x: Tensor) -> Tensor:
    return checkpoint(lambda x: mlp(p, x), x, use_reentrant=False)


def gathered_mlp(p: Parts, x: Tensor) -> Tensor:
    """As sequence parallelism gathers it: ranks gather the first dim, and make it the second."""
    return mlp(p, torch.cat(x.chunk(2, 0), 1).reshape(x.shape))


def swapped_mlp(p: Parts, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 0)
    return mlp(p, torch.cat((second, first), 0))


def fused_attention(p: Parts, x: Tensor) -> Tensor:
    return p.d(scaled_dot_product_attention(*p.c(x).chunk(3, -1)))


def written_attention(p: Parts, x: Tensor) -> Tensor:
    q, k, v = p.c(x).chunk(3, -1)
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5
    weights = softmax(scores.masked_fill(scores == 0, -1e9).float(), -1).to(x.dtype)
    return p.d(torch.matmul(weights, v))


def softmax_of_features(p: Parts, x: Tensor) -> Tensor:
    return p.d(softmax(p.d(x), -1))


def experts(p: Parts, x: Tensor) -> Tensor:
    weights, chosen = softmax(p.f(x), -1).topk(2, -1)
    mask = (one_hot(chosen, 4) * weights.unsqueeze(-1)).sum(-2)
    return p.b(gelu(p.a(x))) * mask[..., :1] + p.d(x) * mask[..., 1:2]


def experts_by_topk(p: Parts, x: Tensor) -> Tensor:
    chosen = p.f(x).topk(1, -1).indices
    return p.b(gelu(p.a(x))) * (chosen == 0) + p.d(x) * (chosen == 1)


def convolution(p: Parts, x: Tensor) -> Tensor:
    return p.b(gelu(p.a(p.e(x.transpose(1, 2)).transpose(1, 2))))


def scan_behind_a_convolution(p: Parts, x: Tensor) -> Tensor:
    """The recurrence of Mamba, arXiv 2312.00752, in a loop over positions."""
    u = silu(p.e(x.transpose(1, 2)).transpose(1, 2))
    state = torch.zeros(x.shape[0], WIDTH, 4)
    outputs = []
    for i in range(x.shape[1]):
        gate = p.f(u[:, i])
        state = torch.exp(-gate[:, None]) * state + u[:, i, :, None]
        outputs.append(torch.matmul(state, gate.unsqueeze(-1)).squeeze(-1))
    return p.d(torch.stack(outputs, 1))


def recurrence(p: Parts, x: Tensor) -> Tensor:
    state = torch.zeros(x.shape[0], WIDTH)
    outputs = []
    for i in range(x.shape[1]):
        state = torch.tanh(p.d(x[:, i]) + state)
        outputs.append(state)
    return p.d(torch.stack(outputs, 1))


def fourier(p: Parts, x: Tensor) -> Tensor:  # noqa: ARG001
    return torch.fft.fft(x, dim=1).real


def linear(p: Parts, x: Tensor) -> Tensor:
    return p.d(x)


def both_at_once(p: Parts, x: Tensor) -> Tensor:
    return fused_attention(p, x) + mlp(p, x)


class Net(nn.Module):
    def __init__(self, branch: object, count: int = 2) -> None:
        super().__init__()
        self.branch = branch
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.attention_mlp_moe = nn.ModuleList(Parts() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for parts in self.attention_mlp_moe:
            x = x + self.branch(parts, x)
        return x


@pytest.mark.parametrize(
    ("branch", "kind"),
    [
        (mlp, "MLP"),
        (gated_mlp, "MLP"),
        (checkpointed_mlp, "MLP"),
        (gathered_mlp, "MLP"),
        (swapped_mlp, "other"),
        (fused_attention, "attention"),
        (written_attention, "attention"),
        (experts, "MoE"),
        (experts_by_topk, "MoE"),
        (convolution, "conv"),
        (softmax_of_features, "other"),
        (scan_behind_a_convolution, "other"),
        (recurrence, "other"),
        (fourier, "other"),
        (linear, "other"),
        (both_at_once, "attention + MLP"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_kinds(branch, kind):
    report = ladderize.explain(Net(branch), torch.randn(2, 3, WIDTH))
    assert [block.kind for block in report.blocks] == [kind] * 2


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        (MixtralForCausalLM, MixtralConfig, ["attention", "MoE"]),
        (GPTJForCausalLM, GPTJConfig, ["attention + MLP"] * 2),
        (Mamba2ForCausalLM, Mamba2Config, ["other"] * 2),
    ],
    ids=["mixtral", "gptj", "mamba2"],
)
def test_kinds_of_transformers_models(kind, config, expected):
    sizes = {
        MixtralConfig: {
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "intermediate_size": 48,
        },
        GPTJConfig: {"rotary_dim": 4, "bos_token_id": 0, "eos_token_id": 0},
        Mamba2Config: {"state_size": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    }
    common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    made = config(**{**common, **sizes[config], _heads(config): 4})
    with torch.no_grad():
        report = ladderize.explain(kind(made).eval(), input_ids=tokens(), use_cache=False)
    assert [block.kind for block in report.blocks] == expected


def _heads(config):
    return "num_heads" if config is Mamba2Config else "num_attention_heads"
