"""From a network to the bytes of a plan, without a GPU where TensorRT can."""

from collections.abc import Collection
from functools import cache
from typing import Any

from ladderize.compat.tensorrt.network import Network
from ladderize.compat.tensorrt.package import compute_capability, is_tensorrt_rtx, tensorrt
from ladderize.compat.tensorrt.settings import BuildSettings


class BuildFailed(Exception):
    """TensorRT built no engine; the text is what it reported."""


def build_plan(network: Network, settings: BuildSettings, weights: Collection[str]) -> bytes:
    """The serialized engine, refittable in exactly `weights`.

    Not by `interpreter.run()`, which deserialises the engine and so needs a GPU.

    Raises:
        BuildFailed: with TensorRT's own words.
    """
    trt: Any = tensorrt()
    interpreter = network.interpreter
    config = interpreter._populate_trt_builder_config()
    if weights:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        if settings.strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        for name in weights:
            assert network.definition.mark_weights_refittable(name)
    if settings.target is not None and is_tensorrt_rtx():
        config.num_compute_capabilities = 1
        config.set_compute_capability(compute_capability(settings.target), 0)
    recorder = _recorder_class()()
    interpreter.builder.error_recorder = recorder
    plan = interpreter.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise BuildFailed("; ".join(dict.fromkeys(recorder.errors)))
    return bytes(plan)


@cache
def _recorder_class() -> Any:
    trt: Any = tensorrt()

    class Recorder(trt.IErrorRecorder):  # type: ignore[misc]  # no types
        """Keeps what TensorRT reports, besides the log that it writes."""

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
