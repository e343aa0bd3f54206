from __future__ import annotations

import dataclasses
import ensurepip
import os
import shutil
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.linux.facts import Facts, find_facts, read_facts
from edgekiln.firmware.linux.install import (
    Environment,
    download_command,
    install_environment,
    prepare_environment,
)
from edgekiln.firmware.linux.ssh import Connection

FACTS = "machine aarch64\nbits 64\nglibc 2.19\npython 3.11.2\n"


def write_wheel(directory: Path, name: str = "ektoy") -> None:
    """Writes the wheel of a package with nothing but a number; and pip's, as boards get it."""
    directory.mkdir()
    (pip,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    shutil.copy(pip, directory)
    meta = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "number = 7\n")
        wheel.writestr(f"{meta}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{meta}/WHEEL", tags)
        wheel.writestr(f"{meta}/RECORD", f"{name}.py,,\n{meta}/METADATA,,\n{meta}/WHEEL,,\n")


@pytest.fixture
def facts(connection: Connection) -> Facts:
    found = find_facts(connection)
    if not {"venv", "ensurepip"} <= found.modules:
        pytest.skip("python3 there has no venv")
    return found


def test_environment_is_made_from_wheels_that_are_sent(
    connection: Connection, facts: Facts, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "wheels")
    base = str(tmp_path / "the base")
    made = [
        install_environment(
            connection, ["ektoy==1.0"], facts=facts, wheelhouse=tmp_path / "wheels", base=base
        )
        for _ in range(2)
    ]
    assert [environment.was_there for environment in made] == [False, True]
    command = [made[0].python, "-c", "import ektoy; print(ektoy.number)"]
    assert subprocess.run(command, capture_output=True, timeout=60).stdout == b"7\n"
    (Path(made[0].directory) / ".complete").unlink()
    with pytest.raises(BoardError, match="pip cannot install"):
        (tmp_path / "wheels" / "ektoy-1.0-py3-none-any.whl").unlink()
        install_environment(
            connection, ["ektoy==1.0"], facts=facts, wheelhouse=tmp_path / "wheels", base=base
        )


def test_of_other_environments_the_one_used_last_is_kept(
    connection: Connection, facts: Facts, tmp_path: Path
) -> None:
    base = tmp_path / "base"

    def install(name: str) -> Path:
        wheels = tmp_path / f"wheels of {name}"
        write_wheel(wheels, name)
        made = install_environment(
            connection, [f"{name}==1.0"], facts=facts, wheelhouse=wheels, base=str(base)
        )
        return Path(made.directory)

    first, second = install("one"), install("two")
    for number, path in enumerate((second, first)):
        os.utime(path / ".complete", (number, number))
    unfinished = base / "envs" / "0123"
    (unfinished / "bin").mkdir(parents=True)
    on_the_way = base / "envs" / ".wheels-abc"
    on_the_way.mkdir()
    third = install("three")
    names = {path.name for path in (base / "envs").iterdir()}
    assert names == {first.name, third.name, on_the_way.name, "lock", "busy"}


def test_a_failure_leaves_nothing_of_an_environment(
    connection: Connection, facts: Facts, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "wheels", "one")
    with pytest.raises(BoardError, match="pip cannot install"):
        install_environment(
            connection,
            ["other==1.0"],
            facts=facts,
            wheelhouse=tmp_path / "wheels",
            base=str(tmp_path / "base"),
        )
    assert {path.name for path in (tmp_path / "base" / "envs").iterdir()} == {"lock", "busy"}


def test_without_wheels_here_the_boards_pip_is_asked(
    connection: Connection,
    facts: Facts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BoardError, match=r"pip cannot install: .*no-such-package-xyz==1\.0$"):
        prepare_environment(
            connection,
            ["no-such-package-xyz==1.0"],
            facts=facts,
            base=str(tmp_path / "base"),
            cache=tmp_path / "cache",
        )
    assert "the Python wheels for the board cannot be fetched here" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("wheels-*[0-9a-f]"))


def test_two_deploys_that_want_the_same_environment_make_it_once(
    server: Any, facts: Facts, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "wheels")
    base = tmp_path / "base"

    def install(_: int) -> Environment:
        with server.connect() as own:
            return install_environment(
                own, ["ektoy==1.0"], facts=facts, wheelhouse=tmp_path / "wheels", base=str(base)
            )

    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(install, range(3)))
    assert sorted(environment.was_there for environment in made) == [False, True, True]
    assert not list((base / "envs").glob(".wheels-*"))


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["echo 'Connection reset' >&2; exit 255", "kill -9 $$"])
def test_a_lost_connection_at_any_step_leaves_nothing_that_hinders(
    server: Any,
    facts: Facts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
    record_property: Any,
) -> None:
    wheels, base, path = tmp_path / "wheels", tmp_path / "base", os.environ["PATH"]
    write_wheel(wheels)
    counter, faults = tmp_path / "counter", tmp_path / "faults"
    faults.mkdir()

    def install(number: int = 0) -> str:
        """Harms the n-th call of ssh; returns the error."""
        counter.write_text("")
        (faults / "ssh").write_text(
            f"#!/bin/sh\nprintf x >>{counter}\n"
            f'[ "$(stat -c %s {counter})" != {number} ] || {{ {harm}; }}\n'
            f'exec {shutil.which("ssh", path=path)} "$@"\n'
        )
        (faults / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{faults}:{path}")
        try:
            with server.connect() as own:
                install_environment(
                    own, ["ektoy==1.0"], facts=facts, wheelhouse=wheels, base=str(base)
                )
        except BoardError as error:
            return str(error)
        finally:
            monkeypatch.setenv("PATH", path)
        return ""

    assert not install()
    calls = counter.stat().st_size
    assert calls >= 5, "login, lock, look, wheels, install"
    survived = []
    for number in range(1, calls + 1):
        shutil.rmtree(base)
        error = install(number)
        assert error and not list(base.glob("envs/*/.complete")), number
        assert not install(), error
        (made,) = base.glob("envs/*/bin/python")
        subprocess.run([made, "-c", "import ektoy"], check=True, timeout=60)
        assert not list(base.glob("envs/.wheels-*")), error
        survived.append(f"ssh {number}: {error}")
    record_property("faults", len(survived))
    print(*survived, f"{len(survived)} faults", sep="\n")


@pytest.mark.parametrize(
    "requirement", ["", "-r x", "--index-url=x", "a b", "a;b", "$(id)", "a @ b"]
)
def test_what_is_no_requirement_is_refused(connection: Connection, requirement: str) -> None:
    facts = read_facts(FACTS, "pi")
    with pytest.raises(BadInputError, match="not a requirement"):
        install_environment(connection, [requirement], facts=facts)


def test_wheels_are_fetched_for_the_board_not_for_this_machine(tmp_path: Path) -> None:
    facts = read_facts(FACTS, "pi")
    assert download_command(facts, ["ai-edge-litert==2.3.0"], tmp_path) == [
        *("download", "--only-binary", ":all:", "--dest", str(tmp_path)),
        *("--implementation", "cp", "--python-version", "3.11"),
        *("--platform", "manylinux_2_19_aarch64", "--platform", "manylinux_2_18_aarch64"),
        *("--platform", "manylinux_2_17_aarch64", "--platform", "manylinux2014_aarch64"),
        *("--", "ai-edge-litert==2.3.0"),
    ]
    with pytest.raises(BadInputError, match="no wheels"):
        download_command(dataclasses.replace(facts, glibc=None), [], tmp_path)
