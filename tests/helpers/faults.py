"""Faults to plant in the output of `ladderize rewrite`.

Each changes a graph or the tensors of a rank. Hashes and manifests are updated, so nothing else
reveals it. `fault_rows.py` lists the check that finds each.
"""

import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """Make branch `index` read anchor `after` instead of `before`."""
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


def read_times_zero(graph: Graph, stream: Stream) -> int:
    """Block 3 reads `x2 + 0 * x1`: the same values, from one more stream value."""
    read_nothing_of(graph, stream, 1)
    return 3


def read_nothing_of(graph: Graph, stream: Stream, other: int) -> None:
    """Block 3 reads the anchor of block 2, plus that of `other` times zero."""
    blocks = stream.blocks
    right, extra = (node_in(graph, blocks[i].anchor) for i in (2, other))
    found = readers(graph, blocks[3])
    with graph.inserting_before(found[0]):
        nothing = like(graph.call_function(aten.mul.Tensor, (extra, 0.0)), right)
        both = like(graph.call_function(aten.add.Tensor, (right, nothing)), right)
    for reader in found:
        reader.replace_input_with(right, both)


def like(node: Node, other: Node) -> Node:
    node.meta = dict(other.meta)
    return node


def put_behind(graph: Graph, node: Node, target: Any, *rest: Any) -> Node:
    """Every reader of `node` reads `target(node, *rest)` instead."""
    with graph.inserting_after(node):
        new = like(graph.call_function(target, (node, *rest)), node)
    node.replace_all_uses_with(new, lambda user: user is not new)
    return new


def branch_dropped(graph: Graph, stream: Stream) -> int:
    add = node_in(graph, stream.blocks[2].add)
    add.replace_all_uses_with(node_in(graph, stream.blocks[2].skip))
    return 3  # whose skip is too short


def branches_exchanged(graph: Graph, stream: Stream) -> int:
    """Blocks 1 and 2 add each other's branches: only the sum between them is wrong."""
    first, second = (node_in(graph, stream.blocks[i].add) for i in (1, 2))
    one, two = first.args[1], second.args[1]
    moved, stack = [], [two]
    nodes = list(graph.nodes)
    while stack:
        node = stack.pop()
        if nodes.index(node) > nodes.index(first) and node not in moved:
            moved.append(node)
            stack += node.all_input_nodes
    assert first not in moved
    for node in sorted(moved, key=nodes.index):
        first.prepend(node)
    first.args, second.args = (first.args[0], two), (second.args[0], one)
    return 1


def branch_halved(graph: Graph, stream: Stream) -> int:
    add = node_in(graph, stream.blocks[1].add)
    with graph.inserting_before(add):
        half = like(graph.call_function(aten.mul.Tensor, (add.args[1], 0.5)), add)
    add.update_arg(1, half)
    return 1


def added_twice(graph: Graph, stream: Stream) -> int:
    add = node_in(graph, stream.blocks[1].add)
    put_behind(graph, add, aten.add.Tensor, add.args[1])
    return 2  # the first to add to it


def subtracted(graph: Graph, stream: Stream) -> int:
    node_in(graph, stream.blocks[2].add).target = aten.sub.Tensor
    return 2


def other_epsilon(graph: Graph, stream: Stream) -> int:
    (norm,) = readers(graph, stream.blocks[2])
    norm.update_arg(4, 0.1)
    return 2


def rounded(graph: Graph, stream: Stream) -> int:
    """A sum that goes through bfloat16."""
    add = node_in(graph, stream.blocks[1].add)
    half = put_behind(graph, add, aten.to.dtype, torch.bfloat16)
    half.meta["val"] = half.meta["val"].to(torch.bfloat16)
    like(put_behind(graph, half, aten.to.dtype, torch.float32), add)
    return 2  # the first to add to it


def said_otherwise(graph: Graph, stream: Stream) -> int:
    """The metadata of a value has another shape."""
    node = node_in(graph, stream.blocks[1].outputs[0])
    node.meta["val"] = node.meta["val"].new_empty(2, 7)
    return 1


