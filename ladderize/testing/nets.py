"""Residual models by specification: an ordinary `nn.Module`, and a reference with its weights.

    spec = NetSpec((StageSpec(((BlockSpec(),), (BlockSpec(),))),))
    net = ResidualNet(spec)              # net(*spec.make_args()), an ordinary eager model
    net.reference().run(*args)           # the eager ladder over the same submodules

Defaults are the simplest choices, so failing examples shrink to them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ladderize.testing.blocks import CONDITION, BlockSpec, ResidualBlock
from ladderize.testing.branches import make_norm
from ladderize.testing.reference import ReferenceBlock, ReferenceNet

VOCABULARY = 11
CLASSES = 5


@dataclass(frozen=True)
class StageSpec:
    """Layers of one width; each layer is a tuple of blocks.

    Attributes:
        layers: blocks of each layer.
        width: size of the stream.
        transition: transition from the previous stage: a key of `TRANSITIONS`. It mixes or changes
            the shape, so a segment starts with the stage.
        unrolled: whether the layers are attributes `layer0`, … instead of a `nn.ModuleList`.
        shared: whether one module, called repeatedly, is all layers.
    """

    layers: tuple[tuple[BlockSpec, ...], ...]
    width: int = 8
    transition: str = "linear"
    unrolled: bool = False
    shared: bool = False

    @property
    def blocks(self) -> Iterator[BlockSpec]:
        return (block for layer in self.layers for block in layer)


@dataclass(frozen=True)
class NetSpec:
    """A whole model: entry, stages and head, and the sizes of its input.

    Attributes:
        stages: stages in order.
        entry: "linear", "embedding", "positions" (adds learned positions) or "identity" (the
            stream starts with the graph's input).
        final_norm: norm before the head, as `BlockSpec.norm`.
        head: "linear", "mean" (over the sequence) or "none".
        dtype: dtype of weights and inputs.
        batch, length: sizes of the input.
        returns_all: whether the results of all stages are returned with that of the head.
        has_dead_code: whether each stage's result feeds a computation that is discarded.
        seed: seed of the weights and the input.
    """

    stages: tuple[StageSpec, ...]
    entry: str = "linear"
    final_norm: str = "none"
    head: str = "none"
    dtype: torch.dtype = torch.float32
    batch: int = 2
    length: int = 4
    returns_all: bool = False
    has_dead_code: bool = False
    seed: int = 0

    @property
    def num_blocks(self) -> int:
        return sum(1 for stage in self.stages for _ in stage.blocks)

    @property
    def is_conditioned(self) -> bool:
        return any(block.conditioned for stage in self.stages for block in stage.blocks)

    def make_args(self, batch: int | None = None) -> tuple[Tensor, ...]:
        """The model's arguments: token ids or features, and the condition if blocks use one.

        Shapes `[batch, length(, width)]` and `[batch, 1, 6]`.
        """
        generator = torch.Generator().manual_seed(self.seed)
        batch = self.batch if batch is None else batch
        width = self.stages[0].width
        x = torch.randn(batch, self.length, width, generator=generator).to(self.dtype)
        if self.entry == "embedding":
            x = torch.randint(VOCABULARY, x.shape[:2], generator=generator)
        if not self.is_conditioned:
            return (x,)
        return x, torch.randn(batch, 1, CONDITION, generator=generator).to(self.dtype)


class Layer(nn.Module):
    """One or several blocks, one attribute each."""

    def __init__(self, specs: tuple[BlockSpec, ...], width: int) -> None:
        super().__init__()
        for number, spec in enumerate(specs):
            setattr(self, f"block{number}", ResidualBlock(spec, width))

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        for block in self.children():
            x = block(x, condition)
        return x


class ProjectedSkip(nn.Module):
    """`W x + h(x)` with a new width: not a residual block, because the skip path mixes."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, out)
        self.inner = nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.projection(x) + self.inner(x)
        return projected


class Strided(nn.Module):
    """Takes every other position, by slicing (a view) or by a strided convolution."""

    def __init__(self, convolution: nn.Conv1d | None = None) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        if self.convolution is None:
            return x[:, ::2]
        strided: Tensor = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return strided


TRANSITIONS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "projected skip": ProjectedSkip,
    "slice": lambda *_: Strided(),  # for equal widths
    "convolution": lambda width, out: Strided(nn.Conv1d(width, out, 3, stride=2, padding=1)),
}


