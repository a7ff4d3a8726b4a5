"""Train a ladder with torchtitan: choose it with `--module` and `--config`, configure it by flags.

torchrun … -m torchtitan.train --module ladderize.integrations.torchtitan
                               --config llama3.llama3_8b --ladderize.layers 16:32

--config MODULE.CONFIG          ── torchtitan's configuration, with a section `ladderize`
  ├── the configuration is made ── check: refuse to start if something else would be trained
  └── the model is parallelized ── by torchtitan's function (tensor parallelism, activation
                                   checkpointing, FSDP2), and then compiled as a whole
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from ladderize import compat
from ladderize.config.connectivity import LADDER
from ladderize.config.options import LadderConfig
from ladderize.config.residual_form import PLAIN
from ladderize.errors import Blocker, LadderError
from ladderize.integrations.engine_backend import reporting_backend

TRIED = ("0.3",)
"""Prefixes of tested torchtitan versions."""


@dataclass(kw_only=True)
class Options:
    """Options of `LadderConfig` for a model that torchtitan shards; None for the default."""

    layers: str | None = None
    """Layers to convert: all, 16:32, last:16, last:50%."""
    blocks: str | None = None
    """The same, counted in blocks; each attention and each MLP is a block."""
    staleness: int = 1
    """Number of blocks by which converted blocks read the residual stream stale."""
    connectivity: str = LADDER
    """ladder, farskip (leaves out only what is in flight, the routed experts) or instella."""
    routed: str | None = None
    """Path of the routed experts' modules, with * for the layer number."""
    variant: str = PLAIN
    """ladder, or parallel (the blocks of a layer read the same value)."""
    lowering: str = "inductor"
    """Lowering of the rewritten graph: inductor, aot_eager or eager."""
    mode: str | None = None
    """Mode of torch.compile, for the Inductor lowering."""
    expect_blocks: int | None = None
    """Fail unless exactly this many residual blocks are found."""
    verify: str = "graph"
    """graph (check the recurrence), code (also check the code that Inductor emits) or off."""
    debug_dir: str | None = None
    """Folder for the graph of every stage, with a subfolder per rank."""


def __getattr__(name: str) -> Callable[[], Any]:
    """The configuration function `MODULE.CONFIG`; torchtitan looks `--config` up in this module."""
    module, _, config = name.rpartition(".")
    if not module:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functools.partial(_load, module, config)


def _load(module: str, config: str) -> Any:
    from torchtitan.config import ConfigManager

    return ladder(ConfigManager().parse_args(["--module", module, "--config", config]))


def ladder(config: Any, **options: Any) -> Any:
    """The torchtitan trainer configuration `config`, changed to train a ladder.

    >>> def llama3_8b_ladder():                     # in a config_registry of your own
    ...     return ladder(llama3_8b(), layers="16:32")

    Args:
        config: a `Trainer.Config`, or one of a subclass.
        options: fields of `Options`; flags `--ladderize.…` override them.

    Raises:
        LadderError: the ladder cannot be trained as configured. It is also raised when torchtitan
            completes the configuration.
    """
    import torchtitan

    compat.warn_if_untried("torchtitan", torchtitan.__version__, TRIED)
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    made = _config_class(type(config))  # type: ignore[arg-type]  # classes hash
    return made(**given, ladderize=Options(**options))


@functools.cache
def _config_class(base: type[Any]) -> type[Any]:
    """`base` with a section `ladderize`, which changes how the model is parallelized."""

    def complete(self: Any) -> None:
        base.__post_init__(self)
        check(self)
        spec = self.model_spec
        original = spec.parallelize_fn
        if isinstance(original, Parallelize):  # torchtitan copies a configuration to change it
            original = original.original
        parallelize = Parallelize(original, options_of(self))
        self.model_spec = dataclasses.replace(spec, parallelize_fn=parallelize)

    section = ("ladderize", Options, dataclasses.field(default_factory=Options))
    return dataclasses.make_dataclass(
        "Config",
        [section],
        bases=(base,),
        namespace={"__post_init__": complete, "__module__": __name__},
        kw_only=True,
        slots=True,
    )


def options_of(config: Any) -> dict[str, Any]:
    """The options of `torch.compile(backend="ladderize")` in torchtitan's configuration."""
    return {name: value for name, value in vars(config.ladderize).items() if value is not None}


