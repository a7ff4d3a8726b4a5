"""A recorder of TensorRT's error reports, in addition to its log."""

from functools import cache
from typing import Any

from ladderize.compat.tensorrt.package import tensorrt


def new_recorder() -> Any:
    """An `IErrorRecorder` that stores the texts in `errors`."""
    return _recorder_class()()


@cache
def _recorder_class() -> Any:
    trt: Any = tensorrt()

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]  # no types
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.errors: list[str] = []

        def report_error(self, code: Any, text: str) -> bool:  # noqa: ARG002  # their signature
            self.errors.append(text)
            return False

        def num_errors(self) -> int:
            return len(self.errors)

        def get_error_desc(self, index: int) -> str:
            return self.errors[index]

        def get_error_code(self, index: int) -> Any:  # noqa: ARG002
            return trt.ErrorCodeTRT.INTERNAL_ERROR

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.errors.clear()

    return Recorder
