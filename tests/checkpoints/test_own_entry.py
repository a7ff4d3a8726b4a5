"""Every front end and every verb uses the ladder entry of config.json."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from helpers.eager_ladders import llama_ladder, tiny_llama, tokens
from helpers.ranks import mesh
from helpers.traced_once import traced_once
from torch import nn
from typer.testing import CliRunner

import ladderize
from ladderize import LadderError
from ladderize.config.ladder_entry import LadderEntry
from ladderize.frontends.checkpoints.own_entry import own_entry
from ladderize.tools.cli import app

CHOSEN = [1, 3]
SAID = {"blocks": CHOSEN, "staleness": 1, "version": 1}
IDS = tokens()
EAGER = {"lowering": "eager"}


def model(**config):
    return tiny_llama(2, **{"ladder": SAID} | config)


def stale(report):
    return [block.index for block in report.blocks if block.is_rewired]


def ways(net):
    """How a model is made a ladder in place, or as another callable."""
    yield "compile", ladderize.compile(net, **EAGER)
    ladderize.restore(net)
    yield "torch.compile", torch.compile(net, backend="ladderize", options=EAGER)
    yield "a method", torch.compile(net.forward, backend="ladderize", options=EAGER)
    yield (
        "a wrapper",
        ladderize.compile(
            peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["q_proj"])), **EAGER
        ),
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_what_compiles_reads_it():
    net = model()
    expected, standard = (llama_ladder(net, IDS, chosen) for chosen in (CHOSEN, ()))
    assert not torch.allclose(expected, standard, atol=1e-2)
    for way, run in ways(net):
        torch._dynamo.reset()
        with torch.no_grad():
            found = run(input_ids=IDS).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, msg=way)


def test_a_wrapper_has_that_of_the_model_in_it():
    assert str(own_entry(nn.Sequential(nn.Sequential(model())))) == "blocks 1, 3, staleness 1"
    assert own_entry(nn.Sequential(tiny_llama(2))) is own_entry(nn.Linear(2, 2)) is None


def test_what_looks_at_graphs_reads_it(tmp_path):
    """A program itself has no configuration: the folder of its weights is named."""
    net = model()
    net.save_pretrained(tmp_path)
    report = ladderize.explain(net, IDS)
    assert stale(report) == CHOSEN
    text = " ".join(str(report).split())
    assert "config.json: blocks 1, 3, staleness 1. Engines that do not read it run these" in text
    assert stale(ladderize.plan_parallel(lambda: net, 2, (IDS,)).report) == CHOSEN
    program = torch.export.export(net, (IDS,), strict=False)
    ladderize.rewrite(program, checkpoint=tmp_path)
    assert stale(ladderize.last_report()) == CHOSEN


def test_parallelize_reads_that_of_the_weights(tmp_path, first_of_two):  # noqa: ARG001
    net = model()
    net.save_pretrained(tmp_path)
    ladderize.parallelize(lambda: tiny_llama(2), mesh(), (IDS,), checkpoint=tmp_path)
    assert stale(ladderize.last_report()) == CHOSEN
    with pytest.raises(LadderError, match="name different ladders"):
        ladderize.parallelize(
            lambda: model(ladder={"layers": "all"}), mesh(), (IDS,), checkpoint=tmp_path
        )


@pytest.mark.parametrize("strict", [True, False])
def test_a_contradiction_that_only_the_graph_shows(strict):
    net = ladderize.compile(model(), blocks="last:25%", strict=strict, **EAGER)
    with pytest.raises(Exception, match="chooses blocks 3") as caught:
        net(IDS)
    assert "config.json has blocks 1, 3, staleness 1: blocks 1, 3" in str(caught.value)
    with pytest.raises(LadderError, match="staleness=2, and config"):
        ladderize.compile(net, staleness=2)
    same = ladderize.compile(model(ladder={"blocks": [2, 3]}), layers="last:50%", **EAGER)
    same(IDS)
    assert stale(ladderize.last_report()) == [2, 3]


# ---- the verbs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("ladder")
    model().save_pretrained(found)
    return f"hf:{found}"


def run(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_verbs_read_it(folder, tmp_path):
    out, sharded = tmp_path / "ladder.pt2", tmp_path / "ladder"
    with traced_once():
        explained = json.loads(run("explain", folder, "--json").stdout)
        assert ["config.json", "blocks 1, 3, staleness 1"] in explained["options"]
        assert run("rewrite", folder, "--out", out).exit_code == 0
        assert stale(ladderize.last_report()) == CHOSEN
        done = run("verify", folder, out)
        assert done.exit_code == 0, done.output
        assert run("rewrite", folder, "--out", sharded, "--tp", 2).exit_code == 0
    assert json.loads((sharded / "manifest.json").read_text())["options"]["blocks"] == "[1, 3]"


@pytest.mark.parametrize(
    "verb",
    [
        ("explain",),
        ("rewrite", "--dry-run"),
        ("rewrite", "--stop-after", "RerouteReads"),
        ("verify", "ladder.pt2"),
        ("plan",),
        ("plot", "--out", "plot.html"),
        ("bench",),
    ],
)
def test_every_verb_refuses_another_ladder(verb, folder):
    name, *rest = verb
    done = run(name, folder, *rest, "--staleness", "2")
    assert done.exit_code == 1
    assert "staleness=2, and config.json has blocks 1, 3, staleness 1" in done.stderr


# ---- the paper's own models


def published_ladder(net, ids, ladder_layers):
    """Logits as the published LlamaLadderForCausalLM defines them.

    In its ladder layers, attention reads the stream after the previous layer's attention, and the
    MLP reads the stream after the previous layer. Before the first layer, both are the embedding.
    """
    x = behind_attention = net.model.embed_tokens(ids)
    rotary = net.model.rotary_emb(x, torch.arange(ids.shape[1])[None])
    for index, layer in enumerate(net.model.layers):
        is_ladder = index in ladder_layers
        read = layer.input_layernorm(behind_attention if is_ladder else x)
        mixed = layer.self_attn(read, position_embeddings=rotary, attention_mask=None)[0]
        behind_attention = x + mixed
        mlp = layer.mlp(layer.post_attention_layernorm(x if is_ladder else behind_attention))
        x = behind_attention + mlp
    return net.lm_head(net.model.norm(x))


@pytest.mark.parametrize(("said", "layers"), [([0, 2], [0, 2]), (2, [2, 3])])
def test_the_papers_own_models(said, layers, tmp_path):
    """Weights with Llama's names, and a `model_type` that transformers does not know."""
    tiny_llama(4).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    told = {"model_type": "llamaLadder", "architectures": ["LlamaLadderForCausalLM"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | told | {"ladder_layers": said}))
    net = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    expected = published_ladder(net, IDS, layers)
    ladderize.compile(net, **EAGER)
    with torch.no_grad():
        torch.testing.assert_close(net(IDS).logits, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, published_ladder(net, IDS, []), atol=1e-2)
    explained = json.loads(run("explain", f"hf:{tmp_path}", "--json").stdout)
    assert dict(explained["options"])["config.json"].startswith("layers")
    net.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert own_entry(again).fill({}) == LadderEntry.read({"ladder_layers": said}).fill({})
