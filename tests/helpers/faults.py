"""Ten ways to get a ladder wrong, planted in what `ladderize rewrite` wrote.

Each changes a program, or the files of a sharded directory, of which nothing else tells: hashes and
manifests are made to fit.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from ladderize.compat.archive import read_program
from ladderize.frontends.rewrite import copy_of, parameter_names
from ladderize.frontends.sharded import directory, program_files
from ladderize.passes.before_autograd import standardize
from ladderize.streams.block import Block, Stream
from ladderize.streams.find import find_streams

aten = torch.ops.aten


def stream_of(program: ExportedProgram) -> Stream:
    """The first stream of a standard program; the ladder's nodes have the same names."""
    gm = copy_of(program)
    names = parameter_names(program, gm)
    standardize(gm, names)
    return find_streams(gm, names)[0]


def node_in(graph: Graph, node: Node) -> Node:
    return next(found for found in graph.nodes if found.name == node.name)


def readers(graph: Graph, block: Block) -> list[Node]:
    """The nodes of a branch that read the stream, in the rewritten graph."""
    return [node_in(graph, node) for node in block.branch if block.anchor in node.all_input_nodes]


def move_reads(graph: Graph, stream: Stream, index: int, before: int, after: int) -> None:
    """Branch `index` reads anchor `after` in the place of `before`."""
    blocks = stream.blocks
    old, new = node_in(graph, blocks[before].anchor), node_in(graph, blocks[after].anchor)
    found = readers(graph, blocks[index])
    assert found
    for reader in found:
        assert old in reader.all_input_nodes
        reader.replace_input_with(old, new)


# ---- faults in the graph of one rank; each returns the block that it is planted in


def left_fresh(graph: Graph, stream: Stream) -> int:
    move_reads(graph, stream, 3, before=2, after=3)
    return 3


def two_blocks_early(graph: Graph, stream: Stream) -> int:
    move_reads(graph, stream, 3, before=2, after=1)
    return 3


def skip_rerouted(graph: Graph, stream: Stream) -> int:
    block = stream.blocks[2]
    add = node_in(graph, block.add)
    add.replace_input_with(node_in(graph, block.skip), node_in(graph, stream.blocks[1].skip))
    return 2


def stale_read_across_a_segment(graph: Graph, stream: Stream) -> int:
    """In a ResNet: the first block of the last segment reads what the one before it was left."""
    first = next(b for b in stream.blocks if b.segment == stream.blocks[-1].segment)
    fresh = node_in(graph, first.anchor)
    earlier = node_in(graph, stream.blocks[first.index - 1].anchor)
    reader = readers(graph, first)[0]
    (_, channels, size, _), (_, few, large, _) = (
        n.meta["val"].shape for n in (first.anchor, earlier)
    )
    with graph.inserting_before(reader):
        pooled = graph.call_function(aten.avg_pool2d.default, (earlier, [large // size] * 2))
        wide = graph.call_function(aten.cat.default, ([pooled] * (channels // few), 1))
    for node in (pooled, wide):
        node.meta = dict(fresh.meta)
    for reader in readers(graph, first):
        reader.replace_input_with(fresh, wide)
    return first.index


def final_norm_reads_stale(graph: Graph, stream: Stream) -> int:
    last, before = stream.blocks[-1], stream.blocks[-2]
    node_in(graph, last.add).replace_all_uses_with(node_in(graph, before.add))
    return last.index


# ---- faults in the graph of a sharded directory


def of_block(graph: Graph, stream: Stream, index: int, name: str) -> Node:
    """The last `ladderize` op called `name` before the sum of a block."""
    add = node_in(graph, stream.blocks[index].add)
    nodes = list(graph.nodes)
    op = getattr(torch.ops.ladderize, name).default
    return [node for node in nodes[: nodes.index(add)] if node.target is op][-1]


def wait_dropped(graph: Graph, stream: Stream) -> int:
    wait = of_block(graph, stream, 2, "wait")
    wait.replace_all_uses_with(wait.args[0])
    graph.erase_node(wait)
    return 2


def collectives_swapped(graph: Graph, stream: Stream) -> int:
    """The all-reduce of block 1 is launched after that of block 2, on which it does not depend."""
    first, second = (of_block(graph, stream, index, "reduce") for index in (1, 2))
    moved, stack = [], [first]
    nodes = list(graph.nodes)
    while stack:  # what stands between them and needs the first
        node = stack.pop()
        between = nodes.index(first) <= nodes.index(node) < nodes.index(second)
        if between and node not in moved:
            moved.append(node)
            stack += node.users
    place = second
    for node in sorted(moved, key=nodes.index):
        place.append(node)
        place = node
    return 1


def bias_on_every_rank(graph: Graph, stream: Stream) -> int:
    """The bias is added ahead of the all-reduce instead of behind it."""
    wait = of_block(graph, stream, 1, "wait")
    reduce = wait.args[0]
    biased = next(user for user in wait.users if user.target is aten.add.Tensor)
    bias = next(arg for arg in biased.args if arg is not wait)
    with graph.inserting_before(reduce):
        early = graph.call_function(aten.add.Tensor, (reduce.args[0], bias))
    early.meta = dict(biased.meta)
    reduce.replace_input_with(reduce.args[0], early)
    biased.replace_all_uses_with(wait)
    graph.erase_node(biased)
    return 1


# ---- faults in the tensors of a sharded directory


def slice_off_by_one(tensors: dict[str, torch.Tensor]) -> int:
    name = next(name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight"))
    tensors[name] = tensors[name].roll(1, 1).contiguous()
    return 3


def segments_swapped(tensors: dict[str, torch.Tensor]) -> int:
    """Queries and keys of GPT-2's fused projection, whose columns they are."""
    name = next(name for name in tensors if name.endswith("h.1.attn.c_attn.weight"))
    queries, keys, values = tensors[name].chunk(3, 1)
    tensors[name] = torch.cat([keys, queries, values], 1).contiguous()
    return 2


# ---- in files


def plant(program: ExportedProgram, stream: Stream, fault: Callable[[Graph, Stream], int]) -> int:
    """`fault` in the graph of `program`, in place; the block that it is planted in."""
    index = fault(program.graph, stream)
    program.graph.lint()
    program.graph_module.recompile()
    return index


def plant_in_graph(folder: Path, stream: Stream, fault: Callable[[Graph, Stream], int]) -> int:
    program = read_program(folder / program_files.GRAPH)
    index = plant(program, stream, fault)
    (folder / program_files.GRAPH).unlink()
    torch.export.save(program, folder / program_files.GRAPH)
    make_manifest_fit(folder)
    return index


def plant_in_tensors(folder: Path, rank: int, fault: Callable[[dict], int]) -> int:
    path = folder / program_files.rank_file(rank, 2)
    tensors = load_file(path)
    index = fault(tensors)
    save_file(tensors, path, {"format": "pt"})
    make_manifest_fit(folder)
    return index


def make_manifest_fit(folder: Path) -> None:
    """The sizes and hashes of the files as they are now."""
    path = folder / directory.MANIFEST
    data = json.loads(path.read_text())
    data.pop("sha256")
    for name in data["files"]:
        at = folder / name
        data["files"][name] = {"bytes": at.stat().st_size, "sha256": directory._hash(at)}
    path.write_text(json.dumps(data | {"sha256": directory._hash_of(data)}))


def copy_folder(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to)
