"""A saved ladder has an entry, and is the same ladder when loaded without options."""

import copy
import json

import peft
import pytest
import torch
import transformers
from helpers.eager_ladders import llama_ladder, tiny_llama, tokens
from helpers.language_models import language_model
from torch import nn

import ladderize
from ladderize import LadderError, LadderWarning

HALF = [4, 5, 6, 7]
IDS = tokens()
CARD = "run these weights as a standard network"


def call(model):
    with torch.no_grad():
        return model(IDS).logits


def compiled(**options):
    return ladderize.compile(tiny_llama(), lowering="eager", **options)


def entry_in(folder):
    return json.loads((folder / "config.json").read_text()).get("ladder")


def saved(model, folder, **how):
    model.save_pretrained(folder, **how)
    return entry_in(folder)


def entry(staleness=1, **selection):
    return {**selection, "staleness": staleness, "version": 1}


def test_a_saved_ladder_is_the_same_without_options(tmp_path):
    """Before the first call, the given options; afterwards, the converted blocks."""
    model = compiled(blocks="last:50%", staleness=2)
    assert saved(model, tmp_path) == entry(2, blocks="last:50%")
    found = call(model)
    assert saved(model, tmp_path) == entry(2, blocks=HALF)
    assert not hasattr(model.config, "ladder")
    assert CARD in (tmp_path / "README.md").read_text()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ladderize.compile(again, lowering="eager")
    assert torch.equal(call(again), found)
    torch.testing.assert_close(found, llama_ladder(again, IDS, HALF, 2), rtol=0, atol=1e-6)
    assert saved(again, tmp_path / "again") == entry(2, blocks=HALF)
    assert again.config.ladder == entry(2, blocks=HALF)


def test_our_own_note_is_in_nobodys_way(tmp_path):
    model = compiled(blocks=[1])
    call(model)
    saved(model, tmp_path)
    ladderize.compile(model, lowering="eager", staleness=2)
    assert saved(model, tmp_path) == entry(2, layers="all")
    call(model)
    assert saved(model, tmp_path) == entry(2, blocks=[*range(8)])


def test_standard_models_say_nothing(tmp_path):
    model = compiled()
    call(model)
    others = {
        "copy": copy.deepcopy(model),
        "restored": ladderize.restore(model),
        "standard": compiled(staleness=0),
        "fallen back": compiled(strict=False, expect_blocks=7),
    }
    call(others["standard"])
    with pytest.warns(LadderWarning, match="The standard graph is compiled"):
        call(others["fallen back"])
    for name, other in others.items():
        assert saved(other, tmp_path / name) is None, name
        assert not (tmp_path / name / "README.md").exists()
        with pytest.raises(LadderError, match="is not a ladder"):
            ladderize.save_pretrained(other, tmp_path / name)


def test_what_torch_compile_returned(tmp_path):
    model = tiny_llama()
    options = {"lowering": "eager", "layers": "last:50%"}
    wrapper = torch.compile(model, backend="ladderize", options=options)
    with pytest.raises(LadderError, match="is not a ladder"):
        ladderize.save_pretrained(wrapper, tmp_path)
    call(wrapper)
    ladderize.save_pretrained(wrapper, tmp_path)
    assert entry_in(tmp_path) == entry(blocks=HALF)


def test_an_encoder_by_itself_has_other_blocks(tmp_path):
    """So that of an encoder-decoder model layers are written."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)
    model = transformers.T5ForConditionalGeneration(config).eval()
    ladderize.compile(model, lowering="eager", layers="1:2")
    with torch.no_grad():
        model(input_ids=IDS, decoder_input_ids=IDS)
    assert saved(model, tmp_path) == entry(layers="1:2")


def test_blocks_are_counted_through_all_streams(tmp_path):
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    tower |= {"num_hidden_layers": 2, "image_size": 8, "patch_size": 4, "vocab_size": 64}
    config = transformers.CLIPConfig(text_config=tower, vision_config=tower, projection_dim=8)
    model = transformers.CLIPModel(config).eval()
    inputs = {"input_ids": IDS, "pixel_values": torch.randn(2, 3, 8, 8)}
    ladderize.compile(model, lowering="eager", layers="1:2")
    with torch.no_grad():
        found = model(**inputs).logits_per_image
        assert saved(model, tmp_path) == entry(blocks=[2, 3, 6, 7])
        again = ladderize.compile(
            transformers.CLIPModel.from_pretrained(tmp_path), lowering="eager"
        )
        assert torch.equal(again(**inputs).logits_per_image, found)


def test_adapters_are_merged_first(tmp_path):
    how = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = ladderize.compile(
        peft.get_peft_model(tiny_llama(), how), lowering="eager", blocks="3:4"
    )
    call(model)
    with pytest.raises(LadderError, match="merge adapters first"):
        ladderize.save_pretrained(model, tmp_path)
    assert saved(model.merge_and_unload(), tmp_path) == entry(blocks=[3])


def test_the_card_of_somebody_else_stays(tmp_path):
    model, card = compiled(blocks=[1]), tmp_path / "README.md"
    card.write_text("mine")
    saved(model, tmp_path)
    assert card.read_text() == "mine"
    card.unlink()
    saved(model, tmp_path, is_main_process=False)
    assert not card.exists()
    saved(model, tmp_path)
    saved(ladderize.compile(model, blocks=[2]), tmp_path)
    assert "blocks 2, staleness 1" in card.read_text()


@pytest.mark.parametrize("model", [nn.Linear(2, 2), language_model("llama")])
def test_what_has_nothing_to_say_is_refused(model, tmp_path):
    said = (
        "is not a ladder"
        if hasattr(model, "config")
        else "takes a model of transformers, not a Linear"
    )
    with pytest.raises(LadderError, match=said):
        ladderize.save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())
