"""The networks that TensorRT is given compute what the islands compute."""

import dataclasses
from typing import Any

import pytest
import torch
from laddered import MODELS, OTHERS, Cut, laddered
from stand_in_engine import Converted
from torch.fx import Interpreter

from ladderize.backends.tensorrt.engines import Built, TensorRTOptions, assemble, build_islands
from ladderize.backends.tensorrt.islands import is_call


class _Watch(Interpreter):
    """Runs a cut graph, and keeps what goes into each island."""

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut.gm)
        self.inputs: dict[str, tuple[Any, ...]] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.inputs[target] = args
        return super().call_module(target, args, kwargs)


def inputs_of(name: str, rows: int = 2, words: int = 16) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 96, (rows, words))
    if name == "llama":
        return {"input_ids": ids}
    mask = torch.ones(rows, words, dtype=torch.int64)
    mask[0, words // 2 :] = 0  # not causal, and not all ones
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_engines_compute_what_their_islands_do(monkeypatch, name, dynamic):
    torch.manual_seed(0)
    cut = laddered(MODELS[name](), dynamic=dynamic, **inputs_of(name))
    converted = Converted()
    with converted.watched(monkeypatch):
        built = build_islands(cut.islands, cut.weights, TensorRTOptions(target="8.6"))
    built = dataclasses.replace(built, make_engine=converted.make_engine)
    compare(cut, built)
    if dynamic:
        cut.call(**inputs_of(name, 3, 9))
        compare(cut, built)
    assert converted.num_engines == len(built.report.plans)  # equal islands share an engine


@pytest.mark.parametrize("name", OTHERS)
def test_other_families(monkeypatch, name):
    torch.manual_seed(0)
    cut = laddered(OTHERS[name](), use_cache=False, **inputs_of("llama"))
    converted = Converted()
    with converted.watched(monkeypatch):
        built = build_islands(cut.islands, cut.weights, TensorRTOptions(target="8.6"))
    compare(cut, dataclasses.replace(built, make_engine=converted.make_engine))
    assert all(op.op in ("aten.cumsum.default", "aten.baddbmm.default") for op in built.report.left)


@pytest.mark.parametrize("name", MODELS)
def test_refittable_engines_get_each_islands_weights(monkeypatch, name):
    torch.manual_seed(0)
    cut = laddered(MODELS[name](), **inputs_of(name))
    converted = Converted()
    monkeypatch.setattr(assemble, "choose_target", lambda _: (8, 6))  # which wants a GPU for these
    with converted.watched(monkeypatch):
        options = TensorRTOptions(weights="stripped")
        built = build_islands(cut.islands, cut.weights, options)
    compare(cut, dataclasses.replace(built, make_engine=converted.make_engine))
    assert converted.num_engines > len(built.report.plans)  # equal islands share a plan


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 4e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision(monkeypatch, name, dtype, atol):
    torch.manual_seed(0)
    cut = laddered(MODELS[name]().to(getattr(torch, dtype)), **inputs_of(name))
    converted = Converted()
    with converted.watched(monkeypatch):
        built = build_islands(cut.islands, cut.weights, TensorRTOptions(target="8.6"))
    compare(cut, dataclasses.replace(built, make_engine=converted.make_engine), atol)


def compare(cut: Cut, built: Built, atol: float = 2e-5) -> None:
    """Run each island on what it gets in the whole graph, and its engines on the same."""
    watch = _Watch(cut)
    watch.run(*cut.inputs)
    assert set(watch.inputs) == set(cut.islands)
    for call in filter(is_call, cut.gm.graph.nodes):
        island = str(call.target)
        body, given = cut.islands[island], watch.inputs[island]
        names = [node.name for node in body.graph.find_nodes(op="placeholder")]
        weights = {n: v for n, v in zip(names, given, strict=True) if n in cut.weights[island]}
        others = [v for n, v in zip(names, given, strict=True) if n not in weights]
        found = built.bind(island, weights)(*others)
        for ours, theirs in zip(found, body(*given), strict=True):
            assert ours.shape == theirs.shape
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, atol=atol, rtol=50 * atol)
