"""Data from files that nobody vouches for: pydantic models, whose errors are `LadderError`s."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from ladderize.errors import Blocker, LadderError

_MOST_PROBLEMS = 20


Text = Annotated[str, StringConstraints(max_length=10_000)]


class StrictRecord(BaseModel):
    """Fields of exactly these types, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Record = TypeVar("Record", bound=BaseModel)


def parse_record(kind: type[Record], data: Any, path: Path, cure: str = "") -> Record:
    """The record that `data`, read from `path`, holds.

    Raises:
        LadderError: listing every field that is missing, unknown, of another type or out of bounds.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        blockers = [
            Blocker(f"{'.'.join(map(str, each['loc']))[:200] or 'as a whole'}: {each['msg']}")
            for each in found[:_MOST_PROBLEMS]
        ]
        if more := len(found) - len(blockers):
            blockers.append(Blocker(f"and {more} more"))
        raise LadderError(f"{path} does not say what it must:", blockers, cure) from None
