"""Writing OUT: one writer, enough space, and a complete OUT or none."""

import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch
from helpers.parallel_nets import make_ids, make_net

from ladderize import LadderConfig, LadderError
from ladderize.frontends.sharded import directory
from ladderize.frontends.sharded.directory import sole_writer, whole_directory
from ladderize.frontends.sharded.program_files import write_program, write_shards


@pytest.fixture(scope="module")
def program():
    return torch.export.export(make_net(layers=1), (make_ids(),), strict=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_place(tmp_path):
    out, other = tmp_path / "out", tmp_path / "out-2"
    with (
        sole_writer(out, 0),
        whole_directory(other, 0) as folder,
        pytest.raises(LadderError, match="out is being written by another process"),
        sole_writer(out, 0),
    ):
        folder.joinpath("a").touch()
    assert names(tmp_path) == ["out-2"]


def test_what_a_killed_writer_has_left_is_cleared(tmp_path):
    code = (
        "import pathlib, signal, os; from ladderize.frontends.sharded import directory\n"
        "with directory.whole_directory(pathlib.Path('out'), 0) as folder:\n"
        "    (folder / 'half').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert len(names(tmp_path)) == 2  # the lock and the folder
    with whole_directory(tmp_path / "out", 0) as folder:
        (folder / "whole").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["whole"]


def test_what_was_there_comes_back_if_its_writer_was_killed_in_between(tmp_path):
    (tmp_path / ".out.ladderize-0-old").mkdir()
    with pytest.raises(KeyError), whole_directory(tmp_path / "out", 0):
        raise KeyError
    assert names(tmp_path) == ["out"]


def test_a_full_disk(program, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda _: usage(9, 9, 1000))
    for write in (
        lambda: write_shards(program, tmp_path / "out", 2),
        lambda: write_program(program, tmp_path / "out.pt2", LadderConfig()),
    ):
        with pytest.raises(LadderError, match=r"cannot be written: it takes \d+ MiB, and 0 MiB"):
            write()
    assert names(tmp_path) == []


def test_a_place_that_nobody_can_write(program, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(directory.tempfile, "mkdtemp", refuse)
    with pytest.raises(LadderError, match=r"out cannot be written: Permission denied\."):
        write_shards(program, tmp_path / "out", 2)
    assert names(tmp_path) == []


def test_sigterm_leaves_nothing(tmp_path):
    code = (
        "import pathlib, time, sys; from unittest.mock import patch\n"
        "from ladderize.tools.cli import rewriting\n"
        "from ladderize.frontends.sharded.directory import sole_writer\n"
        "def slow(*_):\n"
        "    with sole_writer(pathlib.Path('out.pt2'), 0):\n"
        "        print('writing', flush=True); time.sleep(60)\n"
        "with patch.object(rewriting, 'open_model', slow):\n"
        "    rewriting.rewrite_model('x', None, pathlib.Path('out.pt2'), None, {})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout.readline() == "writing\n"
        time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.splitlines()[-1] == "ladderize rewrite: stopped by SIGTERM; nothing was written"
    assert names(tmp_path) == []