@dataclass(frozen=True)
class Parallelize:
    """Parallelizes a model with torchtitan's function, then compiles it.

    Attributes:
        original: `parallelize_fn` of the model.
        options: options of the backend.
    """

    original: Callable[..., nn.Module]
    options: Mapping[str, Any]

    def __call__(self, model: nn.Module, **how: Any) -> nn.Module:
        from torchtitan.tools.logging import logger

        model = self.original(model, **how)
        if how["parallel_dims"].tp_enabled:
            model.register_forward_pre_hook(refuse_lost_collectives)
        gather_around(model)
        # As in torchtitan's own compilation: sizes in a mixture of experts depend on data, and
        # Python side effects of a checkpointed layer are not repeated in the backward pass.
        torch._dynamo.config.capture_scalar_outputs = True
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        backend = reporting_backend(self.options, functools.partial(logger.info, "%s"))
        compiled = torch.compile(model.forward, backend=backend, fullgraph=True)
        model.forward = compiled  # below FSDP2's hooks of the whole model, which are not traced
        logger.info("Compiling the whole model with ladderize")
        return model


def gather_around(model: nn.Module) -> None:
    """Gather the parameters of all parts before the forward pass, instead of one part at a time.

    FSDP2's hooks on a part break the graph. Parameters stay gathered until the end of the backward
    pass, when FSDP2 reduces all gradients.
    """
    parts = compat.parts_with_hooks(model)
    for part in parts.values():
        compat.drop_part_hooks(part)

    def gather(*_: Any) -> None:
        for handle in [part.unshard(async_op=True) for part in parts.values()]:
            handle.wait()

    def prepare_backward(_: nn.Module, __: Any, result: Any) -> None:
        results = result if isinstance(result, (tuple, list)) else (result,)
        if reached := [x for x in results if isinstance(x, Tensor) and x.requires_grad]:
            # A chunked loss has freed the head and the norm.
            register_multi_grad_hook(reached, gather, mode="any")
        else:
            for part in parts.values():
                part.reshard()

    model.register_forward_pre_hook(gather)
    model.register_forward_hook(prepare_backward)


def refuse_lost_collectives(*_: Any) -> None:
    """Refuse a call without a mesh, in which torchtitan's local modules skip their collectives.

    Raises:
        LadderError: no mesh is set.
    """
    from torchtitan.distributed.spmd_types import current_spmd_mesh
    from torchtitan.distributed.utils import get_spmd_backend

    if get_spmd_backend() == "spmd_types" and current_spmd_mesh() is None:
        raise LadderError(
            "torchtitan's model is called without a mesh: it would skip all its collectives.",
            cure="call it inside the trainer's train_context()",
        )


def check(config: Any) -> None:
    """Raise if the ladder cannot be trained as configured.

    Args:
        config: complete configuration of torchtitan.

    Raises:
        LadderError: listing all obstacles.
    """
    LadderConfig.from_options(options_of(config))
    if blockers := list(_obstacles(config)):
        raise LadderError(
            "torchtitan cannot train this ladder:",
            blockers,
            "leave these out; --module and --config without ladderize train the standard network",
        )


def _obstacles(config: Any) -> Iterator[Blocker]:
    from torchtitan.components.quantization.utils import has_quantization

    parallelism = config.parallelism
    if config.compile.enable and "model" in config.compile.components:
        yield Blocker(
            "compile.enable: torchtitan compiles each layer, but ladderize compiles the whole model"
        )
    if parallelism.pipeline_parallel_degree > 1:
        yield Blocker(
            "pipeline parallelism: the first block of each stage would read the stream fresh"
        )
    if parallelism.context_parallel_degree > 1:
        yield Blocker("context parallelism is not tested")
    if parallelism.fsdp_reshard_after_forward == "always":
        yield Blocker(
            "fsdp_reshard_after_forward='always': parameters stay gathered until the end of the "
            "backward pass"
        )
    if config.training.enable_cpu_offload:
        yield Blocker("offloading parameters to the CPU is not tested")
    if config.debug.spmd_typechecking:
        yield Blocker("debug.spmd_typechecking: it checks eager calls, and there are none")
    if has_quantization(config.model_spec.model):
        yield Blocker("quantized training is not tested")
