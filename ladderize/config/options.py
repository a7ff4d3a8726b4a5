"""`LadderConfig`: the options dict of the backend, the keyword arguments and the CLI flags."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, get_args

from ladderize import compat
from ladderize.config.connectivity import LADDER, connectivity_problems
from ladderize.config.hardware import Hardware, hardware_of
from ladderize.config.ladder_entry import MAX_STALENESS, LadderEntry
from ladderize.config.residual_form import PLAIN, desync_period, variant_problems
from ladderize.config.selection import Selection
from ladderize.config.tensorrt import TensorRTOptions
from ladderize.errors import Blocker, LadderError, nearest

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh  # options are checked without torch

Lowering = Literal["inductor", "tensorrt", "aot_eager", "eager"]
LOWERING_OPTIONS = ("lowering", "lowering_options", "mode")
"""Options that have no effect before the graph is lowered."""
EXPERTS = ("tensor", "expert")
VERIFY_LEVELS = ("graph", "code", "off")


@dataclass(frozen=True)
class LadderConfig:
    """The options of the conversion and the lowering. Validated once, here.

    Attributes:
        layers: layers to convert, by index in the module list that holds the blocks. The prologue
            (blocks ahead of the first layer) stays standard. None: convert all layers of a
            standard model, and leave a model that is already a ladder, in part or as a whole, as
            it is. Any other value is the wanted ladder: it must include the blocks that already
            read stale, and its other blocks are converted.
        blocks: the same, counted in blocks, including the prologue; excludes `layers`. Both accept
            a file of `ladderize sensitivity` with a share of communication to hide,
            `"plan.json:50%"`.
        staleness: number of blocks by which a converted branch reads earlier, 0 to 8. 0 is the
            standard model, 1 the ladder of arXiv 2501.06589, Section 3.
        connectivity: what a converted branch leaves out of the stream. "ladder": everything that
            the last `staleness` blocks added. "farskip": the routed experts of the block before
            it; experts leave out that whole block (arXiv 2511.11505). "instella": as "farskip",
            and the MLP of a layer without experts leaves out the attention of its layer, as in
            AMD's Instella-MoE.
        routed: patterns of the paths of modules that return the routed experts' sum; `*` matches
            anything: "*.mlp.experts". None: routed experts are found by their routers.
        variant: form of the residual stream. "ladder": the form that `layers`, `blocks`,
            `staleness` and `connectivity` describe. "parallel": the branches of a layer read the
            same value and are summed, with one all-reduce a layer under `mesh`. "desync:n": each
            rank has its own stream, and every n-th block is reduced (arXiv 2501.06589); needs
            `mesh`.
        mesh: 1-D `DeviceMesh` to shard over, or one axis of a larger mesh: `("tp", mesh)`.
        shard_vocabulary: with `mesh`, shard the embedding, the head and `cross_entropy` along the
            vocabulary if the number of ranks divides it.
        experts: with `mesh`, how the experts of a mixture are sharded. "tensor" splits every
            expert over all ranks; "expert" gives each rank whole experts if the number of ranks
            divides them.
        hardware: hardware that collectives are scheduled for: a name such as `h100x8-nvlink`
            (`ladderize plan --list`) or a measured `Hardware`. None: the schedule uses FLOPs and
            bytes, and assumes that the link is busy half of the time.
        launches_ahead: maximum number of later launches of its kind past which a wait is deferred,
            1 to 64. The buffers of all these launches are in flight at once.
        lowering: compiler of the rewritten graph.
        lowering_options: options of the lowering: Inductor config patches, or the fields of
            `TensorRTOptions`.
        mode: `torch.compile`'s `mode=`, for the Inductor lowering.
        strict: raise if part of what was asked for cannot be done. False warns once and compiles
            the standard graph instead.
        expect_blocks: raise unless exactly this many residual blocks are found.
        verify: "graph" reads the recurrence back from the rewritten graph; "code" also checks
            the code that Inductor emitted; "off" checks neither.
        debug_dir: folder for the graph after every stage, with a subfolder for each rank.
        checkpoint: ladder entry of the model's config.json, read by the front ends; not a user
            option. The chosen blocks must be the same.

    Raises:
        LadderError: lists every unknown name, bad value and contradiction.
    """

    layers: str | int | Sequence[int] | None = None
    blocks: str | int | Sequence[int] | None = None
    staleness: int = 1
    connectivity: str = LADDER
    routed: str | Sequence[str] | None = None
    variant: str = PLAIN
    mesh: "DeviceMesh | tuple[str, DeviceMesh] | None" = None
    shard_vocabulary: bool = True
    experts: str = "tensor"
    hardware: str | Hardware | None = None
    launches_ahead: int = MAX_STALENESS
    lowering: str = "inductor"
    lowering_options: Mapping[str, Any] = field(default_factory=dict)
    mode: str | None = None
    strict: bool = True
    expect_blocks: int | None = None
    verify: str = "graph"
    debug_dir: str | Path | None = None
    checkpoint: LadderEntry | None = None

    def __post_init__(self) -> None:
        blockers = [Blocker(what) for what in self._problems()]
        if blockers:
            raise LadderError("These options cannot be used:", blockers)
        if isinstance(self.mesh, tuple):
            axis, mesh = self.mesh
            object.__setattr__(self, "mesh", mesh[axis])

    @classmethod
    def from_options(
        cls,
        options: Mapping[str, Any] | None,
        mode: str | None = None,
        checkpoint: LadderEntry | None = None,
    ) -> "LadderConfig":
        """The configuration behind `torch.compile(..., options=options, mode=mode)`.

        Args:
            options: fields of `LadderConfig`, without `checkpoint`.
            mode: `torch.compile`'s `mode=`.
            checkpoint: ladder entry of the model's config.json; options need not repeat it.
        """
        given = dict(options or {})
        if mode is not None:
            given["mode"] = mode
        names = [each.name for each in dataclasses.fields(cls) if each.name != "checkpoint"]
        unknown = [Blocker(_describe_unknown(name, names)) for name in given if name not in names]
        if unknown:
            raise LadderError("These options are not known:", unknown)
        filled = given if checkpoint is None else checkpoint.fill(given)
        return cls(**filled, checkpoint=checkpoint)

    @property
    def known_hardware(self) -> Hardware | None:
        """`hardware`, looked up if it is a name."""
        return hardware_of(self.hardware) if isinstance(self.hardware, str) else self.hardware

    @property
    def selection(self) -> Selection:
        """The parsed `blocks`, or `layers` when `blocks` is not given."""
        given = self.layers if self.blocks is None else self.blocks
        return Selection.parse("all" if given is None else given)

    @property
    def names_blocks(self) -> bool:
        """Whether the options choose a subset of the blocks."""
        return self.blocks is not None or self.layers not in (None, "all")

    @property
    def names_a_ladder(self) -> bool:
        """Whether the options specify a ladder, which also applies to a model that is one."""
        is_plain = self.connectivity == LADDER and self.variant == PLAIN
        names_reads = self.staleness != 1 or not is_plain
        return self.blocks is not None or self.layers is not None or names_reads

    @property
    def period(self) -> int:
        """`n` of "desync:n", which reduces every n-th block; 0 for other variants."""
        return desync_period(self.variant)

    @property
    def names_a_part(self) -> bool:
        """Whether the options depend on the blocks that one graph holds."""
        return self.expect_blocks is not None or self.names_blocks

    @property
    def device_mesh(self) -> "DeviceMesh | None":
        assert not isinstance(self.mesh, tuple)  # replaced by its axis in __post_init__
        return self.mesh

    def _problems(self) -> list[str]:
        return [
            *self._selection_problems(),
            *self._mesh_problems(),
            *_choice_problems("experts", self.experts, EXPERTS),
            *_choice_problems("lowering", self.lowering, get_args(Lowering)),
            *_choice_problems("verify", self.verify, VERIFY_LEVELS),
            *_count_problems("staleness", self.staleness, least=0, most=MAX_STALENESS),
            *connectivity_problems(self.connectivity, self.staleness, self.routed),
            *self._variant_problems(),
            *_count_problems("expect_blocks", self.expect_blocks, least=1),
            *_count_problems("launches_ahead", self.launches_ahead, least=1, most=64),
            *self._hardware_problems(),
            *self._inductor_only_problems(),
            *self._inductor_problems(),
            *self._tensorrt_problems(),
        ]

    def _selection_problems(self) -> list[str]:
        problems = []
        if self.blocks is not None and self.layers is not None:
            problems.append("layers= and blocks= contradict each other; give one of them")
        for name in ("layers", "blocks"):
            value = getattr(self, name)
            if value is None:
                continue
            try:
                plan = Selection.parse(value).plan
            except ValueError as error:
                problems.append(f"{name}={error}")
                continue
            if plan is not None and plan.staleness != self.staleness:
                problems.append(
                    f"{name}={value!r} is of staleness {plan.staleness}, not {self.staleness}"
                )
            for option in ("connectivity", "variant"):
                form = getattr(self, option)
                if plan is not None and form != LADDER:
                    problems.append(
                        f"{name}={value!r} was measured with {option}='ladder', not {form!r}"
                    )
        return problems

    def _variant_problems(self) -> Iterator[str]:
        chosen = self.layers if self.blocks is None else self.blocks
        return variant_problems(self.variant, self.staleness, self.connectivity, chosen)

    def _hardware_problems(self) -> list[str]:
        if self.hardware is None or isinstance(self.hardware, Hardware):
            return []
        if not isinstance(self.hardware, str):
            return [f"hardware={self.hardware!r} is neither a name nor a Hardware"]
        try:
            hardware_of(self.hardware)
        except LadderError as error:
            known = "; ".join(map(str, error.blockers))
            return [f"hardware={self.hardware!r} is not known ({known})"]
        return []

    def _mesh_problems(self) -> list[str]:
        if self.mesh is None:
            return []
        if isinstance(self.mesh, tuple):
            if len(self.mesh) != 2 or not _is_mesh(self.mesh[1]):
                return [f"mesh={self.mesh!r} is neither a DeviceMesh nor (axis name, DeviceMesh)"]
            axis, mesh = self.mesh
            axes = mesh.mesh_dim_names or ()
            return [] if axis in axes else [f"mesh axis {axis!r} is not among {list(axes)}"]
        if not _is_mesh(self.mesh):
            return [f"mesh={self.mesh!r} is not a DeviceMesh"]
        if self.mesh.ndim != 1:
            axes = self.mesh.mesh_dim_names or ("name",)
            return [
                f"mesh has {self.mesh.ndim} axes {self.mesh.mesh_dim_names or ''}, tensor "
                f'parallelism needs one: mesh=("{axes[-1]}", mesh)'
            ]
        return []

    def _inductor_problems(self) -> list[str]:
        if self.lowering != "inductor":
            return []
        known = compat.inductor_options() if self.lowering_options else ()
        problems = [
            f"lowering_options={name!r} is not an option of Inductor{nearest(name, known)}"
            for name in self.lowering_options
            if name not in known
        ]
        if self.mode is not None:
            problems += _choice_problems("mode", self.mode, compat.inductor_modes())
        return problems

    def _inductor_only_problems(self) -> list[str]:
        if self.lowering == "inductor" or self.lowering not in get_args(Lowering):
            return []
        asked = {
            "mode=": self.mode not in (None, "default"),
            "lowering_options=": bool(self.lowering_options) and self.lowering != "tensorrt",
            'verify="code"': self.verify == "code",
        }
        return [
            f"{name} goes with lowering='inductor', not with {self.lowering!r}"
            for name, given in asked.items()
            if given
        ]

    def _tensorrt_problems(self) -> list[str]:
        if self.lowering != "tensorrt":
            return []
        try:
            TensorRTOptions.parse(self.lowering_options)
        except LadderError as error:
            return [f"lowering_options: {blocker}" for blocker in error.blockers]
        return []


def _is_mesh(value: object) -> "TypeGuard[DeviceMesh]":
    from torch.distributed.device_mesh import DeviceMesh

    return isinstance(value, DeviceMesh)


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    if name in compat.inductor_options():
        return f'{name!r} is an option of Inductor: lowering_options={{"{name}": …}}'
    return f"{name!r}" + (nearest(name, known) or f"; there are {', '.join(known)}")


def _choice_problems(name: str, value: object, choices: Sequence[str]) -> list[str]:
    if value in choices:
        return []
    shown = ", ".join(map(repr, choices))
    return [f"{name}={value!r} is not one of {shown}{nearest(value, choices)}"]


def _count_problems(name: str, value: object, least: int, most: int | None = None) -> list[str]:
    if value is None and name == "expect_blocks":
        return []
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= (most or value):
        return []
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    return [f"{name}={value!r} is not a whole number {bounds}"]
