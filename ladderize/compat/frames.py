"""Dynamo's data on a graph beyond its nodes: the module that owns an input, and the frame."""

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.errors import Blocker


def copy_source(old: Node, new: Node) -> None:
    """Copy the Dynamo source of the placeholder `old` to `new`; AOTAutograd reads it."""
    if hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source


def carry_inputs(old: GraphModule, new: GraphModule) -> None:
    """Copy the data on inputs, such as which are weights, from `old` to `new`, in order.

    Inductor reads it. CUDA graphs copy the inputs that are not weights at every replay.
    """
    if _COMPILE_ID in old.meta:
        new.meta[_COMPILE_ID] = old.meta[_COMPILE_ID]
    sources: Any = getattr(old, "_param_name_to_source", None)
    if sources is not None:
        new._param_name_to_source = _constant_sources(new) | sources
    inputs = (gm.graph.find_nodes(op="placeholder") for gm in (old, new))
    for before, after in zip(*inputs, strict=True):
        copy_source(before, after)
        if _TENSOR_DICT in before.meta:
            after.meta[_TENSOR_DICT] = before.meta[_TENSOR_DICT]


def _constant_sources(gm: GraphModule) -> dict[str, Any]:
    """Dynamo sources for tensors that the trace found in the code; AOTAutograd reads them."""
    from torch._dynamo.source import ConstantSource

    return {name: ConstantSource(source_name=name) for name, _ in gm.named_buffers()}


def mark_static(node: Node) -> None:
    """Mark an input unknown to Dynamo as static: every call passes the same tensor."""
    node._dynamo_source = None
    node.meta[_TENSOR_DICT] = {"_dynamo_static_input_type": "unguarded"}


_COMPILE_ID = "dynamo_compile_id"
_TENSOR_DICT = "tensor_dict"


@dataclass(frozen=True)
class Frame:
    """The position of a graph in the function that Dynamo is compiling.

    Attributes:
        code: identity of the user's function, shared by the pieces between graph breaks.
        piece: name of the piece: that of the function or of a resume function.
        break_reason: reason of the graph break that ends this graph, or "".
        break_line: the user's line of that graph break, as `file:line`.
        left_to_python: `file:line` of the user's frame that Dynamo gave up on and that calls this
            one from Python; "" if the graph begins where `torch.compile` does.
    """

    code: object
    piece: str
    break_reason: str
    break_line: str
    left_to_python: str = ""

    def cuts(self) -> list[Blocker]:
        """The cuts of the frame that are visible from this piece."""
        found = []
        if self.break_reason:
            found.append(Blocker(f"graph break: {self.break_reason}", self.break_line))
        if self.left_to_python:
            what = "Dynamo runs this frame in Python, as it does for a graph break in a loop"
            found.append(Blocker(what, self.left_to_python))
        return found

    @property
    def is_resumed(self) -> bool:
        return self.piece.startswith("torch_dynamo_resume_in_")


def current_frame(gm: GraphModule) -> Frame:
    """The frame that `gm` was traced from; call it from inside a backend."""
    code = compat.current_code()
    reason = getattr(gm, "compile_subgraph_reason", None)
    left = compat.frames_left_to_python(compat.original_code(code))
    is_broken = bool(getattr(reason, "graph_break", False))
    stack = list(getattr(reason, "user_stack", None) or [])
    return Frame(
        code=compat.original_code(code),
        piece=code.co_name if code is not None else "",
        break_reason=str(reason.reason).splitlines()[0] if is_broken and reason else "",
        break_line=f"{stack[-1].filename}:{stack[-1].lineno}" if is_broken and stack else "",
        left_to_python=f"{left[-1].filename}:{left[-1].lineno}" if left else "",
    )
