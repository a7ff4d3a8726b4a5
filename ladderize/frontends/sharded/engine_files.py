"""Engines of a sharded program: built when it is written, looked up when it is loaded.

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
        program: rank-local program.
        folder: folder for the engines.
        options: fields of `TensorRTOptions`; `cache` is ignored.

    Raises:
        LadderError: TensorRT is not installed, or an engine cannot be built.
    """
    program = _decompose(program)
    kept = dataclasses.replace(TensorRTOptions.parse(options), cache=folder)
    return _prepare(program, copy_of(program), kept).built.report


def engines_of(
    program: ExportedProgram, folder: Path, options: Mapping[str, Any]
) -> tuple[ExportedProgram, Lower]:
    """The program that the engines in `folder` were built from, and the lowering that runs them.

    Raises:
        LadderError: TensorRT is not installed. The lowering raises if another version of TensorRT
            built the engines.
    """
    program = _decompose(program)
    kept = dataclasses.replace(TensorRTOptions.parse(options), cache=folder, build=False)
    return program, lambda gm: _prepare(program, gm, kept)


def _decompose(program: ExportedProgram) -> ExportedProgram:
    """The program, functionalized and decomposed to ops that TensorRT's converters support."""
    require_packages()
    table = torch.export.default_decompositions()
    ours = {op: table[op] for op in table if op.namespace == "ladderize"}
    with torch.no_grad():
        found: ExportedProgram = program.run_decompositions({**ours, **tensorrt_decompositions()})
    return found


def _prepare(program: ExportedProgram, gm: GraphModule, options: TensorRTOptions) -> CutGraph:
    """Cut `gm`, the graph of `program` or a copy of it."""
    specs = program.graph_signature.input_specs
    inputs = gm.graph.find_nodes(op="placeholder")
    is_weight = [spec.kind is InputKind.PARAMETER for spec in specs]
    weights = [node for node, chosen in zip(inputs, is_weight, strict=True) if chosen]
    return prepare(gm, weights, options)
