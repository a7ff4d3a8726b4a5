"""Build the bytes of a plan from a network, without a GPU if TensorRT supports it."""

from collections.abc import Collection
from typing import Any

from ladderize.compat.tensorrt.network import Network
from ladderize.compat.tensorrt.package import compute_capability, is_tensorrt_rtx, tensorrt
from ladderize.compat.tensorrt.settings import BuildSettings


class BuildFailed(Exception):
    """TensorRT could not build an engine; the text is its report."""


def build_plan(network: Network, settings: BuildSettings, weights: Collection[str]) -> bytes:
    """Build the serialized engine, with exactly `weights` refittable.

    This does not use `interpreter.run()`, which deserializes the engine and so needs a GPU.

    Raises:
        BuildFailed: TensorRT could not build it; the text is its report.
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
    network.recorder.clear()
    plan = interpreter.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise BuildFailed("; ".join(dict.fromkeys(network.recorder.errors)))
    return bytes(plan)
