"""Each check of `ladderize.verify` fails alone, on a model of four blocks."""

import pytest
import torch
from helpers import faults
from helpers.graphs import Residual
from torch.export import Dim, export

import ladderize


@pytest.fixture(scope="module")
def program():
    return export(Residual(), (torch.randn(2, 8),), strict=True)


def failed(program, ladder):
    """The names of the checks that fail, up to the dtype."""
    found = ladderize.verify(program, ladder)
    return {check.name.split(",")[0] for check in found.failed}


def test_a_right_ladder_passes(program):
    assert failed(program, ladderize.rewrite(program)) == set()


def test_a_read_that_changes_no_value(program):
    ladder = ladderize.rewrite(program)
    faults.plant(ladder, faults.stream_of(program), faults.read_times_zero)
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


# ---- sizes


class Placed(Residual):
    """With a table of 20 places, whose end no trace knows of."""

    def __init__(self):
        super().__init__()
        self.places = torch.nn.Embedding(20, 8)

    def forward(self, x):
        return super().forward(x + self.places(torch.arange(x.shape[0])))


@pytest.fixture(scope="module")
def placed():
    program = export(Placed(), (torch.randn(5, 8),), dynamic_shapes=({0: Dim("n")},), strict=False)
    return program, ladderize.rewrite(program)


def sizes_tried(placed, **options):
    found = ladderize.verify(*placed, **options)
    assert found.ok, found
    return next(check.found for check in found.checks if check.name == "sizes")


def test_a_range_ends_where_the_original_fails(placed):
    said = sizes_tried(placed)
    assert said.startswith("x.size(0): 1, ") and ", 20 of 1 to any" in said
    assert "the others fail in the original (index out of range in self)" in said


def test_what_takes_too_much_memory_is_not_tried(placed):
    assert ", 20 of " in sizes_tried(placed, max_bytes=2**20, variants=1)
    said = sizes_tried(placed, max_bytes=2**14, variants=1)
    assert "the others take more than 0.0156 MiB" in said
    assert ", 20 of " not in said
