"""Validation of data from untrusted files: pydantic models that raise `LadderError`."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from ladderize.errors import Blocker, LadderError

_MOST_PROBLEMS = 20


Text = Annotated[str, StringConstraints(max_length=10_000)]


class StrictRecord(BaseModel):
    """A record with exact field types and no extra fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Record = TypeVar("Record", bound=BaseModel)


def parse_record(kind: type[Record], data: Any, path: Path, cure: str = "") -> Record:
    """Validate `data`, read from `path`, as a record of type `kind`.

    Raises:
        LadderError: lists fields that are missing, unknown, of another type or out of bounds.
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
        raise LadderError(f"{path} has invalid fields:", blockers, cure) from None
