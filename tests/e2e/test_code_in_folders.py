"""Python in a model's folder is not run, and no prompt asks whether to run it."""

import io
import json

import pytest

from ladderize import LadderError
from ladderize.frontends.checkpoints.configurations import read_config
from ladderize.quality.runs.standard_model import load_standard
from ladderize.tools.quality.texts_of_model import tokenizer_of

ITS_CODE = """
from pathlib import Path
Path({ran!r}).touch()
class Config: pass
class Tokenizer: pass
"""


@pytest.mark.parametrize(
    ("read", "others"), [(read_config, ()), (load_standard, (None,)), (tokenizer_of, ())]
)
def test_code_of_a_folder_is_not_run(read, others, tmp_path, monkeypatch, capsys):
    """Even if the user agreed in transformers' prompt."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "its_code.py").write_text(ITS_CODE.format(ran=str(ran)))
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "its_code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"auto_map": {"AutoTokenizer": ["its_code.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(LadderError, match="custom code"):
        read(folder, *others)
    assert not ran.exists()
    assert capsys.readouterr().out == ""
