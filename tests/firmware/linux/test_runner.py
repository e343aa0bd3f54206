"""What runs on the board, run here: the C program, the runner around it, the server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekiln.errors import BadInputError
from edgekiln.firmware.linux.releases import deploy_release
from edgekiln.firmware.linux.runner.assemble import assemble_release
from edgekiln.firmware.linux.runner.example_client import UnixConnection, classify
from edgekiln.firmware.linux.runner.program import build_program
from edgekiln.firmware.linux.ssh import Connection
from edgekiln.quantize.affine import quantize_array

NAMES = [f"digit {i}" for i in range(10)]

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="programs are built for x86_64 here"
)


@pytest.fixture(scope="session")
def installed(
    digits_bundle: Callable[[str, str], Path], root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The files of a release of digits_cnn for this machine."""
    directory = tmp_path_factory.mktemp("runner")
    program = build_program(digits_bundle("cnn", "generic"), "x86_64", directory / "program")
    tflite = (root / "tests/golden/digits_cnn_int8.tflite").read_bytes()
    assemble_release(program, directory / "release", class_names=NAMES, tflite=tflite)
    return directory / "release"


@pytest.fixture(scope="session")
def digits(root: Path) -> np.ndarray[Any, np.dtype[np.int8]]:
    codes: np.ndarray[Any, np.dtype[np.int8]] = np.load(root / "tests/golden/digits_inputs.npz")[
        "inputs"
    ]
    return codes


