"""The arguments and flags that several verbs share."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A .pt2 file, hf:DIR_OR_CONFIG, hf:llama, or module:factory."
    ),
]

# ---- what to convert: fields of LadderConfig

Layers = Annotated[
    str | None,
    typer.Option(help='Layers to convert: "all", "16:32", "last:16", "last:50%", "[0, 3]".'),
]
Blocks = Annotated[str | None, typer.Option(help="Like --layers, but counted in blocks.")]
Staleness = Annotated[
    int | None,
    typer.Option(min=0, help="Staleness of reads, in blocks. \\[default: 1]"),
]
Variant = Annotated[
    str | None,
    typer.Option(
        help='"parallel" (the branches of a layer read the same value) or, with --tp, "desync:2" '
        "(every second block is reduced). \\[default: ladder]"
    ),
]
ExpectBlocks = Annotated[
    int | None, typer.Option(min=1, help="Fail unless exactly this many residual blocks are found.")
]
ShardVocabulary = Annotated[
    bool, typer.Option(help="With --tp: shard the embedding and the head along the vocabulary.")
]
Connectivity = Annotated[
    str | None,
    typer.Option(
        help="What a converted branch leaves out of the blocks before it: ladder, farskip or "
        "instella. \\[default: ladder]"
    ),
]
Routed = Annotated[
    list[str] | None,
    typer.Option(help='With farskip: modules of routed experts: "*.mlp.experts". Repeatable.'),
]
Experts = Annotated[
    str | None,
    typer.Option(
        help='With --tp: "tensor" splits every expert over the ranks, "expert" gives each rank '
        "whole ones. \\[default: tensor]"
    ),
]
Tp = Annotated[int | None, typer.Option(min=2, help="Number of tensor-parallel ranks.")]
DebugDir = Annotated[
    Path | None, typer.Option(help="Write each stage's graph and the report there.")
]

# ---- how to lower

Lowering = Annotated[
    str | None,
    typer.Option(help='With --tp: "tensorrt" also builds engines, which ladderize.load runs.'),
]
LoweringOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="One of TensorRTOptions: target=8.9, sizes={'input_ids[1]': [1, 128, 2048]}, …",
    ),
]

# ---- the inputs of an hf: model

Batch = Annotated[int, typer.Option(min=1, help="Examples in the inputs of an hf: model.")]
Length = Annotated[int, typer.Option(min=1, help="Tokens per example.")]
ImageSize = Annotated[
    int, typer.Option(min=1, help="Image size in pixels, if the config does not set one.")
]
Dynamic = Annotated[
    bool, typer.Option("--dynamic", help="Trace with any batch and length (not for .pt2).")
]

# ---- text, and the device

Texts = Annotated[
    list[Path] | None,
    typer.Option(
        "--text", help="A file of text or JSON lines, or a folder of datasets; repeatable."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. \\[default: cuda if there is one]")]

# ---- output

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.")]


def lowering_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse NAME=VALUE options. A value is a Python literal or else a string; a target is one."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text} is not NAME=VALUE", param_hint="--lowering-option")
        try:
            found[name] = value if name == "target" else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


Number = TypeVar("Number", int, float)


def words(text: str | None) -> tuple[str, ...]:
    """The words of a comma-separated list."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def numbers(text: str | None, flag: str, kind: type[Number]) -> tuple[Number, ...]:
    """Parse a comma-separated list of positive ints or nonnegative floats; None gives ()."""
    try:
        found = () if text is None else tuple(map(kind, text.split(",")))
    except ValueError:
        found = (kind(-1),)
    if any(number < 0 or (kind is int and not number) for number in found):
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers such as 1,4,16", param_hint=flag
        )
    return found


def refuse_mistakes(*models: str, **options: Any) -> None:
    """Refuse missing models and invalid options before torch is loaded.

    Raises:
        LadderError: a model does not exist, or an option is invalid.
    """
    from ladderize.config.ahead_of_time import aot_config
    from ladderize.tools.sources.model_names import refuse_unknown

    aot_config(**options)
    for model in models:
        refuse_unknown(model)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
