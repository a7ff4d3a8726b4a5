"""A Dynamo graph is traced again to ATen, with the constants that its code makes."""

import pytest
import torch
from helpers.fake_group import fake_group
from helpers.ranks import mesh
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ladderize import LadderError, last_report


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        made = torch.cat([torch.tensor([]), x.flatten()]).view(x.shape)  # as an empty cache does
        return self.down(torch.relu(self.up(made * torch.tensor([1.0, 2.0] * 4))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def compiled(model, **options):
    options = {"mesh": mesh(), **options}
    return torch.compile(model, backend="ladderize", fullgraph=True, options=options)


def test_constants_of_the_code_reach_autograd_by_a_source():
    """AOTAutograd asks every tensor of a graph where it comes from."""
    torch._dynamo.reset()
    with fake_group(), torch.no_grad():
        compiled(Net(), lowering="aot_eager")(torch.randn(4, 8))
    assert last_report().ok


def test_values_that_the_trace_loses_are_refused():
    torch._dynamo.reset()
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape)).eval()
    with fake_group(), torch.no_grad(), pytest.raises(LadderError, match="has lost") as caught:
        compiled(model, lowering="eager")(torch.arange(8)[None], use_cache=False)
    assert "backbone.layers.1.mixer" in str(caught.value)
    assert "use_associative_scan=False" in str(caught.value)
