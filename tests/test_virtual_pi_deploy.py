"""The whole deploy to virtual Raspberry Pis, as `make deploy BOARD=rpi HOST=virtual` does it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekiln import cli
from edgekiln.bench.results import Results, read_results
from edgekiln.errors import ToolMissingError
from edgekiln.files import sha256_file
from edgekiln.firmware.linux.facts import find_facts
from edgekiln.firmware.linux.hosts import open_target, parse_target
from edgekiln.firmware.virtual_pi import start_virtual_pi

pytestmark = [pytest.mark.emulator, pytest.mark.slow, pytest.mark.timeout(1200)]

Deploy = Callable[..., tuple[Results, str]]
COMPILERS = {"virtual:armhf": "arm-linux-gnueabihf-gcc"}


@pytest.fixture(autouse=True)
def cache() -> None:
    """Root file systems and wheels take minutes to get: these tests share them with the user."""


@pytest.fixture
def model(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "digits.tflite"
    shutil.copy(root / "tests/golden/digits_cnn_int8.tflite", path)
    return path


@pytest.fixture
def deploy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Deploy:
    """Deploys a model to a host; where the virtual Pi cannot be had skips, or fails in CI."""

    def call(host: str, model: object, *options: str) -> tuple[Results, str]:
        compiler = COMPILERS.get(host, "aarch64-linux-gnu-gcc")
        if shutil.which(compiler) is None:
            _skip(f"{compiler} is not installed")
        build = str(tmp_path / "build")
        code = cli.main(
            ["deploy", "--board", "rpi", "--host", host, "--build-dir", build, str(model), *options]
        )
        out, err = capfd.readouterr()
        if code == ToolMissingError.exit_code and _is_missing(err):
            _skip(err.splitlines()[-1])
        assert code == 0, err
        return read_results(Path(out.strip())), err

    return call


def _is_missing(err: str) -> bool:
    hints = ("is not installed", "needs root", "does not know that", "cannot get the packages")
    return any(words in err.splitlines()[-1] for words in hints)


def _skip(reason: str) -> None:
    in_ci = os.environ.get("CI", "").lower() in ("1", "true")
    (pytest.fail if in_ci else pytest.skip)(reason)


def check(results: Results) -> None:
    """What must hold of any virtual Pi: all bytes equal, and no time that looks like a Pi's."""
    assert results.all_equal and results.accuracy.device_equals_host_bytes
    assert results.emulated and results.latency_us is None and results.cycles is None
    assert results.runtimes[0].format == "C" and results.runtimes[0].error is None
    assert results.runtimes[0].bytes == results.runtimes[0].equal_bytes > 0


