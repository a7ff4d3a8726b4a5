"""Engines of a sharded program: built when it is written, found when it is loaded.

write    graph.pt2 ── decompose ── cut ── build ── DIR/engines/<key>.plan
load     graph.pt2 ── decompose ── bound to a mesh ── cut alike ── plans by their keys ── CutGraph
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule

from ladderize.backends.tensorrt.engines import BuildReport, TensorRTOptions, require_packages
from ladderize.backends.tensorrt.engines.step import CutGraph
from ladderize.backends.tensorrt.lower import prepare
from ladderize.compat.tensorrt import tensorrt_decompositions
from ladderize.frontends.rewrite import copy_of
from ladderize.frontends.sharded.module import Lower

ENGINES = "engines"
"""The folder of plans in a directory of shards."""


def build_engines(
    program: ExportedProgram, folder: Path, options: Mapping[str, Any]
) -> BuildReport:
    """Build the engines of a rank-local `program` into `folder`.

    Args:
        options: of `TensorRTOptions`; its `cache` has no meaning here.

    Raises:
        LadderError: TensorRT is not there, or an engine cannot be built.
    """
    program = _decompose(program)
    kept = dataclasses.replace(TensorRTOptions.parse(options), cache=folder)
    return _prepare(program, copy_of(program), kept).built.report


def engines_of(
    program: ExportedProgram, folder: Path, options: Mapping[str, Any]
) -> tuple[ExportedProgram, Lower]:
    """The program that the engines in `folder` were built of, and what makes its graph run them.

    Raises:
        LadderError: TensorRT is not there; then, when the graph is lowered: it is another one than
            that which built them.
    """
    program = _decompose(program)
    kept = dataclasses.replace(TensorRTOptions.parse(options), cache=folder, build=False)
    return program, lambda gm: _prepare(program, gm, kept)


def _decompose(program: ExportedProgram) -> ExportedProgram:
    """The same program, functional and in the ops that TensorRT's converters know."""
    require_packages()
    table = torch.export.default_decompositions()
    ours = {op: table[op] for op in table if op.namespace == "ladderize"}
    with torch.no_grad():
        found: ExportedProgram = program.run_decompositions({**ours, **tensorrt_decompositions()})
    return found


def _prepare(program: ExportedProgram, gm: GraphModule, options: TensorRTOptions) -> CutGraph:
    """Cut `gm`, the graph of `program` or one made of it."""
    specs = program.graph_signature.input_specs
    inputs = gm.graph.find_nodes(op="placeholder")
    is_weight = [spec.kind is InputKind.PARAMETER for spec in specs]
    weights = [node for node, chosen in zip(inputs, is_weight, strict=True) if chosen]
    return prepare(gm, weights, options)
