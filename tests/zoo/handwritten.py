"""Models as users write them: torch's layers, torchvision's ResNet, a DiT, in-place sums."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.family import Family

WIDTH = 32
LAYERS = 3


def sequence() -> dict[str, Any]:
    return {"x": torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(1))}


class Chain(nn.Module):
    """A stem, layers one after the other, a head."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class InPlace(nn.Module):
    """x += f(x)"""

    def __init__(self) -> None:
        super().__init__()
        self.f = mlp()

    def forward(self, x: Tensor) -> Tensor:
        x += self.f(x)
        return x


class InPlaceOfNormed(nn.Module):
    """h += x, of a branch of its own memory, so that it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(WIDTH), mlp()

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(self.norm(x))
        h += x
        return h


class Filled(nn.Module):
    """out[:, i] = f(x)[:, i]: a loop over positions that fills a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(WIDTH), mlp()

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.f(self.norm(x)), torch.zeros_like(x)
        for i in range(x.shape[1]):
            out[:, i] = h[:, i]
        return x + out


class Mapped(nn.Module):
    """vmap over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(WIDTH), mlp()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.vmap(self.f)(self.norm(x))


class BasicBlock(nn.Module):
    """torchvision's, with `out += identity` and `relu_`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Two stages of three blocks; the first block of the second stage is not a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*(BasicBlock(8, 8, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), *(BasicBlock(16, 16, 1) for _ in "ab"))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def picture() -> dict[str, Any]:
    return {"x": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))}


class DiTBlock(nn.Module):
    """adaLN-Zero of arXiv 2212.09748: a condition shifts, scales and gates both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.mlp = mlp()
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attn(h, h, h, need_weights=False)[0]
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Patches of an image, conditioned on a step and a class."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.positions = nn.Parameter(torch.zeros(1, 16, WIDTH))
        self.step, self.label = nn.Linear(1, WIDTH), nn.Embedding(10, WIDTH)
        self.blocks = nn.ModuleList(DiTBlock() for _ in range(LAYERS))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.out = nn.Linear(WIDTH, 4 * 4 * 3)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        c = self.step(t[:, None]) + self.label(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c)[:, None].chunk(2, -1)
        return self.out(self.norm(x) * (1 + scale) + shift)


def noisy_picture() -> dict[str, Any]:
    return {**picture(), "t": torch.tensor([0.3, 0.8]), "y": torch.tensor([1, 7])}


class OwnSkip(nn.Module):
    """LAuReL parallel to attention, as in Gemma 3n without AltUp: both branches read one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.laurel = nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.LayerNorm(WIDTH))
        self.mlp = mlp()

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x)
        x = x + self.attn(u, u, u, need_weights=False)[0]
        x = (x + (u + self.laurel(u))) * 2**-0.5
        return x + self.mlp(self.norm2(x))


def torch_encoder(*, norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 4, 48, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


def encoder_input() -> dict[str, Any]:
    return {"src": sequence()["x"]}


HANDWRITTEN = [
    Family(
        "nn.TransformerEncoder (pre-norm)",
        lambda: torch_encoder(norm_first=True),
        encoder_input,
        ["layers.*.norm1", "layers.*.norm2"],
        blocks=2 * LAYERS,
        is_deep=True,
    ),
    Family(
        "nn.TransformerEncoder (post-norm)",
        lambda: torch_encoder(norm_first=False),
        encoder_input,
        ["layers.*.self_attn", "layers.*.linear1"],
        blocks=2 * LAYERS,
        is_deep=True,
    ),
    Family(
        "torchvision's resnet",
        ResNet,
        picture,
        ["layer1.*.conv1", "layer2.[12].conv1"],
        blocks=3 + 2,
        is_deep=True,
    ),
    Family(
        "dit (adaLN)",
        DiT,
        noisy_picture,
        ["blocks.*.norm1", "blocks.*.norm2"],
        blocks=2 * LAYERS,
        is_deep=True,
    ),
    Family(
        "x + a(u) + (u + l(u))",
        lambda: Chain(*(OwnSkip() for _ in range(LAYERS))),
        sequence,
        ["layers.*.norm", "layers.*.norm2"],
        blocks=2 * LAYERS,
    ),
    Family(
        "x += f(x)",
        lambda: Chain(*(InPlace() for _ in range(LAYERS))),
        sequence,
        ["layers.*.f"],
        blocks=LAYERS,
        trains=False,  # in eager mode: `f` keeps the x that is overwritten
        is_deep=True,
    ),
    Family(
        "h += x",
        lambda: Chain(*(InPlaceOfNormed() for _ in range(LAYERS))),
        sequence,
        ["layers.*.norm"],
        blocks=LAYERS,
    ),
    Family(
        "out[:, i] = f(x)[:, i]",
        lambda: Chain(*(Filled() for _ in range(LAYERS))),
        sequence,
        ["layers.*.norm"],
        blocks=LAYERS,
    ),
    Family(
        "vmap(f)(x)",
        lambda: Chain(*(Mapped() for _ in range(LAYERS))),
        sequence,
        ["layers.*.norm"],
        blocks=LAYERS,
    ),
]
