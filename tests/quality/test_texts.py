"""Text files become token sequences; all their faults are reported together."""

import re

import pytest
import torch
from helpers.language_models import language_model
from helpers.word_tokenizers import word_tokenizer, write_lines

from ladderize import LadderError
from ladderize.quality import read_tokens


def test_documents_end_with_eos_and_are_cut(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.jsonl"
    first.write_text("w2 w3\nw4")
    write_lines(second, ["w5", "w6 strange w8 w9 w10"])
    tokens = read_tokens([first, str(second)], word_tokenizer(), 3)
    assert tokens.dtype is torch.int64
    assert tokens.tolist() == [[2, 3, 4], [0, 5, 0], [6, 1, 8], [9, 10, 0]]
    assert read_tokens(first, word_tokenizer(), 3).tolist() == [[2, 3, 4]]


def test_everything_wrong_is_listed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "state.json").write_text("{}")
    (tmp_path / "latin.txt").write_bytes("w2 w\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "rows.jsonl").write_text('{"text": "w2"}\n\n{"words": "w3"}\n')
    (tmp_path / "cut.jsonl").write_text('{"text": "w2"}\n{"text": "w')
    names = "missing.txt latin.txt empty.txt rows.jsonl cut.jsonl folder set".split()
    with pytest.raises(LadderError) as caught:
        read_tokens([tmp_path / name for name in names], word_tokenizer(), 3)
    said = [str(blocker).removeprefix(f"{tmp_path}/") for blocker in caught.value.blockers]
    assert said[:4] == [
        "missing.txt: no such file",
        "latin.txt is not UTF-8 from byte 4 on",
        "empty.txt holds no text",
        'rows.jsonl:3 has no "text"',
    ]
    assert said[4].startswith("cut.jsonl:2 is not JSON: ")
    assert said[5] == "folder is a folder that datasets.save_to_disk did not write"
    assert re.match("set (needs the package datasets|cannot be read)", said[6])


def test_a_text_shorter_than_a_batch(tmp_path):
    (tmp_path / "a.txt").write_text("w2 w3 w4 w5")
    assert read_tokens(tmp_path / "a.txt", word_tokenizer(), 5).tolist() == [[2, 3, 4, 5, 0]]
    with pytest.raises(
        LadderError, match=r"too short: 5 tokens in .* 6 are needed for 1 sequence of 6"
    ):
        read_tokens(tmp_path / "a.txt", word_tokenizer(), 6)
    with pytest.raises(
        LadderError, match=r"too short: 5 tokens in .* 10 are needed .* 2 sequences"
    ):
        read_tokens(tmp_path / "a.txt", word_tokenizer(), 5, at_least=2)
    with pytest.raises(LadderError, match="no file was named"):
        read_tokens([], word_tokenizer(), 6)


def test_what_does_not_fit_the_model(tmp_path):
    (tmp_path / "a.txt").write_text("w2 w3 w4 w5 " * 20)
    model = language_model("llama")
    assert read_tokens(tmp_path / "a.txt", word_tokenizer(), 64, model=model).shape == (1, 64)
    with pytest.raises(LadderError, match="tokens go up to 64, but the embedding has 64 rows"):
        read_tokens(tmp_path / "a.txt", word_tokenizer(extra=1), 8, model=model)
    with pytest.raises(LadderError, match="has 64 positions, too few for sequences of 65 tokens"):
        read_tokens(tmp_path / "a.txt", word_tokenizer(), 65, model=model)
