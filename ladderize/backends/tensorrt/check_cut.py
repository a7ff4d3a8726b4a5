"""Check that a cut graph is equivalent to the flat one, and that its islands are well formed.

    check = cut_of(gm)      on the flat graph
    run_pass(gm, CutIslands(), log, check)

Both graphs are read as lists of actions (`numbering.py`), which must be equal. The form of the
islands is checked on the cut graph. Nothing here depends on how the pass works.
"""

import operator
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import zip_longest

import torch
from torch.fx import GraphModule, Node

from ladderize.backends.tensorrt.islands import Role, is_call, is_size, reads_values, role_of
from ladderize.backends.tensorrt.numbering import Actions, Event, Numbering
from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.fake_values import signature
from ladderize.passes.runner import Invariant
from ladderize.sharding.views import as_expr


def cut_of(gm: GraphModule) -> Invariant:
    """The invariant of the cut, made from the flat `gm`: same program, well-formed islands. Linear.

    Boundaries: the same ones in the same order, on the same values. Compute: no new calls, and
    none has crossed a launch, a wait or a write.
    Islands: no two are adjacent and none is empty. Their inputs are what they read and are not
    views. Their outputs are what others read, are not inputs, and share no memory.

    Raises:
        LadderError: the returned check fails; the message lists everything that does not hold.
    """
    numbering = Numbering()
    flat = numbering.read(gm)

    def check(gm: GraphModule) -> None:
        cut = numbering.read(gm)
        blockers = [*_compare(flat, cut), *_look_at(gm)]
        if blockers:
            raise LadderError(
                "The graph was not cut into islands correctly:",
                blockers,
                "this is a fault of ladderize; please report it with options={'debug_dir': …}",
            )

    return check


# ---- the same program


def _compare(flat: Actions, cut: Actions) -> Iterator[Blocker]:
    for was, found in zip_longest(flat.events, cut.events):
        if fault := _compare_events(was, found):
            yield fault
    # Calls may only disappear if they were dead; otherwise values of their readers would differ.
    places = defaultdict(list)
    for number, run, _ in flat.computed:
        places[number].append(run)
    for number, run, node in cut.computed:
        if run in places[number]:
            places[number].remove(run)
        else:
            yield Blocker.at(node, f"{node.name} is computed after boundary {run}, but was not")
    if flat.outputs != cut.outputs:
        yield Blocker("the results differ from those of the flat graph")


def _compare_events(was: Event | None, found: Event | None) -> Blocker | None:
    if was is None or found is None:
        _, node = was or found or (None, None)
        assert node is not None
        return Blocker.at(node, f"{node.name} is {'new' if was is None else 'missing'}")
    (key, old), (new_key, node) = was, found
    if key == new_key:
        return None
    is_same_op = key[0] is new_key[0]
    what = "reads other values than before" if is_same_op else f"is in the place of {old.name}"
    return Blocker.at(node, f"{node.name} {what}")


# ---- well-formed islands


def _look_at(gm: GraphModule) -> Iterator[Blocker]:
    """The faults of the islands of `gm`, run by run."""
    call: Node | None = None
    outside: list[Node] = []
    for node in gm.graph.nodes:
        if is_call(node):
            if call is not None:
                yield Blocker(f"there is no boundary between {call.name} and {node.name}")
            call = node
            yield from _look_at_call(node)
        elif node.target is operator.getitem:
            continue
        elif role_of(node) is Role.COMPUTE:
            outside.append(node)
        elif role_of(node) is Role.BOUNDARY or node.op == "output":
            if call is not None or any(map(reads_values, outside)):
                for left in outside:
                    yield Blocker.at(left, f"{left.name} is computed outside of the islands")
            call, outside = None, []


def _look_at_call(call: Node) -> Iterator[Blocker]:
    body = ops.called_module(call)
    assert isinstance(body, GraphModule)
    for what in (
        *_faults_of_inputs(call, body),
        *_faults_of_compute(body),
        *_faults_of_outputs(call, body),
    ):
        yield Blocker(f"{call.name} {what}")


def _faults_of_inputs(call: Node, body: GraphModule) -> Iterator[str]:
    given, placeholders = call.all_input_nodes, body.graph.find_nodes(op="placeholder")
    if len(call.args) != len(given) or len(given) != len(placeholders) or call.kwargs:
        counts = f"{len(call.args)} ({len(given)} different ones)"
        yield f"takes {len(placeholders)} inputs, but gets {counts}"
        return
    sizes = {
        as_expr(size)
        for source in given
        for tensor in ops.tensors(source)
        for size in tensor.shape
        if isinstance(size, torch.SymInt)
    }
    for source, placeholder in zip(given, placeholders, strict=True):
        if not placeholder.users:
            yield f"does not read {source.name}"
        size = ops.value(source)
        if is_size(source):
            if isinstance(size, torch.SymInt) and as_expr(size) in sizes:
                yield f"gets {source.name}, which is a size of one of its tensors"
        elif role_of(source) is Role.FREE:
            yield f"gets the view {source.name} instead of its base"
        if signature(ops.value(placeholder)) != signature(ops.value(source)):
            yield f"has wrong metadata for {source.name}"


def _faults_of_compute(body: GraphModule) -> Iterator[str]:
    calls = [node for node in body.graph.nodes if node.op not in ("placeholder", "output")]
    if not any(map(reads_values, calls)):
        yield "computes nothing"
    for node in calls:
        if role_of(node) not in (Role.COMPUTE, Role.FREE):
            yield f"contains {node.name}, which belongs outside"
        if not node.users:
            yield f"contains {node.name}, which nothing reads"


def _faults_of_outputs(call: Node, body: GraphModule) -> Iterator[str]:
    results = body.graph.output_node().args[0]
    assert isinstance(results, tuple)
    items = {user.args[1]: user for user in call.users if user.target is operator.getitem}
    counts = Counter(map(_base, results))
    if len(call.users) != len(results) or len(items) != len(results):
        yield f"returns {len(results)} values, but {len(items)} are used"
    for number, result in enumerate(results):
        if role_of(_base(result)) is not Role.COMPUTE:
            yield f"returns {result}, which it does not compute"
        elif counts[_base(result)] > 1:
            yield f"returns {result.name} and another view of the same memory"
        elif number in items and not items[number].users:
            yield f"returns {result.name}, which nothing reads"
        elif number in items and signature(ops.value(items[number])) != signature(
            ops.value(result)
        ):
            yield f"returns {result.name}, whose metadata is wrong outside"
    if signature(ops.value(call)) != signature(tuple(map(ops.value, results))):
        yield "has a fake value that differs from its results"


def _base(node: Node) -> Node:
    """The base of a view, or the tensor itself if it is not a view."""
    while role_of(node) is Role.FREE and not is_size(node):
        node = node.all_input_nodes[0]
    return node