def run(installed: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", str(installed / "edgekiln-run"), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_the_golden_pair_is_right(installed: Path) -> None:
    for program in ("edgekiln-model", "edgekiln-run"):
        done = subprocess.run([installed / program, "--selftest"], capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == b"digits_cnn: passed, 0 bytes differ\n"


def test_a_wrong_byte_fails_the_self_test(write_toy: Callable[..., Path], tmp_path: Path) -> None:
    right = "void toy_invoke(int8_t *a) { a[8] = 5; a[9] = 6; }"
    for code, returncode in ((right, 0), (right.replace("6;", "7;"), 1)):
        program = build_program(write_toy(code), "x86_64", tmp_path / "toy-program")
        assert subprocess.run([program.path, "--selftest"], timeout=60).returncode == returncode


def test_bytes_are_those_of_the_generated_code(
    installed: Path, digits: Any, digits_bundle: Callable[[str, str], Path]
) -> None:
    from edgekiln.bench.compiled import CompiledRunner

    (expected,) = CompiledRunner(digits_bundle("cnn", "generic")).run((digits,))
    done = subprocess.run(
        [installed / "edgekiln-model", "--stream"],
        input=digits.tobytes(),
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == expected.tobytes()


def split(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Takes apart what ``--measure`` prints: outputs, and a line of JSON."""
    raw, _, line = data.rstrip(b"\n").rpartition(b"\n")
    return raw, json.loads(line)


def test_measuring_answers_all_inputs_and_times_them(
    installed: Path, digits: Any, digits_bundle: Callable[[str, str], Path]
) -> None:
    from edgekiln.bench.compiled import CompiledRunner

    done = subprocess.run(
        [installed / "edgekiln-model", "--measure", "2", "33", "60"],
        input=digits.tobytes(),
        capture_output=True,
        timeout=60,
    )
    (expected,) = CompiledRunner(digits_bundle("cnn", "generic")).run((digits,))
    raw, about = split(done.stdout)
    assert (done.returncode, done.stderr, raw) == (0, b"", expected.tobytes())
    assert len(about["times_ns"]) == 33 and all(time > 0 for time in about["times_ns"])
    assert 2048 < about["peak_memory_kib"] * 1024 < 100 << 20


def test_measuring_ends_when_its_time_is_over(
    write_toy: Callable[..., Path], tmp_path: Path
) -> None:
    code = (
        "void toy_invoke(int8_t *a) { for (volatile int i = 0; i < 20000000; i++) { a[8] = 1; } }"
    )
    program = build_program(write_toy(code), "x86_64", tmp_path / "toy-program")
    command = [program.path, "--measure", "1", "1000000", "1"]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=120)
    assert 20 <= len(split(done.stdout)[1]["times_ns"]) < 1000


def test_a_model_that_remembers_forgets_before_each_measured_input(
    write_toy: Callable[..., Path], tmp_path: Path
) -> None:
    code = """
void toy_reset(toy_state *s) { s->bytes[0] = 1; }
void toy_invoke(int8_t *a, toy_state *s) { a[8] = (int8_t)s->bytes[0]++; a[9] = a[0]; }
"""
    program = build_program(write_toy(code, state_bytes=4), "x86_64", tmp_path / "toy-program")
    command = [program.path, "--measure", "3", "3", "1"]
    data = bytes([5, 0, 0, 0, 6, 0, 0, 0])
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert split(done.stdout)[0] == bytes([1, 5, 1, 6])


def test_measuring_refuses_what_is_no_input(installed: Path) -> None:
    command = [installed / "edgekiln-model", "--measure", "1", "1", "1"]
    done = subprocess.run(command, input=b"12", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize(
    "arguments", ["", "1 1", "0 1 1", "1 0 1", "1 1 x", "-1 1 1", "1 1 1 1", "1 1 9999999999"]
)
def test_measuring_takes_three_numbers(installed: Path, arguments: str) -> None:
    command = [installed / "edgekiln-model", "--measure", *arguments.split()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")


def test_sizes_of_a_program_leave_the_c_library_out(
    digits_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program = build_program(digits_bundle("cnn", "generic"), "x86_64", tmp_path / "program")
    image = program.as_image("rpi")
    assert image.flash_constants_bytes >= program.bundle.constants_bytes
    assert 0 < image.flash_app_bytes < image.flash_code_bytes < image.flash_bytes < program.bytes
    assert image.ram_bytes(0) == image.arena_bytes + image.data_bytes + image.bss_bytes
    assert (image.board, image.elf, image.bin) == ("rpi", program.path, None)


def test_all_formats_lead_to_the_same_classes(installed: Path, digits: Any) -> None:
    real = (digits.astype(np.float32) + 128) / 255
    csv = "\n".join(",".join(f"{value:.9g}" for value in row.ravel()) for row in real).encode()
    codes = "\n".join(" ".join(map(str, row.ravel())) for row in digits).encode()
    outputs = [
        run(installed, "--json", "--top", "3", *options, stdin=data)
        for options, data in (
            (("--format", "raw"), digits.tobytes()),
            ((), npy(digits)),
            ((), npy(real)),
            ((), npy(real.astype(np.float64))),
            (("--format", "csv"), csv),
            (("--format", "csv", "--codes"), codes),
        )
    ]
    assert [done.returncode for done in outputs] == [0] * 6, outputs
    assert len({done.stdout for done in outputs}) == 1
    lines = [json.loads(line) for line in outputs[0].stdout.splitlines()]
    assert [line["input"] for line in lines] == list(range(len(digits)))
    assert all(c["name"] == NAMES[c["class"]] for line in lines for c in line["classes"])
    plain = subprocess.run(
        [installed / "edgekiln-model", "--json", "--top", "3"],
        input=digits.tobytes(),
        capture_output=True,
        timeout=60,
    )
    found = [json.loads(line)["classes"] for line in plain.stdout.splitlines()]
    assert [[c["class"] for c in classes] for classes in found] == [
        [c["class"] for c in line["classes"]] for line in lines
    ]


def test_values_are_quantized_as_on_the_host() -> None:
    from edgekiln.firmware.linux.runner.edgekiln_run import to_codes

    random = np.random.default_rng(1)
    values = np.concatenate([random.normal(0, 40, 4000), [0.5, -0.5, 1e39, -1e39, 1e-45]])
    for dtype, scale, zero in (("int8", 0.1, -5), ("uint8", 0.25, 128), ("int16", 0.001, 0)):
        tensor = {"dtype": dtype, "scale": float(np.float32(scale)), "zero_point": zero}
        with np.errstate(over="ignore"):
            wanted = quantize_array(values, float(np.float32(scale)), zero, dtype)
        assert to_codes(list(values), tensor, False) == wanted.tobytes()


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), b"", "not a whole number of inputs"),
        ((), b"123", "not a whole number of inputs"),
        (("--format", "csv"), b"1,x", "not a text of numbers"),
        (("--format", "npy"), b"\x93NUMPY\1\0\xff\xff", "not a .npy file"),
        (("--format", "npy"), b"\x93NUMPY\1\0\2\0()", "not a .npy file"),
        (("--format", "csv"), b"nan " * 64, "not a number"),
        (("--format", "csv", "--codes"), b"128 " * 64, "not all values are codes"),
        (("--format", "csv", "--codes"), b"1.5 " * 64, "not all values are codes"),
        (("/no/such/file",), b"", "No such file"),
        (("--top", "0"), b"", "top must be"),
        (("--serve", "0.0.0.0:80"), b"", "no other network"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    installed: Path, arguments: tuple[str, ...], stdin: bytes, message: str
) -> None:
    done = run(installed, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("edgekiln-run: ") and message in line


def test_the_c_program_does_not_take_a_npy_file_for_codes(
    installed: Path, digits: Any, tmp_path: Path
) -> None:
    (tmp_path / "x.npy").write_bytes(npy(digits[:3]))
    assert (tmp_path / "x.npy").stat().st_size % digits[0].nbytes == 0
    command = [installed / "edgekiln-model", tmp_path / "x.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"edgekiln-model: {tmp_path}/x.npy: a .npy file, not raw codes; edgekiln-run reads it\n"
    )


def test_a_reader_that_has_seen_enough_is_no_error(installed: Path, digits: Any) -> None:
    command = f"'{sys.executable}' -I '{installed}/edgekiln-run' | head -n 1"
    data = digits.tobytes() * 2000  # more lines than a pipe holds
    done = subprocess.run(["sh", "-c", command], input=data, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"- 0: ")


def test_asking_for_health_is_no_input_of_a_model_that_remembers(
    write_toy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
void toy_reset(toy_state *s) { s->bytes[0] = 1; }
void toy_invoke(int8_t *a, toy_state *s) { a[8] = 5; a[9] = (int8_t)(5 + s->bytes[0]++); }
"""
    program = build_program(write_toy(code, state_bytes=4), "x86_64", tmp_path / "program")
    release = tmp_path / "release"
    assemble_release(program, release)
    command = [sys.executable, "-I", str(release / "edgekiln-run"), "--serve", "unix:s"]
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert process.stderr and process.stderr.readline()
        scores = []
        for _ in range(3):
            assert get(Path("s"), "GET", "/health")[0] == 200
            _, text = get(Path("s"), "POST", "/classify", bytes(4))
            (best,) = json.loads(text)["results"][0]["classes"]
            scores.append(best["score"])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert scores == [3.5, 4.0, 4.5]


def test_systemd_is_told_when_requests_are_answered(installed: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        with contextlib.chdir(tmp_path):
            notified.bind("n")
        notified.settimeout(60)
        command = [sys.executable, "-I", str(installed / "edgekiln-run"), "--serve", "unix:s"]
        environment = {**os.environ, "NOTIFY_SOCKET": "n"}
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
        ) as process:
            assert notified.recv(100) == b"READY=1"
            assert (tmp_path / "s").is_socket()
            process.send_signal(signal.SIGINT)
            process.wait(30)


def test_names_of_files_are_only_names(installed: Path, digits: Any, tmp_path: Path) -> None:
    names = ["a b.npy", "$(touch pwned).npy", "; touch pwned.npy", "it's.npy"]
    for name in names:
        (tmp_path / name).write_bytes(npy(digits[:1]))
    done = run(installed, *(str(tmp_path / name) for name in names))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.fixture
def server_process(installed: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server on a Unix socket in the test's directory."""
    command = [sys.executable, "-I", str(installed / "edgekiln-run"), "--serve", "unix:s"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert process.stderr.readline() == b"serving digits_cnn on unix:s\n"
        yield process
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.fixture
def socket_path(
    server_process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The server's socket, by a relative name: that is short wherever the tests lie."""
    monkeypatch.chdir(tmp_path)
    return Path("s")


def get(path: Path, method: str, url: str, body: bytes = b"") -> tuple[int, str]:
    connection = UnixConnection(str(path))
    connection.request(method, url, body or None)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_server_answers(socket_path: Path, digits: Any) -> None:
    assert socket_path.stat().st_mode & 0o077 == 0
    results = classify(str(socket_path), npy(digits), top=2)
    assert [len(result["classes"]) for result in results] == [2] * len(digits)
    status, text = get(socket_path, "GET", "/health")
    assert (status, json.loads(text)) == (200, {"status": "ok", "model": "digits_cnn"})
    status, text = get(socket_path, "GET", "/version")
    assert json.loads(text)["runtime"] == "generated C"
    for method, url, body, wanted in (
        ("GET", "/nothing", b"", 404),
        ("POST", "/nothing", b"x", 404),
        ("POST", "/classify", b"x", 400),
        ("POST", "/classify?top=x", bytes(64), 400),
        ("POST", "/classify", bytes(64), 200),
    ):
        assert get(socket_path, method, url, body)[0] == wanted, url
    status, text = get(socket_path, "GET", "/metrics")
    metrics = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    assert metrics["edgekiln_inferences_total"] == str(len(digits) + 1)
    assert metrics["edgekiln_requests_total"] == "8"
    assert metrics["edgekiln_errors_total"] == "4"


def test_the_example_client_explains_itself(
    installed: Path, socket_path: Path, digits: Any, tmp_path: Path
) -> None:
    (tmp_path / "digits.npy").write_bytes(npy(digits[:2]))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")

    def ask(*arguments: str) -> tuple[int, int, str]:
        command = [sys.executable, "-I", str(installed / "example_client.py"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, len(done.stdout.splitlines()), done.stderr

    assert ask("s", "digits.npy") == (0, 2, "")
    assert ask("s", "bad.npy") == (1, 0, "example_client: not a .npy file, or a damaged one\n")
    assert ask("none", "digits.npy")[2].startswith("example_client: [Errno 2] No such file")
    assert ask("s", "none.npy")[2].startswith("example_client: [Errno 2] No such file")
    assert "Usage: example_client.py SOCKET FILE.npy" in ask()[2]


def test_the_server_goes_on_when_the_program_was_killed(
    socket_path: Path, server_process: subprocess.Popen[bytes]
) -> None:
    assert get(socket_path, "POST", "/classify", bytes(64))[0] == 200
    (child,) = subprocess.run(
        ["pgrep", "-P", str(server_process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(child), signal.SIGKILL)
    # It dies before or after it has been asked.
    assert get(socket_path, "POST", "/classify", bytes(64))[0] in (200, 503)
    assert get(socket_path, "POST", "/classify", bytes(64))[0] == 200


def test_a_release_with_a_model_is_deployed(
    connection: Connection, digits_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    program = build_program(digits_bundle("mlp", "generic"), "x86_64", tmp_path / "program")
    release = assemble_release(program, tmp_path / "release", has_python=False)
    deployed = deploy_release(connection, release, base=str(tmp_path / "base"))
    done = subprocess.run(
        [tmp_path / "base/digits_mlp/current/edgekiln-model", "--selftest"], timeout=60
    )
    assert done.returncode == 0
    assert deploy_release(connection, release, base=str(tmp_path / "base")).sent_bytes == 0
    assert deployed.id == release.id


def test_unknown_architectures_are_named(digits_bundle: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="got armv6l; allowed: aarch64, armv7l, x86_64"):
        build_program(digits_bundle("mlp", "generic"), "armv6l", tmp_path / "program")


@pytest.mark.emulator
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_programs_for_aarch64_give_the_golden_bytes(
    digits_bundle: Callable[[str, str], Path], tmp_path: Path, model: str
) -> None:
    missing = [n for n in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(n) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    program = build_program(digits_bundle(model, "generic"), "aarch64", tmp_path / "program")
    command = ["qemu-aarch64", program.path, "--selftest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"digits_{model}: passed, 0 bytes differ\n")
