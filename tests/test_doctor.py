"""`edgekiln doctor`: what is there, what is missing, how to get it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from edgekiln import doctor
from edgekiln.errors import ToolMissingError
from edgekiln.firmware.flash.registry import RUNNERS

REQUIRES = [
    "click>=8.1",
    'keras>=3.15; extra == "train"',
    'tflite-micro==7; (sys_platform == "nowhere") and extra == "oracle"',
    'edgekiln[train]; extra == "all"',
    'pytest; extra == "dev"',
]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine with these Python packages, all programs, edgekiln not in a checkout."""
    versions = {"click": "8.2", "keras": "3.15.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRES)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "PROGRAMS", ())
    monkeypatch.setattr(doctor, "FLASH_PROGRAMS", ())
    monkeypatch.setattr(doctor, "_checkout", lambda: None)
    return versions


def states() -> dict[str, str]:
    return {finding.name: finding.state for finding in doctor.examine()}


def add_program(monkeypatch: pytest.MonkeyPatch, directory: Path, body: str) -> doctor.Program:
    program = doctor.Program("toolx", ("toolx-package", "libx"), header="x.h")
    monkeypatch.setattr(doctor, "PROGRAMS", (program,))
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    (directory / "toolx").write_text(f"#!/bin/sh\n{body}\n")
    (directory / "toolx").chmod(0o755)
    return program


def test_all_is_fine(packages: dict[str, str]) -> None:
    assert states() == {
        "python": "ok",
        "click": "ok",
        "keras": "ok",
        "tflite-micro": "not on this platform",
    }
    findings = doctor.examine()
    doctor.check(findings)
    assert doctor.to_json(findings)["ok"] is True
    assert doctor.commands(findings) == []


def test_a_missing_package_and_the_command_that_gets_it(packages: dict[str, str]) -> None:
    del packages["keras"]
    findings = doctor.examine()
    with pytest.raises(
        ToolMissingError, match=r"keras; run: .* -m pip install 'edgekiln\[train\]'"
    ):
        doctor.check(findings)
    assert doctor.to_json(findings)["ok"] is False


def test_a_package_that_is_too_old(packages: dict[str, str]) -> None:
    packages["keras"] = "2.15.0"
    assert states()["keras"] == "wrong version"


def test_the_checkout_has_one_command_for_everything(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.undo()
    packages.clear()
    finding = doctor.Finding("keras", "package", "train", "", "", "missing", "pip install it")
    assert doctor.commands([finding]) == [f"make -C {root} setup"]


def test_programs(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = '[ "$1" != --version ] || echo "toolx (Some 9.9 build) 12.2.1 20221205"'
    add_program(monkeypatch, tmp_path, body)
    finding = doctor.examine()[-1]
    assert (finding.name, finding.version, finding.state) == ("toolx", "12.2.1", "ok")


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ("exit 127", "missing"),
        ('[ "$1" = --version ] && echo toolx 1.2', "without its library"),
    ],
)
def test_a_program_that_is_of_no_use(
    packages: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    body: str,
    state: str,
) -> None:
    add_program(monkeypatch, tmp_path, body)
    findings = doctor.examine()
    assert findings[-1].state == state
    assert "toolx-package libx" in doctor.commands(findings)[0]


def test_a_program_that_is_not_there(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_program(monkeypatch, tmp_path, "exit 0")
    (tmp_path / "toolx").unlink()
    assert states()["toolx"] == "missing"


def test_every_extra_but_the_developers_is_looked_at() -> None:
    extras = importlib.metadata.metadata("edgekiln").get_all("Provides-Extra")
    assert set(extras or ()) - {"all", "dev", "probe"} == set(doctor.EXTRAS)


def test_what_only_some_boards_need_is_shown_and_never_asked_for(
    packages: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    tools = (doctor.Program("toolx", ("toolx-package",)), doctor.Program("tooly", ()))
    monkeypatch.setattr(doctor, "FLASH_PROGRAMS", tools)
    first, second = doctor.examine()[-2:]
    assert (first.name, first.group, first.state) == ("toolx", "flash", "not installed")
    assert "toolx-package" in first.fix and "pip install 'edgekiln[probe]'" in second.fix
    doctor.check([first, second])
    (tmp_path / "toolx").write_text("#!/bin/sh\necho toolx 0.7 >&2\nexit 1\n")
    (tmp_path / "toolx").chmod(0o755)
    (tmp_path / "tooly").write_text("#!/bin/sh\n")
    (tmp_path / "tooly").chmod(0o755)
    first, second = doctor.examine()[-2:]
    assert (first.version, first.state, first.fix) == ("0.7", "ok", "")
    assert (second.version, second.state) == ("unknown", "ok")


def test_the_flash_programs_are_those_of_the_runners() -> None:
    kinds = [kind for kind in RUNNERS.values() if kind.programs]
    wanted = {kind.programs[0]: kind.packages for kind in kinds}
    assert {each.command: each.packages for each in doctor.FLASH_PROGRAMS} == wanted
