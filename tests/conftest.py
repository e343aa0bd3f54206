"""What all tests share: the models and data beside the project, markers, hypothesis settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
EMULATOR_PROGRAMS = ("arm-none-eabi-gcc", "qemu-system-arm")

# The data sets lie there too. Nothing is downloaded in a test.
if "EDGEKILN_SHARED" in os.environ:
    os.environ.setdefault("EDGEKILN_DATA", str(Path(os.environ["EDGEKILN_SHARED"]) / "data"))

# A slow machine is no failure; what hypothesis finds must be found again by the next run.
hypothesis.settings.register_profile(
    "edgekiln",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("edgekiln")


def in_ci() -> bool:
    """Tells whether this run must not skip for want of a tool."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("emulator"):
        missing = [name for name in EMULATOR_PROGRAMS if shutil.which(name) is None]
        if missing:
            reason = f"not installed: {', '.join(missing)} (make setup installs them)"
            (pytest.fail if in_ci() else pytest.skip)(reason)
    if item.get_closest_marker("hardware") and "EDGEKILN_HARDWARE" not in os.environ:
        pytest.skip("EDGEKILN_HARDWARE does not name a board")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory with models/ and data/ of public projects, which EDGEKILN_SHARED names."""
    value = os.environ.get("EDGEKILN_SHARED")
    if not value:
        pytest.skip("EDGEKILN_SHARED is not set: it names the directory with models/ and data/")
    path = Path(value)
    if not (path / "models").is_dir():
        pytest.fail(f"EDGEKILN_SHARED={value} has no models/")
    return path


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """The directory with copies of the data sets, which EDGEKILN_DATA names."""
    return Path(os.environ["EDGEKILN_DATA"])


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and with the wheel that is built from that sdist."""
    tree = tmp_path_factory.mktemp("tree") / "edgekiln"
    ignore = shutil.ignore_patterns(".git", ".*cache", ".venv*", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=ignore)
    shutil.rmtree(tree / "build", ignore_errors=True)
    output = tmp_path_factory.mktemp("dist")
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, tree],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return output
