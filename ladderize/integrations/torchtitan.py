"""torchtitan trains a ladder: chosen by its `--module` and `--config`, configured by its flags.

torchrun … -m torchtitan.train --module ladderize.integrations.torchtitan
                               --config llama3.llama3_8b --ladderize.layers 16:32

--config MODULE.CONFIG          ── torchtitan's own configuration, with a section `ladderize`
  ├── the configuration is made ── check: what would train something else does not start
  └── the model is parallelized ── by torchtitan's own function (tensor parallelism, activation
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
"""Versions of torchtitan, by their beginning."""


@dataclass(kw_only=True)
class Options:
    """What `LadderConfig` has for a model that torchtitan shards; None: its default."""

    layers: str | None = None
    """Layers to convert: all, 16:32, last:16, last:50%."""
    blocks: str | None = None
    """The same, counted in blocks: each attention and each MLP is one."""
    staleness: int = 1
    """How many blocks earlier a converted block reads the residual stream."""
    connectivity: str = LADDER
    """ladder; farskip leaves out what is in flight alone, the routed experts; instella."""
    routed: str | None = None
    """The path of the routed experts' modules, with * for the number of the layer."""
    variant: str = PLAIN
    """ladder; parallel: the blocks of a layer read the same value."""
    lowering: str = "inductor"
    """What compiles the rewritten graph: inductor, aot_eager or eager."""
    mode: str | None = None
    """torch.compile's own mode, for the Inductor lowering."""
    expect_blocks: int | None = None
    """Fail unless exactly this many residual blocks are found."""
    verify: str = "graph"
    """graph reads the recurrence back; code also checks what Inductor emitted; off."""
    debug_dir: str | None = None
    """Write every stage's graph there, in a folder for each rank."""


def __getattr__(name: str) -> Callable[[], Any]:
    """The configuration function `MODULE.CONFIG`: torchtitan looks `--config` up in this module."""
    module, _, config = name.rpartition(".")
    if not module:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functools.partial(_load, module, config)


def _load(module: str, config: str) -> Any:
    from torchtitan.config import ConfigManager

    return ladder(ConfigManager().parse_args(["--module", module, "--config", config]))


def ladder(config: Any, **options: Any) -> Any:
    """The configuration `config` of torchtitan's trainer, of a ladder.

    >>> def llama3_8b_ladder():                     # in a config_registry of your own
    ...     return ladder(llama3_8b(), layers="16:32")

    Args:
        config: a `Trainer.Config`, or one of a subclass.
        options: the fields of `Options`; its flags `--ladderize.…` go first.

    Raises:
        LadderError: here, and where torchtitan completes the configuration: with all that is in
            the way.
    """
    import torchtitan

    compat.warn_if_untried("torchtitan", torchtitan.__version__, TRIED)
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    made = _config_class(type(config))  # type: ignore[arg-type]  # classes hash
    return made(**given, ladderize=Options(**options))


@functools.cache
def _config_class(base: type[Any]) -> type[Any]:
    """`base` with a section `ladderize`, which the model is parallelized by."""

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
    """Torchtitan's function that parallelizes a model, and the compilation of its result.

    Attributes:
        original: the model's own `parallelize_fn`.
        options: those of the backend.
    """

    original: Callable[..., nn.Module]
    options: Mapping[str, Any]

    def __call__(self, model: nn.Module, **how: Any) -> nn.Module:
        from torchtitan.tools.logging import logger

        model = self.original(model, **how)
        if how["parallel_dims"].tp_enabled:
            model.register_forward_pre_hook(refuse_lost_collectives)
        gather_around(model)
        # As torchtitan's own compilation sets them: the sizes of a mixture of experts depend on
        # data; what a checkpointed layer notes in Python is not noted again in the backward pass.
        torch._dynamo.config.capture_scalar_outputs = True
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        backend = reporting_backend(self.options, functools.partial(logger.info, "%s"))
        compiled = torch.compile(model.forward, backend=backend, fullgraph=True)
        model.forward = compiled  # below FSDP2's hooks of the whole model, which are not traced
        logger.info("Compiling the whole model with ladderize")
        return model


def gather_around(model: nn.Module) -> None:
    """Gather the parameters of all parts ahead of the forward pass, not each part's by itself.

    FSDP2's hooks on a part cut the graph. Parameters stay gathered until the end of the backward
    pass, where FSDP2 reduces all gradients.
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
            # A loss in chunks has freed the head, and the norm with it.
            register_multi_grad_hook(reached, gather, mode="any")
        else:
            for part in parts.values():
                part.reshard()

    model.register_forward_pre_hook(gather)
    model.register_forward_hook(prepare_backward)


def refuse_lost_collectives(*_: Any) -> None:
    """Torchtitan's modules of plain local tensors leave their collectives out where no mesh is set.

    Raises:
        LadderError: none is.
    """
    from torchtitan.distributed.spmd_types import current_spmd_mesh
    from torchtitan.distributed.utils import get_spmd_backend

    if get_spmd_backend() == "spmd_types" and current_spmd_mesh() is None:
        raise LadderError(
            "torchtitan's model is called with no mesh set: all its collectives would be left out.",
            cure="call it inside of the trainer's train_context()",
        )


def check(config: Any) -> None:
    """Raise where the ladder cannot be trained as configured.

    Args:
        config: torchtitan's, complete.

    Raises:
        LadderError: with all that is in the way.
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
            "compile.enable: torchtitan compiles each layer by itself, ladderize the whole model"
        )
    if parallelism.pipeline_parallel_degree > 1:
        yield Blocker(
            "pipeline parallelism: the first block of each stage would read the stream fresh"
        )
    if parallelism.context_parallel_degree > 1:
        yield Blocker("context parallelism was not tried")
    if parallelism.fsdp_reshard_after_forward == "always":
        yield Blocker(
            "fsdp_reshard_after_forward='always': parameters stay gathered until the end of the "
            "backward pass"
        )
    if config.training.enable_cpu_offload:
        yield Blocker("offloading parameters to the CPU was not tried")
    if config.debug.spmd_typechecking:
        yield Blocker("debug.spmd_typechecking: it looks at eager calls, of which there are none")
    if has_quantization(config.model_spec.model):
        yield Blocker("quantized training was not tried")
