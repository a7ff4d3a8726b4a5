"""The costs in a report: what a block computes, reads and sends."""

import pytest
import torch
from helpers.eager_ladders import tiny_llama, tokens
from helpers.graphs import Residual
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import ladderize


def counted(model, *args, **kwargs):
    """By module. Attention by its two products: the counter does not know the kernel of the CPU."""
    counter = FlopCounterMode(display=False, depth=9)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*args, **kwargs)
    return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def test_a_block_by_hand():
    block = ladderize.explain(Residual(2, width=8), torch.randn(3, 8)).blocks[1]
    assert block.flops == 2 * (2 * 3 * 8 * 16)
    assert block.weight_bytes == 4 * ((8 + 8) + (8 * 16 + 16) + (16 * 8 + 8))
    assert block.reduce_bytes == 4 * 3 * 8


@pytest.mark.parametrize("is_exported", [False, True])
def test_flops_are_those_of_torchs_counter(is_exported):
    model, ids = tiny_llama(2), tokens()
    flops = counted(model, input_ids=ids)
    if is_exported:
        report = ladderize.explain(torch.export.export(model, (ids,)))
    else:
        report = ladderize.explain(model, input_ids=ids)
    assert [block.flops for block in report.blocks] == [
        flops[f"LlamaForCausalLM.model.layers.{layer}.{part}"]
        for layer in range(2)
        for part in ("self_attn", "mlp")
    ]


def test_written_attention_and_addmm():
    """GPT-2 multiplies by `addmm`, and by `matmul` where it writes its attention out."""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, use_cache=False)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    flops = counted(model, tokens())
    attention, mlp = ladderize.explain(model, tokens()).blocks
    assert attention.flops == flops["GPT2LMHeadModel.transformer.h.0.attn"]
    assert mlp.flops == flops["GPT2LMHeadModel.transformer.h.0.mlp"]


def test_operands_given_by_name():
    """Bloom calls `alibi.baddbmm(batch1=…, batch2=…)`."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(2, 8, 8) for _ in range(2))

        def forward(self, x):
            for weight in self.weights:
                x = x + x.new_zeros(2, 4, 8).baddbmm(batch1=x, batch2=torch.relu(weight))
            return x

    blocks = ladderize.explain(Named(), torch.randn(2, 4, 8)).blocks
    assert [block.flops for block in blocks] == [2 * 2 * 4 * 8 * 8] * 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_its_cache_and_the_head(attention):
    """16 of 32 features are keys: heads are repeated after the cache."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=1, use_cache=False, **shape, **heads)
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()
    ids = torch.zeros(2, 8, dtype=torch.int64)
    report = ladderize.explain(model, ids)
    attending, mlp = report.blocks
    assert attending.attention_flops == 2 * (2 * 2 * 4 * 8 * 8 * 8)
    assert attending.cache_bytes == 2 * (2 * 8 * 16) * 4
    assert (mlp.attention_flops, mlp.cache_bytes) == (0, 0)
    outside = report.graphs[0].outside
    assert outside.flops == 2 * 2 * 8 * 32 * 100
    # The embedding, as large as the head, only looks rows up; 4 frequencies of the rotary one.
    assert outside.weight_bytes in {4 * (32 * 100 + 32), 4 * (32 * 100 + 32 + 4)}


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, groups=2),
                nn.ReLU(),
                nn.ConvTranspose2d(8, 8, 3, padding=1),
            )
            for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class Prepared(Residual):
    """Weights that are made ready before the first block reads them."""

    def forward(self, x):
        ready = [(layer.up.weight.half().float().t(), layer) for layer in self.layers]
        for weight, layer in ready:
            x = x + layer.down(torch.relu(layer.norm(x) @ weight))
        return x


def test_weights_are_found_behind_casts_and_transposes():
    blocks = ladderize.explain(Prepared(2, width=8), torch.randn(3, 8)).blocks
    expected = 4 * ((8 + 8) + 8 * 16 + (16 * 8 + 8))
    assert [block.weight_bytes for block in blocks] == [expected] * 2


def test_convolutions():
    model, x = Convolutions(), torch.randn(2, 8, 5, 6)
    flops = counted(model, x)["Global"]
    assert [block.flops for block in ladderize.explain(model, x).blocks] == [flops // 2] * 2
    traced = torch.fx.symbolic_trace(model)
    ladderize.rewrite(traced, (x,))
    assert [block.flops for block in ladderize.last_report().blocks] == [flops // 2] * 2
    weights = sum(p.numel() for p in model.parameters())
    assert [block.weight_bytes for block in ladderize.last_report().blocks] == [2 * weights] * 2


def test_dynamic_sizes_count_with_those_of_the_call():
    model, x = Residual(2), torch.randn(5, 8)
    torch._dynamo.mark_dynamic(x, 0)
    report = ladderize.explain(model, x)
    assert report.streams[0].segments[0].shape[0] != 5
    assert report.blocks[0].flops == 2 * (2 * 5 * 8 * 16)
    assert report.blocks[0].reduce_bytes == 4 * 5 * 8


class Chosen(Residual):
    """Selects a number of rows that depends on values."""

    def forward(self, x):
        return super().forward(x[x[:, 0] > 0])


def test_sizes_that_nobody_knows_yet():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        report = ladderize.explain(Chosen(2), torch.randn(5, 8))
    assert [(b.flops, b.reduce_bytes) for b in report.blocks] == [(None, None)] * 2
    assert report.blocks[0].weight_bytes == 4 * ((8 + 8) + (8 * 16 + 16) + (16 * 8 + 8))
    assert '"flops": null' in report.to_json()


def test_a_stream_in_half_precision():
    block = ladderize.explain(Residual(2).bfloat16(), torch.randn(3, 8).bfloat16()).blocks[0]
    assert block.reduce_bytes == 2 * 3 * 8


def test_a_weight_that_two_blocks_share_is_read_by_both():
    model = Residual(2)
    model.layers[1] = model.layers[0]
    first, second = ladderize.explain(model, torch.randn(3, 8)).blocks
    assert first.weight_bytes == second.weight_bytes > 0
