"""Engines of a sharded program: built when it is written, found when it is loaded.

write    LocalProgram ── decompose ──┬── graph.pt2
                                     └── cut ── build ── DIR/engines/<key>.plan
load     graph.pt2 ── bound to a mesh ── cut alike ── plans by their keys ── Step
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule

from ladderize.aot.localize import LocalProgram
from ladderize.backends.tensorrt import prepare
from ladderize.compat.tensorrt import tensorrt_decompositions
from ladderize.engines import TensorRTOptions, require_packages
from ladderize.engines.step import Step
from ladderize.programs import copy_of

ENGINES = "engines"
"""The folder of plans in a directory of shards."""


def decompose(local: LocalProgram) -> LocalProgram:
    """The same program, functional and in the ops that TensorRT's converters know.

    Raises:
        LadderError: TensorRT is not there.
    """
    require_packages()
    table = torch.export.default_decompositions()
    ours = {op: table[op] for op in table if op.namespace == "ladderize"}
    with torch.no_grad():
        program = local.program.run_decompositions({**ours, **tensorrt_decompositions()})
    return dataclasses.replace(local, program=program)


def build_engines(local: LocalProgram, folder: Path, options: Mapping[str, Any]) -> LocalProgram:
    """Build the engines of `local` into `folder`.

    Args:
        local: after `decompose`.
        options: of `TensorRTOptions`; its `cache` has no meaning here.

    Returns:
        The program, which tells of them too.

    Raises:
        LadderError: TensorRT is not there, or an engine cannot be built.
    """
    kept = dataclasses.replace(TensorRTOptions.parse(options), cache=folder)
    report = _prepare(local.program, copy_of(local.program), kept).built.report
    return dataclasses.replace(local, engines=tuple(report.describe()))


def engines_of(
    program: ExportedProgram, folder: Path, options: Mapping[str, Any]
) -> Callable[[GraphModule], Step]:
    """What makes the graph of `program`, bound to a mesh, run the engines in `folder`.

    Raises:
        LadderError: TensorRT is not there, or is another one than that which built them.
    """
    require_packages()
    kept = dataclasses.replace(TensorRTOptions.parse(options), cache=folder, build=False)
    return lambda gm: _prepare(program, gm, kept)


def _prepare(program: ExportedProgram, gm: GraphModule, options: TensorRTOptions) -> Step:
    """Cut `gm`, the graph of `program` or one made of it."""
    specs = program.graph_signature.input_specs
    inputs = gm.graph.find_nodes(op="placeholder")
    is_weight = [spec.kind is InputKind.PARAMETER for spec in specs]
    weights = [node for node, chosen in zip(inputs, is_weight, strict=True) if chosen]
    return prepare(gm, weights, options)
