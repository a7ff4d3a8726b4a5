"""The shipped configurations `hf:NAME`: the models, fewer layers, and narrower streams."""

import pytest

from ladderize.errors import LadderError
from ladderize.tools.sources.hugging_face import InputSizes, open_configuration
from ladderize.tools.sources.model_names import find_configuration, shipped_names
from ladderize.tools.sources.opened_models import open_model
from ladderize.tools.sources.traced_sizes import sizes_of

# Billions of parameters, as the publishers count them.
PUBLISHED = {
    "bert-large": 0.34,
    "gemma2-27b": 27.2,
    "gpt-oss-120b": 116.8,
    "gpt-oss-20b": 20.9,
    "gpt2-xl": 1.56,
    "llama-405b": 405.9,
    "llama-70b": 70.6,
    "llama-8b": 8.03,
    "mixtral-8x7b": 46.7,
    "qwen3-32b": 32.8,
    "qwen3-8b": 8.19,
    "t5-3b": 2.85,
    "vit-large": 0.304,
}
SMALL = [name for name in shipped_names() if name not in PUBLISHED]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    model, _ = open_configuration(f"hf:{name}", InputSizes(1, 8), has_weights=False)
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert billions == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_run(name):
    model, inputs = open_configuration(f"hf:{name}", InputSizes(1, 8))
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "width"),
    [("llama-70b", 512), ("qwen3-8b", 512), ("gpt2-xl", 128), ("gpt-oss-20b", 360)],
)
def test_reduced_sizes(name, width):
    model, _ = open_configuration(
        f"hf:{name},layers=2,width={width}", InputSizes(1, 8), has_weights=False
    )
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, width)
    outputs = ("o_proj.weight", "attn.c_proj.weight")
    parameters = [p for path, p in model.named_parameters() if path.endswith(outputs)]
    assert len(parameters) == 2 and all(width in p.shape for p in parameters)


def test_a_reduced_one_runs():
    model, inputs = open_configuration("hf:gpt2-xl,layers=2,width=64", InputSizes(1, 8))
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hf:llama,layers=3", "has 2 layers, not 3"),
        ("hf:llama,width=30", "has 4 heads of 16: its width cannot be 30"),
        ("hf:llama,width=128", "its width cannot be 128"),
        ("hf:llama,heads=2", "'heads=2' is not a size"),
        ("hf:lama", "did you mean 'llama'"),
        ("hf:llama-405b", "take 755 GiB; this machine has"),
    ],
)
def test_sizes_that_there_are_not(text, reason):
    with pytest.raises(LadderError, match=reason):
        open_model(text)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_configuration("hf:llama").path.parent.name == "configurations"
    (tmp_path / "llama").mkdir()
    assert str(find_configuration("hf:llama").path) == "llama"


@pytest.mark.parametrize(
    "sizes", [InputSizes(3, 7), InputSizes(is_dynamic=True)], ids=["fixed", "dynamic"]
)
@pytest.mark.parametrize("name", ["llama", "vit"])
def test_sizes_of_a_program(name, sizes):
    """`verify` traces the original with the sizes of the rewritten program."""
    found = sizes_of(open_model(f"hf:{name}", sizes).program())
    assert found.is_dynamic == sizes.is_dynamic
    if not sizes.is_dynamic:
        assert found.batch == 3
        assert found.length == 7 if name == "llama" else found.image == 32
