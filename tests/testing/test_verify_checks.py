"""Each check of `ladderize.verify` fails by itself, on a net of four blocks."""

import pytest
import torch
from helpers import faults
from helpers.graphs import Residual
from torch.export import export

import ladderize

aten = torch.ops.aten


@pytest.fixture
def program():
    return export(Residual(), (torch.randn(2, 8),), strict=True)


def failed(program, ladder):
    """The names of the checks that fail, up to the dtype."""
    found = ladderize.verify(program, ladder)
    return {check.name.split(",")[0] for check in found.failed}


def a_read_times_zero(graph, stream):
    """Block 3 reads `x2 + 0 * x1`: the same values from one stream value more."""
    blocks = stream.blocks
    right, other = (faults.node_in(graph, blocks[i].anchor) for i in (2, 1))
    found = faults.readers(graph, blocks[3])
    with graph.inserting_before(found[0]):
        nothing = graph.call_function(aten.mul.Tensor, (other, 0.0))
        both = graph.call_function(aten.add.Tensor, (right, nothing))
    nothing.meta, both.meta = dict(right.meta), dict(right.meta)
    for reader in found:
        reader.replace_input_with(right, both)
    return 3


def test_a_right_ladder_passes(program):
    assert failed(program, ladderize.rewrite(program)) == set()


def test_a_read_that_changes_no_value(program):
    ladder = ladderize.rewrite(program)
    faults.plant(ladder, faults.stream_of(program), a_read_times_zero)
    assert failed(program, ladder) == {"recurrence"}


def test_a_read_that_changes_values(program):
    ladder = ladderize.rewrite(program)
    faults.plant(ladder, faults.stream_of(program), faults.two_blocks_early)
    assert failed(program, ladder) == {"recurrence", "values"}


def test_a_weight_that_changes_values(program):
    other = Residual()
    other.load_state_dict(program.state_dict)
    with torch.no_grad():
        other.layers[2].up.weight.add_(1)
    ladder = ladderize.rewrite(export(other, (torch.randn(2, 8),), strict=True))
    assert failed(program, ladder) == {"weights", "values"}
