"""The wheel that users install: what is in it, and that it runs without the checkout.

    checkout ── copy ── pip wheel ── WHEEL ── pip install ── fresh environment ── ladderize explain
                                                             (packages of this one, but ladderize)

Nothing is fetched: setuptools and the packages that ladderize needs are those of this environment.
"""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from ladderize import __version__

pytest.importorskip("setuptools", minversion="77", reason="nothing else builds the wheel")

ROOT = Path(__file__).parents[2]
MAX_BYTES = 1_500_000
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "gpu_first")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, with the variables of this process but the paths of its imports."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(
        command, cwd=cwd, env={**kept, "COLUMNS": "100"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, in which setuptools may leave its files."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=NOT_COPIED)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(*PIP, "wheel", *options, checkout, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_is_small(wheel):
    assert wheel.stat().st_size <= MAX_BYTES


def test_holds_the_package_and_nothing_else(names):
    tops = {name.split("/")[0] for name in names}
    assert tops == {"ladderize", f"ladderize-{__version__}.dist-info"}


def test_holds_every_module_and_every_data_file(names):
    source = ROOT / "ladderize"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert wanted == {name for name in names if name.startswith("ladderize/")}
    assert {
        "ladderize/py.typed",
        "ladderize/tools/plot/page.html.jinja",
        "ladderize/tools/sources/configurations/llama.json",
        "ladderize/config/hardware/links.toml",
    } <= wanted


def test_entry_points_name_modules_of_the_wheel(wheel, names):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"ladderize-{__version__}.dist-info/entry_points.txt").decode()
    found = configparser.ConfigParser(delimiters="=")
    found.read_string(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"console_scripts": project["scripts"], **project["entry-points"]}
    assert {section: dict(found[section]) for section in found.sections()} == wanted
    for target in (target for points in wanted.values() for target in points.values()):
        module = target.split(":")[0].replace(".", "/")
        assert {f"{module}.py", f"{module}/__init__.py"} & names, target


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of an environment with the wheel, which sees this one's packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-index", "--no-compile")
    run(*PIP, "--python", python, "install", *options, wheel, cwd=folder)
    # Not before: pip would find another ladderize there. Of a folder that is added here no .pth
    # file is read, so the finder of an editable installation stays out.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_runs_where_it_is_installed(installed, tmp_path):
    where = run(
        installed / "python", "-c", "import ladderize; print(ladderize.__file__)", cwd=tmp_path
    )
    assert Path(where).is_relative_to(installed.parent)
    version = run(installed / "ladderize", "--version", cwd=tmp_path)
    assert version.startswith(f"ladderize {__version__}")
    explained = run(installed / "ladderize", "explain", "hf:llama", cwd=tmp_path)
    assert explained.startswith("4 blocks in 1 stream")