def test_a_deploy_to_the_chroot_and_what_follows(
    deploy: Deploy, model: Path, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, said = deploy("virtual:chroot", model)
    check(first)
    names = {run.name.split(" ")[0] for run in first.runtimes}
    assert names >= {"generated", "LiteRT"}
    with open_target(parse_target("virtual:chroot"), tmp_path / "build/virtual-pi") as connection:
        facts = find_facts(connection)
    assert facts.is_emulated and facts.architecture == "aarch64"
    if "goes on without" not in said:
        by_name = {run.name: run for run in first.runtimes}
        reference = by_name["LiteRT (BUILTIN_REF)"]
        assert reference.error is None and reference.samples == first.accuracy.samples
    report = tmp_path / "build/digits/rpi/report.html"
    assert "LiteRT" in report.read_text(encoding="utf-8")

    again, said = deploy("virtual:chroot", model)
    assert again == first, "measured once"
    assert "is current already; nothing was sent" in said
    assert ": done in" not in said and "installed" not in said

    shutil.copy(root / "tests/golden/digits_mlp_int8.tflite", model)
    second, said = deploy("virtual:chroot", model, "--no-runtimes")
    check(second)
    assert second.model_sha256 != first.model_sha256

    board = ["deploy", "--board", "rpi", "--host", "virtual:chroot", str(model)]
    board += ["--build-dir", str(tmp_path / "build")]
    assert cli.main([*board, "--list", "--json"]) == 0
    new, old = json.loads(capfd.readouterr().out)["virtual:chroot"]
    assert new["is_current"] and new["is_whole"] and old["is_whole"]
    assert cli.main([*board, "--rollback", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["virtual:chroot"]["id"] == old["id"]


def test_a_pi_5_gets_dot_products(deploy: Deploy, model: Path, tmp_path: Path) -> None:
    results, _ = deploy("virtual:pi5", model, "--no-runtimes")
    check(results)
    report = json.loads(
        (tmp_path / "build/digits/rpi/aarch64-dotprod/c/compile_report.json").read_text()
    )
    assert report["target"] == "aarch64-dotprod"
    assert "-march=armv8.2-a+dotprod" in results.flags


def test_a_32_bit_pi_gets_plain_c(deploy: Deploy, model: Path) -> None:
    results, said = deploy("virtual:armhf", model, "--no-runtimes")
    check(results)
    assert "armv7l" in said and "-mcpu=cortex-a7" in results.flags


def test_two_at_once(deploy: Deploy, model: Path, tmp_path: Path) -> None:
    deploy("virtual:chroot", model, "--no-runtimes")  # or skip
    build = str(tmp_path / "build")
    hosts = ["--host", "virtual:chroot", "--host", "virtual:pi5"]
    command = ["deploy", "--board", "rpi", *hosts, "--no-runtimes", "--build-dir", build]
    assert cli.main([*command, str(model)]) == 0
    for host in ("virtual+chroot", "virtual+pi5"):
        check(read_results(tmp_path / "build/digits/rpi/hosts" / host / "results.json"))


def test_a_power_cut_in_the_middle_leaves_what_ran_before(
    deploy: Deploy, model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy("virtual:chroot", model, "--no-runtimes")  # or skip
    disk = tmp_path / "build/virtual-pi/virtual+chroot"
    releases = disk / "disk/files/home/pi/edgekiln/digits/releases"
    build = ["--build-dir", str(tmp_path / "build"), "--no-runtimes"]
    shutil.copy(root / "tests/golden/digits_mlp_int8.tflite", model)
    with start_virtual_pi("arm64", "chroot", disk=disk) as pi:
        monkeypatch.setenv("EDGEKILN_SSH_CONFIG", str(pi.ssh_config))
        board = ["deploy", "--board", "rpi", "--host", pi.alias, *build, str(model)]
        arguments = [sys.executable, "-m", "edgekiln", *board]
        answers = [*pi.ssh_command(), "edgekiln/digits/current/edgekiln-run --version"]
        before = subprocess.run(answers, check=True, capture_output=True, timeout=60).stdout
        for sign in (".incoming-*", ".incoming-*/manifest.sha256"):
            with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as deploying:
                while not list(releases.glob(sign)) and deploying.poll() is None:
                    time.sleep(0.01)
                pi.cut_power()
                assert deploying.stderr is not None
                said = deploying.stderr.read()
            assert deploying.returncode == 3, said
            assert said.splitlines()[-1].startswith("edgekiln: error: edgekiln-virtual-pi: ")
            pi.power_on()
            after = subprocess.run(answers, check=True, capture_output=True, timeout=60).stdout
            assert after == before
        assert cli.main(board) == 0
        after = subprocess.run(answers, check=True, capture_output=True, timeout=60).stdout
        assert json.loads(after)["model_sha256"] == sha256_file(model)
        assert not list(releases.glob(".*"))


def test_an_emulated_raspberry_pi_3(deploy: Deploy, model: Path) -> None:
    # Its network is one over USB: the runtimes' 50 MB would take ten minutes.
    results, _ = deploy("virtual:raspi3b", model, "--no-runtimes")
    check(results)
    assert results.system is not None and "Raspberry Pi 3" in results.system.model