class Stage(nn.Module):
    def __init__(self, spec: StageSpec, width_before: int | None) -> None:
        super().__init__()
        self.transition: nn.Module = nn.Identity()
        if width_before is not None:
            self.transition = TRANSITIONS[spec.transition](width_before, spec.width)
        self.num_layers = len(spec.layers)
        forms = spec.layers[:1] if spec.shared else spec.layers
        layers = [Layer(blocks, spec.width) for blocks in forms] * (self.num_layers // len(forms))
        self.unrolled = spec.unrolled
        if spec.unrolled:
            for number, layer in enumerate(layers):
                setattr(self, f"layer{number}", layer)
        else:
            self.layers = nn.ModuleList(layers)

    def each_layer(self) -> Iterator[nn.Module]:
        for number in range(self.num_layers):
            yield getattr(self, f"layer{number}") if self.unrolled else self.layers[number]

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = self.transition(x)
        for layer in self.each_layer():
            x = layer(x, condition)
        return x

    def reference(self, context: Mapping[str, Tensor], *, is_first: bool) -> list[ReferenceBlock]:
        modules = (block for layer in self.each_layer() for block in layer.children())
        first, *rest = (m.reference(context) for m in modules if isinstance(m, ResidualBlock))
        if is_first:
            return [first, *rest]
        entered = dataclasses.replace(
            first, before=lambda x: first.before(self.transition(x)), starts_segment=True
        )
        return [entered, *rest]


class NetInput(nn.Module):
    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.kind, width = spec.entry, spec.stages[0].width
        if spec.entry == "linear":
            self.inner: nn.Module = nn.Linear(width, width)
        elif spec.entry == "positions":
            self.positions = nn.Parameter(torch.zeros(spec.length, width))
        elif spec.entry == "embedding":
            self.inner = nn.Embedding(VOCABULARY, width)
            self.positions = nn.Parameter(torch.zeros(spec.length, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("linear", "embedding"):
            x = self.inner(x)
        if self.kind in ("positions", "embedding"):
            x = x + self.positions[: x.shape[1]].expand_as(x)  # same shape, but not a block
        return x


class Head(nn.Module):
    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.kind, width = spec.head, spec.stages[-1].width
        self.norm = make_norm(spec.final_norm, width)
        self.out = nn.Identity() if spec.head == "none" else nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        result: Tensor = self.out(x.mean(1) if self.kind == "mean" else x)
        return result


class ResidualNet(nn.Module):
    """The model of a specification, in its dtype; the weights depend on `spec.seed` only."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.entry = NetInput(spec)
        self.num_stages = len(spec.stages)
        width_before = None
        for number, stage in enumerate(spec.stages):
            setattr(self, f"stage{number}", Stage(stage, width_before))
            width_before = stage.width
        self.head = Head(spec)
        _initialize(self, spec.seed)
        self.to(spec.dtype)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        x = self.entry(x)
        left = []
        for number in range(self.num_stages):
            x = getattr(self, f"stage{number}")(x, condition)
            left.append(x.clone())  # the next stage may write x in place
            if self.spec.has_dead_code:
                x + torch.tanh(x @ x.mT) @ x  # a sum that nothing reads
        result: Tensor = self.head(x)
        return (result, *left) if self.spec.returns_all else result

    def reference(self) -> ReferenceNet:
        """The same model, with the same weights, for `ReferenceNet.run`."""
        context: dict[str, Tensor] = {}
        left: list[Tensor] = []

        def enter(x: Tensor, condition: Tensor | None = None) -> Tensor:
            left.clear()
            if condition is not None:
                context["condition"] = condition
            entered: Tensor = self.entry(x)
            return entered

        def leave(x: Tensor) -> Tensor | tuple[Tensor, ...]:
            result: Tensor = self.head(x)
            return (result, *left) if self.spec.returns_all else result

        blocks = []
        for number in range(self.num_stages):
            stage = getattr(self, f"stage{number}")
            *rest, last = stage.reference(context, is_first=number == 0)
            blocks += [*rest, _noting(last, left)]
        return ReferenceNet(blocks, enter, leave)


def _noting(block: ReferenceBlock, values: list[Tensor]) -> ReferenceBlock:
    """`block`, which also appends its result to `values`."""

    def after(x: Tensor) -> Tensor:
        values.append(block.after(x))
        return values[-1]

    return dataclasses.replace(block, after=after)


def _initialize(net: nn.Module, seed: int) -> None:
    """Set weights that keep a branch about as large as its input, and nontrivial biases and norms.

    PyTorch's default weights make branches so small that stale and fresh reads hardly differ.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.dim() > 1 and "positions" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                is_gain = bool((parameter == 1).all())  # a norm's; others start at zero
                parameter.copy_(float(is_gain) + 0.2 * noise)