def impossible_op(graph: Graph, stream: Stream) -> int:
    put_behind(graph, node_in(graph, stream.blocks[1].outputs[0]), aten.view.default, [3, 5])
    return 1


def output_permuted(graph: Graph, stream: Stream) -> int:
    (output,) = graph.find_nodes(op="output")
    put_behind(graph, output.args[0][0], aten.flip.default, [0])
    return len(stream.blocks) - 1


# ---- faults that show at some sizes only


def from_position(first: int) -> Callable[[Graph, Stream], int]:
    """Block 3 reads fresh values from row `first` on; all sums have the right sources."""

    def fresh_from(graph: Graph, stream: Stream) -> int:
        stale, fresh = (node_in(graph, stream.blocks[i].anchor) for i in (2, 3))
        found = readers(graph, stream.blocks[3])
        with graph.inserting_before(found[0]):
            head = graph.call_function(aten.slice.Tensor, (stale, 0, 0, first))
            tail = graph.call_function(aten.slice.Tensor, (fresh, 0, first))
            both = like(graph.call_function(aten.cat.default, ([head, tail], 0)), stale)
        for reader in found:
            reader.replace_input_with(stale, both)
        return 3

    return fresh_from


def at_size(compare: Callable[[int, int], bool], size: int) -> Callable[[Graph, Stream], int]:
    """A branch is doubled if the number of rows compares with `size`."""

    def doubled(graph: Graph, stream: Stream) -> int:
        add = node_in(graph, stream.blocks[1].add)
        with graph.inserting_before(add):
            rows = graph.call_function(aten.sym_size.int, (add.args[1], 0))
            is_so = graph.call_function(compare, (rows, size))
            factor = graph.call_function(operator.add, (is_so, 1))
            twice = like(graph.call_function(aten.mul.Tensor, (add.args[1], factor)), add)
        add.update_arg(1, twice)
        return 1

    return doubled


# ---- faults in the state after a call


def cache_not_written(graph: Graph, stream: Stream) -> int:  # noqa: ARG001
    """The cache is not written, although attention reads the new keys."""
    write = next(node for node in graph.nodes if node.target is aten.index_copy_.default)
    write.target = aten.index_copy.default
    return 0


def changed_in_the_end(name: str, *change: Any) -> Callable[[Graph, Stream], int]:
    """The input `name` is changed in place after its last read."""
    target, *rest = change

    def changed(graph: Graph, stream: Stream) -> int:  # noqa: ARG001
        (output,) = graph.find_nodes(op="output")
        given = next(node for node in graph.find_nodes(op="placeholder") if node.name == name)
        with graph.inserting_before(output):
            like(graph.call_function(target, (given, *rest)), given)
        return 0

    return changed


def caches_exchanged(graph: Graph, stream: Stream) -> int:  # noqa: ARG001
    """Keys are stored in place of the values."""
    (output,) = graph.find_nodes(op="output")
    by_name = {node.name: node for node in graph.find_nodes(op="placeholder")}
    with graph.inserting_before(output):
        keys = by_name["b_layers_0_keys"]
        like(graph.call_function(aten.copy_.default, (by_name["b_layers_0_values"], keys)), keys)
    return 0


# ---- faults of gradients: the forward pass is right


def copy_dropped(graph: Graph, stream: Stream) -> int:
    """The backward pass lacks an all-reduce."""
    copy = of_block(graph, stream, 2, "copy")
    copy.replace_all_uses_with(copy.args[0])
    graph.erase_node(copy)
    return 2


def copied_twice(graph: Graph, stream: Stream) -> int:
    copy = of_block(graph, stream, 2, "copy")
    put_behind(graph, copy, copy.target, copy.args[1])
    return 2


def branch_detached(graph: Graph, stream: Stream) -> int:
    put_behind(graph, node_in(graph, stream.blocks[2].outputs[0]), aten.detach.default)
    return 2


def skip_detached(graph: Graph, stream: Stream) -> int:
    add = node_in(graph, stream.blocks[2].add)
    with graph.inserting_before(add):
        skip = like(graph.call_function(aten.detach.default, (add.args[0],)), add)
    add.update_arg(0, skip)
    return 2


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


