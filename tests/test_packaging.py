"""What users install: wheel and sdist hold each file of the package, once."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

STAGES = ("train", "quantize", "export", "firmware", "bench")
NOT_SHIPPED = ("__pycache__", ".mypy_cache", ".ruff_cache")
METADATA = ("LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")


def files_below(directory: Path) -> set[Path]:
    return {
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.is_file() and not set(path.parts) & set(NOT_SHIPPED)
    }


def own_files(root: Path) -> set[Path]:
    """The files of edgekiln/ itself, without what the five links lead to."""
    return {path for path in files_below(root / "edgekiln") if path.parts[0] not in STAGES}


def test_stages_are_links_to_the_folders_at_the_top(root: Path) -> None:
    for stage in STAGES:
        link = root / "edgekiln" / stage
        assert link.is_symlink()
        assert link.readlink() == Path("..") / stage


@pytest.mark.slow
def test_wheel_holds_each_file_of_the_tree_once(root: Path, distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packaged = sorted(name for name in names if ".dist-info/" not in name)
    wanted = {Path("edgekiln") / path for path in own_files(root)}
    for stage in STAGES:
        wanted |= {Path("edgekiln") / stage / path for path in files_below(root / stage)}
    assert packaged == sorted(path.as_posix() for path in wanted)
    described = {name.rpartition("/")[2] for name in names if ".dist-info/" in name}
    assert described == set(METADATA)


@pytest.mark.slow
def test_sdist_holds_each_file_of_the_tree_once(root: Path, distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    assert all(member.isfile() for member in members)
    paths = [Path(*Path(member.name).parts[1:]) for member in members]
    wanted = {Path("edgekiln") / path for path in own_files(root)}
    for stage in STAGES:
        wanted |= {Path(stage) / path for path in files_below(root / stage)}
    extra = {Path("LICENSE"), Path("README.md"), Path("pyproject.toml")}
    extra |= {Path("MANIFEST.in"), Path("PKG-INFO"), Path("setup.cfg")}
    inside = [path for path in paths if path.parts[0] != "edgekiln.egg-info"]
    assert sorted(inside) == sorted(wanted | extra)


def test_stages_are_known_by_one_name_only(tmp_path: Path) -> None:
    """`import train` beside `import edgekiln.train` would make two of every module."""
    program = (
        "import importlib.util, edgekiln.train\n"
        f"print([name for name in {STAGES!r} if importlib.util.find_spec(name)])"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")
