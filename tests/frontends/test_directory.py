"""A manifest has the size and the hash of each file."""

import pytest

from ladderize import LadderError
from ladderize.frontends.sharded.directory import check_files, read_manifest, write_manifest
from ladderize.frontends.sharded.manifest import FileRecord


@pytest.mark.parametrize(
    ("data", "says"), [(b"efgh", "a was changed"), (b"abc", "3 bytes instead of 4")]
)
def test_a_changed_file_is_told(tmp_path, data, says):
    (tmp_path / "a").write_bytes(b"abcd")
    write_manifest(tmp_path, {})
    said = read_manifest(tmp_path)["files"]
    known = {name: FileRecord(**about) for name, about in said.items()}
    check_files(tmp_path, known, ["a"])
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(LadderError, match=says):
        check_files(tmp_path, known, ["a"])
