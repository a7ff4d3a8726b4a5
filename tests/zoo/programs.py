"""Each family is traced once, and all checks share that program.

`traced(family)` is torch.export's program, traced without Dynamo. The families of `SYMBOLIC` have a
symbolic batch and length, so that the one program runs at two sizes; those of the others are
symbolic under `--deep` only, for a symbolic trace takes three times as long.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils._pytree import tree_leaves

from ladderize import rewrite
from ladderize.testing import eager_ladder
from zoo.family import Family

BATCH, LENGTH = 0, 1
# Inputs of a length of their own, behind the batch; images, sounds and the like have none.
HAVE_LENGTH = {
    "input_ids",
    "decoder_input_ids",
    "encoder_hidden_states",
    "src",
    *("states", "actions", "returns_to_go", "timesteps", "attention_mask"),
    "inputs",
}
# Where torch itself makes a size that was to be symbolic a constant, or bounds it: dim, and why.
LOOP = "a Python loop over positions"
CONSTANT = {
    "mamba": (LENGTH, LOOP),
    "mamba (associative scan)": (LENGTH, LOOP),
    "rwkv (a scan that fills a buffer)": (LENGTH, LOOP),
    "recurrentgemma": (LENGTH, LOOP),
    "out[:, i] = f(x)[:, i]": (LENGTH, LOOP),
    "xlstm": (LENGTH, "compares the shape after all chunks with the one before"),
    "canine (three encoders)": (LENGTH, "a Python loop over windows"),
    "minimax (skip of the normed)": (LENGTH, "a Python loop over windows of linear attention"),
    "llava": (BATCH, "as many image tokens as image features, compared while tracing"),
}
# Spellings of attention, mixing, experts, relative positions and convolutions.
SYMBOLIC = {
    "llama",
    "bloom",
    "mixtral",
    "bert",
    "t5",
    "segformer",
    "nn.TransformerEncoder (pre-norm)",
    "torchvision's resnet",
    "dit (adaLN)",
    "x += f(x)",
}
# Programs that torch.export itself refuses.
UNEXPORTED = {"vmap(f)(x)"}


def is_symbolic(family: Family) -> bool:
    return family.name in SYMBOLIC


@dataclass(frozen=True, eq=False)
class Traced:
    """A family's model and its program.

    Attributes:
        resizings: per dim the entries added to each input: none, then another size if the program
            is symbolic.
    """

    family: Family
    model: nn.Module
    program: ExportedProgram
    resizings: tuple[dict[int, int], ...] = ({},)

    @cached_property
    def ladder(self) -> ExportedProgram:
        """All blocks one block stale."""
        return rewrite(self.program, expect_blocks=self.family.found)

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """The keyword arguments at each size."""
        return [resized(self.family.feed(), more) for more in self.resizings]

    @cached_property
    def expected(self) -> list[list[Tensor]]:
        """The tensors that the eager ladder returns at each size."""
        with torch.no_grad():
            return [expect(self, inputs) for inputs in self.inputs]


def expect(traced: Traced, inputs: dict[str, Any], **how: Any) -> list[Tensor]:
    """The tensors that the eager ladder returns."""
    with eager_ladder(traced.model, traced.family.reads, **how):
        return tensors(traced.model(**inputs))


def tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


@lru_cache(maxsize=1)  # the cases of a family follow one another
def traced(family: Family, symbolic: bool | None = None) -> Traced:
    """The program; at one size only unless `symbolic`, by default as `is_symbolic` says."""
    model = family.build()
    if not (is_symbolic(family) if symbolic is None else symbolic):
        with torch.no_grad():
            return Traced(family, model, export(model, (), family.feed(), strict=False))
    constant, _ = CONSTANT.get(family.name, (None, ""))
    other = {dim: by for dim, by in {BATCH: 1, LENGTH: -2}.items() if dim != constant}
    return Traced(family, model, trace_symbolic(family, model, constant), ({}, other))


def trace_symbolic(family: Family, model: nn.Module, constant: int | None) -> ExportedProgram:
    """`Dim.DYNAMIC`: an error where torch would make the size a constant."""
    inputs = family.feed()
    shapes = {
        name: {dim: Dim.DYNAMIC for dim in symbolic_dims(name, value) if dim != constant}
        for name, value in inputs.items()
    }
    # Of symbolic sizes an entry of this cache costs more to make than it saves.
    with torch.no_grad(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        return export(model, (), inputs, strict=False, dynamic_shapes=shapes)


def symbolic_dims(name: str, value: Tensor) -> list[int]:
    has_length = name in HAVE_LENGTH or (name == "x" and value.dim() == 3)
    return [BATCH, LENGTH] if has_length else [BATCH]


def resized(inputs: dict[str, Any], more: dict[int, int]) -> dict[str, Any]:
    """`more[dim]` entries more of each input, from its start again."""
    found = dict(inputs)
    for name, value in inputs.items():
        for dim in symbolic_dims(name, value):
            entries = torch.arange(value.shape[dim] + more.get(dim, 0)) % value.shape[dim]
            found[name] = found[name].index_select(dim, entries)
    return found