def waited_twice(graph: Graph, stream: Stream) -> int:
    wait = of_block(graph, stream, 2, "wait")
    (user,) = wait.users
    with graph.inserting_before(user):
        again = like(graph.call_function(wait.target, wait.args), wait)
    user.replace_input_with(wait, again)
    return 2


def read_in_flight(graph: Graph, stream: Stream) -> int:
    wait = of_block(graph, stream, 2, "wait")
    (user,) = wait.users
    user.replace_input_with(wait, wait.args[0])
    return 2


def reduce_dropped(graph: Graph, stream: Stream) -> int:
    """Each rank adds its own summand."""
    wait = of_block(graph, stream, 2, "wait")
    launch = wait.args[0]
    wait.replace_all_uses_with(launch.args[0])
    graph.erase_node(wait)
    graph.erase_node(launch)
    return 2


def reduced_twice(graph: Graph, stream: Stream) -> int:
    wait = of_block(graph, stream, 2, "wait")
    again = put_behind(graph, wait, wait.args[0].target, wait.args[0].args[1])
    put_behind(graph, again, wait.target)
    return 2


def summand_halved(graph: Graph, stream: Stream) -> int:
    launch = of_block(graph, stream, 2, "reduce")
    with graph.inserting_before(launch):
        half = like(graph.call_function(aten.mul.Tensor, (launch.args[0], 0.5)), launch)
    launch.update_arg(0, half)
    return 2


def other_group(name: str) -> Callable[[Graph, Stream], int]:
    def over_another(graph: Graph, stream: Stream) -> int:
        node = of_block(graph, stream, 2, name)
        node.update_arg(len(node.args) - 1, "another")
        return 2

    return over_another


def gathered_from_more(graph: Graph, stream: Stream) -> int:
    gather = next(n for n in graph.nodes if n.target is torch.ops.ladderize.gather.default)
    gather.update_arg(3, 4)
    return len(stream.blocks) - 1


def maximum_taken(graph: Graph, stream: Stream) -> int:
    """The maximum over ranks instead of the sum."""
    launch = of_block(graph, stream, 2, "reduce")
    functional = torch.ops._c10d_functional
    wait = next(iter(launch.users))
    launch.target, launch.args = functional.all_reduce.default, (launch.args[0], "max", "ladderize")
    wait.target = functional.wait_tensor.default
    return 2


def launch_waits_for_the_one_before(graph: Graph, stream: Stream) -> int:
    """Block 3 reads `x2 + 0 * y2` and adds to y2: no read is wrong, but nothing is hidden."""
    read_nothing_of(graph, stream, 3)
    return 2


def bias_forgotten(graph: Graph, stream: Stream) -> int:
    wait = of_block(graph, stream, 1, "wait")
    (biased,) = wait.users
    biased.replace_all_uses_with(wait)
    graph.erase_node(biased)
    return 1


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
    """The bias is added before the all-reduce instead of after it."""
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


def of_a_rank(name: str, change: Callable[[torch.Tensor], Any]) -> Callable[[dict], int]:
    """The tensor `name` is replaced, or removed if None."""

    def changed(tensors: dict[str, torch.Tensor]) -> int:
        tensors[name] = change(tensors[name])
        if tensors[name] is None:
            del tensors[name]
        return 0

    return changed


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = float("nan")
    return tensor


def one_too_many(tensors: dict[str, torch.Tensor]) -> int:
    tensors["layers.9.up.weight"] = torch.zeros(2)
    return 0


# ---- in files


def plant(program: ExportedProgram, stream: Stream, fault: Callable[[Graph, Stream], int]) -> int:
    """Plant `fault` in the graph of `program`, in place; return the block that has it."""
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
    """Update the sizes and hashes of the files."""
    path = folder / directory.MANIFEST
    data = json.loads(path.read_text())
    data.pop("sha256")
    for name in data["files"]:
        at = folder / name
        data["files"][name] = {"bytes": at.stat().st_size, "sha256": directory._hash(at)}
    path.write_text(json.dumps(data | {"sha256": directory._hash_of(data)}))


def copy_folder(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to)
