"""What is kept of Debian's packages, with a stand-in for mmdebstrap."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.firmware.virtual_pi import rootfs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")

UNPACK = """
echo "I: downloading" >&2
for root; do case $root in /*) break ;; esac; done
mkdir -p "$root/var/cache/apt/archives"
touch "$root/var/cache/apt/archives/hello_1%3a2.10-3_arm64.deb"
echo hello >"$root/greeting"
echo "$@" >>"$RECORD"
"""


@pytest.fixture
def mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program in mmdebstrap's place; returns where it writes its arguments."""

    def install(body: str) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin/mmdebstrap"
        program.write_text(f"#!/bin/sh\n{body}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("RECORD", str(tmp_path / "record"))
        return tmp_path / "record"

    return install


def finish(root: Path) -> None:
    (root / "finished").write_text("yes")


def build(cache: Path) -> rootfs.Root:
    return rootfs.build_packages("arm64", "test", ["hello"], finish, cache)


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


@needs_root
def test_it_is_made_once(mmdebstrap: Callable[[str], Path], tmp_path: Path) -> None:
    record = mmdebstrap(UNPACK)
    first, second = build(tmp_path / "cache"), build(tmp_path / "cache")
    assert first == second
    assert first.packages == {"hello": "1:2.10-3"}
    assert (first.path / "greeting").read_text() == "hello\n"
    assert (first.path / "finished").read_text() == "yes"
    (arguments,) = record.read_text().splitlines()
    assert "--architectures=arm64 --variant=extract --include=hello" in arguments


@needs_root
def test_damage_is_seen(mmdebstrap: Callable[[str], Path], tmp_path: Path) -> None:
    mmdebstrap(UNPACK)
    root = build(tmp_path / "cache")
    assert root.damaged_files() == []
    (root.path / "greeting").write_text("hullo\n")
    (root.path / "finished").unlink()
    (root.path / "new").symlink_to("greeting")
    assert root.damaged_files() == ["finished", "greeting", "new"]


@needs_root
def test_what_fails_leaves_nothing_and_is_one_line(
    mmdebstrap: Callable[[str], Path], tmp_path: Path
) -> None:
    mmdebstrap(UNPACK + "echo 'E: apt-get update failed' >&2; echo 'I: cleaning' >&2; exit 1")
    with pytest.raises(ToolMissingError) as caught:
        build(tmp_path / "cache")
    assert str(caught.value) == (
        "mmdebstrap cannot get the packages for arm64; got E: apt-get update failed; "
        "can apt-get update reach Debian's servers?"
    )
    assert visible(tmp_path / "cache") == []


@needs_root
def test_a_full_disk_is_one_line(mmdebstrap: Callable[[str], Path], tmp_path: Path) -> None:
    mmdebstrap("echo 'tar: write error: No space left on device' >&2; exit 1")
    with pytest.raises(BadInputError, match="no room for a root file system"):
        build(tmp_path / "cache")
    assert visible(tmp_path / "cache") == []


@needs_root
def test_what_a_killed_build_left_is_removed(
    mmdebstrap: Callable[[str], Path], tmp_path: Path
) -> None:
    mmdebstrap(UNPACK)
    root = build(tmp_path / "cache")
    name = root.path.parent.name
    shutil.rmtree(root.path.parent)
    (tmp_path / f"cache/.{name}.abc/root").mkdir(parents=True)
    build(tmp_path / "cache")
    assert visible(tmp_path / "cache") == [name]


def test_without_room_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    with pytest.raises(
        BadInputError, match="got 5 MiB free; allowed: 1024 MiB; set EDGEKILN_CACHE"
    ):
        build(tmp_path / "cache")


def test_without_mmdebstrap_the_line_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs.shutil, "which", lambda name, path="": None)
    with pytest.raises(ToolMissingError, match="install it with: apt-get install mmdebstrap"):
        build(tmp_path / "cache")
    assert visible(tmp_path / "cache") == []


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(BadInputError, match="got mips; allowed: arm64 armhf"):
        rootfs.build_root("mips")  # type: ignore[arg-type]


def test_the_mirrors_and_proxies_are_this_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "indextargets": "Debian bookworm http://mirror.example/debian/\n"
        "Debian bookworm-security http://security.example/debian-security/\n"
        ". nodistro https://other.example/\n",
        "dump": 'Acquire::http::Proxy "http://proxy.example:3142";\nAPT::Architecture "amd64";\n',
    }

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, answers[command[1]], "")

    monkeypatch.setattr(rootfs.subprocess, "run", run)
    monkeypatch.setattr(rootfs.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert rootfs._source() == "deb http://mirror.example/debian/ bookworm main"
    assert rootfs._proxy_options() == ['--aptopt=Acquire::http::Proxy "http://proxy.example:3142";']
