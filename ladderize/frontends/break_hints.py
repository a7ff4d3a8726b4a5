"""Hints for calls in sharded models that Dynamo cannot trace.

    torch.compile(model, backend="ladderize", fullgraph=True)(x)
        Unsupported: async_op=True for distributed collectives …
        ladderize: an asynchronous collective: …. What to do: …          a note on Dynamo's error

Dynamo raises such an error before it calls a backend. If it breaks the graph instead, the backend
gets the pieces and `BrokenFrames` gives the same hints.
"""

from dataclasses import dataclass

from ladderize import compat
from ladderize.compat.frames import Frame
from ladderize.errors import Blocker, LadderError
from ladderize.passes.gradient_checks import USE_ENDS


@dataclass(frozen=True)
class Advice:
    """A hint for one kind of graph break.

    Attributes:
        sign: substring of Dynamo's message.
        what: description of the unsupported call.
        cure: what to do instead.
    """

    sign: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}. What to do: {self.cure}"


ADVICE = (
    Advice(
        "async_op=True",
        "a collective with async_op=True hides its wait from the compiler",
        "leave out async_op; ladderize launches the collective early and defers its wait itself",
    ),
    Advice(
        "torch.distributed.nn.functional",
        "an op of torch.distributed.nn.functional, whose gradient is that of data parallelism",
        USE_ENDS,
    ),
    Advice(
        "/_fully_shard/_fsdp",
        "fully_shard on a part of the model: its hooks cut the graph at every such part",
        "call fully_shard on the whole model only, before or after compiling it",
    ),
)


# The hint for breaks without a message from Dynamo.
_SHARDED_PARTS = ADVICE[2]


def advice_for(text: str) -> Advice | None:
    """The first advice with a sign that occurs in Dynamo's `text`."""
    return next((advice for advice in ADVICE if advice.sign in text), None)


class Adviser:
    """Adds hints to Dynamo's errors, and remembers them for the graphs that follow.

    If Dynamo may break the graph, it drops its error and compiles the callees one by one.
    """

    def __init__(self) -> None:
        self._given: dict[Advice, None] = {}

    def see(self, error: BaseException) -> None:
        """Add a hint to an error of Dynamo. Call this for every such error."""
        advice = advice_for(compat.full_text_of(error))
        if advice is not None and not isinstance(error, LadderError):
            error.add_note(f"ladderize: {advice}")
            self._given[advice] = None

    def on(self, frame: Frame) -> list[Blocker]:
        """The known reasons for the cuts of `frame`. Call this from inside a backend."""
        found = [advice_for(cut.what) for cut in frame.cuts()]
        parts = compat.sharded_parts()
        if parts:
            found.append(_SHARDED_PARTS)
        where = ", ".join(parts[:4]) + ", …" * (len(parts) > 4)
        given = dict.fromkeys((*self._given, *found))
        self.forget()
        return [Blocker(str(advice), where) for advice in given if advice is not None]

    def forget(self) -> None:
        self._given.clear()
