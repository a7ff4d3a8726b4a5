"""Detect a stream that a graph break cuts: blocks in more than one graph of one frame.

A ladder across the cut would need stale values from another graph. Separate ladders of the pieces
would not be the ladder that was asked for.
"""

from collections import defaultdict
from typing import Any

from ladderize.compat.frames import Frame
from ladderize.errors import LadderError


class BrokenFrames:
    """Remembers the pieces with blocks of each user function."""

    def __init__(self) -> None:
        self._pieces: defaultdict[Any, dict[str, Frame]] = defaultdict(dict)

    def note(self, frame: Frame, num_blocks: int) -> None:
        """Note a graph. Call this for every graph that has blocks.

        Raises:
            LadderError: an earlier piece of the same frame has blocks too, or the graph is a callee
                of a frame that Dynamo gave up on.
        """
        if frame.left_to_python:
            raise LadderError(
                f"This graph holds {num_blocks} blocks, but is only a part of what was compiled:",
                frame.cuts(),
                "remove the break (fullgraph=True shows its cause); if only this part should be "
                "converted, compile it directly",
            )
        if frame.code is None or not (frame.is_resumed or frame.break_reason):
            return
        pieces = self._pieces[frame.code]
        if not frame.is_resumed:
            pieces.clear()  # the function is being recompiled
        pieces[frame.piece] = frame
        if len(pieces) > 1:
            raise LadderError(
                f"A graph break cuts the residual stream: {num_blocks} more blocks follow it.",
                [cut for piece in pieces.values() for cut in piece.cuts()],
                "remove the break; fullgraph=True shows its cause",
            )

    def forget(self) -> None:
        self._pieces.clear()
