"""Notice a stream that a graph break cut: blocks in more than one graph of one frame.

A ladder across the cut would need stale values from another graph; each piece on its own would be
another network than the one asked for.
"""

from collections import defaultdict
from typing import Any

from ladderize.compat.frames import Frame
from ladderize.errors import LadderError


class BrokenFrames:
    """Remembers, for each user function, the broken pieces that held blocks."""

    def __init__(self) -> None:
        self._pieces: defaultdict[Any, dict[str, Frame]] = defaultdict(dict)

    def note(self, frame: Frame, num_blocks: int) -> None:
        """Call for every graph that holds blocks.

        Raises:
            LadderError: when an earlier piece of the same frame held blocks too, or the graph is
                a callee of a frame that Dynamo gave up.
        """
        if frame.left_to_python:
            raise LadderError(
                f"This graph holds {num_blocks} blocks, but not all of what was compiled:",
                frame.cuts(),
                "remove the break (fullgraph=True shows where it comes from); if this part is all "
                "there is to convert, compile it itself",
            )
        if frame.code is None or not (frame.is_resumed or frame.break_reason):
            return
        pieces = self._pieces[frame.code]
        if not frame.is_resumed:
            pieces.clear()  # the function is compiled anew
        pieces[frame.piece] = frame
        if len(pieces) > 1:
            raise LadderError(
                f"A graph break cuts the residual stream: {num_blocks} more blocks follow it.",
                [cut for piece in pieces.values() for cut in piece.cuts()],
                "remove the break; fullgraph=True shows where it comes from",
            )

    def forget(self) -> None:
        self._pieces.clear()
