"""What to write instead of the calls at which Dynamo gives up a sharded model.

    torch.compile(model, backend="ladderize", fullgraph=True)(x)
        Unsupported: async_op=True for distributed collectives …
        ladderize: an asynchronous collective: …. What to do: …          a note on Dynamo's error

Dynamo raises such an error before it asks any backend. Where it cuts the graph instead, the pieces
reach the backend and `BrokenFrames` says the same.
"""

from dataclasses import dataclass

from ladderize import compat
from ladderize.compat.frames import Frame
from ladderize.errors import Blocker, LadderError
from ladderize.passes.gradient_checks import USE_ENDS


@dataclass(frozen=True)
class Advice:
    """What a break of Dynamo's means here.

    Attributes:
        sign: what Dynamo's message then holds.
        what: what it stumbled on.
        cure: what to write instead.
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
        "leave async_op out; ladderize launches the collective early and defers its wait itself",
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


# What cuts a graph without a word of Dynamo's.
_SHARDED_PARTS = ADVICE[2]


def advice_for(text: str) -> Advice | None:
    """The first advice whose sign is in Dynamo's `text`."""
    return next((advice for advice in ADVICE if advice.sign in text), None)


class Adviser:
    """Notes on Dynamo's errors what to write instead, and remembers it for the graphs that follow.

    Where Dynamo may cut the graph, it takes its error back and compiles the callees one by one.
    """

    def __init__(self) -> None:
        self._given: dict[Advice, None] = {}

    def see(self, error: BaseException) -> None:
        """Call for every error of Dynamo's."""
        advice = advice_for(compat.full_text_of(error))
        if advice is not None and not isinstance(error, LadderError):
            error.add_note(f"ladderize: {advice}")
            self._given[advice] = None

    def on(self, frame: Frame) -> list[Blocker]:
        """What is known of why `frame` was cut. Call it from inside a backend."""
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
