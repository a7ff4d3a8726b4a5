"""`transformers serve` over HTTP: tokens of the ladder and of the standard model, and errors."""

import json
import re
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
from transformers_serve import BATCHES, LADDER, ask, ladder_in_eager_mode, server, write_checkpoint

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "transformers.md"
EAGER = '{"lowering": "eager"}'  # C++ kernels take a minute, and are tested elsewhere


def test_the_example():
    """Continuous batching: answers of the standard model, the ladder, and the eager ladder."""
    command = [sys.executable, "examples/transformers_serve.py", "--options", EAGER]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout in PAGE.read_text()
    found = dict(re.findall(r"^(.*?) +(w\d.*)$", ran.stdout, re.MULTILINE))
    assert found["ladder"] == found["eager ladder"] != found["standard"]


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A checkpoint that says which ladder it is."""
    folder = str(tmp_path_factory.mktemp("half"))
    write_checkpoint(folder, ladder={"layers": "last:1"})
    return folder


def test_a_checkpoint_that_says_that_it_is_a_ladder(half):
    """By `generate`, without continuous batching."""
    with server(LADDER, half, "--ladderize", EAGER) as address:
        found = ask(address, half)
    assert found == ladder_in_eager_mode(half, chosen=(4, 5)) != ladder_in_eager_mode(half)


def test_another_ladder_than_that_of_the_checkpoint_is_refused(half):
    options = json.dumps({"layers": "last:2"})
    with (
        pytest.raises(RuntimeError, match="ask for another ladder than the checkpoint is"),
        server(LADDER, half, "--ladderize", options),
    ):
        pass


def test_requests_that_cannot_be_compiled_get_the_error(half):
    """The first error ends the serving thread; all other requests get the reason."""
    options = '{"lowering": "eager", "expect_blocks": 7}'
    with server(LADDER, half, *BATCHES, "--ladderize", options) as address:
        codes = []
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as caught:
                ask(address, half)
            codes.append(caught.value.code)
        assert codes[1] == 503 and codes[0] >= 500
        assert "7 blocks were expected" in caught.value.read().decode()
