#!/usr/bin/env python3
"""Classifies files or stdin with the model beside it, or serves it. Python 3.9, no packages.

    edgekiln-run photo.npy                  the most likely class of each input in the file
    edgekiln-run --top 3 --json < data.csv  reads stdin, writes JSON
    edgekiln-run --selftest                 runs the golden pair, compares every byte
    edgekiln-run --serve 127.0.0.1:8080     serves on loopback, or on a Unix socket:
    edgekiln-run --serve unix:/run/user/1000/digits.sock

Inputs are .npy files (real values, or codes where the type is the model's own), .csv files (an
input a line, real values; codes with --codes) or raw codes. The server answers

    POST /classify?top=3   with such data as its body; Content-Type says which
    GET /health, /version, /metrics

The model runs in `edgekiln-model`, a C program; with --runtime litert in LiteRT where that is
installed.
"""

from __future__ import annotations

import argparse
import array
import ast
import http.server
import json
import math
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT_BYTES = 64 * 1024 * 1024
_CODES = {"int8": "b", "uint8": "B", "int16": "h", "int32": "i", "uint32": "I", "float32": "f"}
_CODES.update({"int64": "q", "bool": "B"})
_NPY = {"|i1": "b", "|u1": "B", "|b1": "B", "<i2": "h", "<i4": "i", "<i8": "q", "<u4": "I"}
_NPY.update({"<f4": "f", "<f8": "d"})
_TYPES = {
    "application/octet-stream": "raw",
    "application/x-npy": "npy",
    "text/csv": "csv",
}


class InputError(Exception):
    """What was given cannot be used; the message is for people."""


class NotFoundError(InputError):
    """There is nothing at this address."""


class Model:
    """What model.json says of the model."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with open(directory / "model.json", encoding="utf-8") as stream:
            self.about: dict[str, Any] = json.load(stream)
        self.inputs: list[dict[str, Any]] = self.about["inputs"]
        self.outputs: list[dict[str, Any]] = self.about["outputs"]
        self.class_names: list[str] = self.about.get("class_names") or []
        self.input_bytes = sum(tensor["bytes"] for tensor in self.inputs)
        self.output_bytes = sum(tensor["bytes"] for tensor in self.outputs)

    def read(self, data: bytes, kind: str, codes: bool) -> list[bytes]:
        """Returns the inputs in ``data`` as the model's codes, one item for each."""
        if kind == "auto":
            kind = "npy" if data.startswith(b"\x93NUMPY") else "raw"
        raw = data if kind == "raw" else self._convert(data, kind, codes)
        if not raw or len(raw) % self.input_bytes:
            raise InputError(
                f"not a whole number of inputs; an input has {self.input_bytes} bytes of "
                f"{self.inputs[0]['dtype']} and the shape {self.inputs[0]['shape']}"
            )
        size = self.input_bytes
        return [raw[start : start + size] for start in range(0, len(raw), size)]

    def _convert(self, data: bytes, kind: str, codes: bool) -> bytes:
        if len(self.inputs) != 1:
            raise InputError("a model with several inputs takes raw codes only")
        tensor = self.inputs[0]
        if kind == "csv":
            return to_codes(read_csv(data), tensor, codes)
        values, letter = read_npy(data)
        if letter == _CODES[tensor["dtype"]]:
            return values.tobytes()
        return to_codes(values, tensor, codes)

    def classes(self, output: bytes, top: int) -> list[dict[str, Any]]:
        """Returns the classes with the highest scores; of equal ones the lower number first."""
        tensor = self.outputs[0]
        values = array.array(_CODES[tensor["dtype"]])
        values.frombytes(output[: tensor["bytes"]])
        scale, zero = 1.0, 0
        if tensor["scale"] is not None and tensor["dtype"] != "float32":
            scale, zero = tensor["scale"], tensor["zero_point"]
        ranked = sorted(range(len(values)), key=lambda index: (-values[index], index))
        found = []
        for index in ranked[:top]:
            item: dict[str, Any] = {"class": index, "score": (values[index] - zero) * scale}
            if index < len(self.class_names):
                item["name"] = self.class_names[index]
            found.append(item)
        return found


def to_codes(values: Sequence[float], tensor: dict[str, Any], codes: bool) -> bytes:
    """Quantizes real values as the model's own converter does, or packs codes as they are."""
    letter, scale = _CODES[tensor["dtype"]], tensor["scale"]
    if letter == "f":
        return array.array("f", values).tobytes()
    if codes or scale is None:
        try:
            made = array.array(letter, [int(value) for value in values])
            if list(made) != list(values):
                raise ValueError  # there is a fraction
            return made.tobytes()
        except (OverflowError, ValueError):
            raise InputError(f"not all values are codes of type {tensor['dtype']}") from None
    size = array.array(letter).itemsize * 8
    low, high = (0, 2**size - 1) if letter.isupper() else (-(2 ** (size - 1)), 2 ** (size - 1) - 1)
    zero, step = tensor["zero_point"], to_float32(scale)
    made = array.array(letter, bytes(len(values) * size // 8))
    for index, value in enumerate(values):
        if value != value:
            raise InputError("a value is not a number")
        quotient = to_float32(to_float32(value) / step)
        if math.isinf(quotient):
            made[index] = high if quotient > 0 else low
        else:
            steps = math.floor(abs(quotient) + 0.5)
            code = (steps if quotient >= 0 else -steps) + zero
            made[index] = min(max(code, low), high)
    return made.tobytes()


def to_float32(value: float) -> float:
    """Rounds to float32; what is too large becomes infinite."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def read_npy(data: bytes) -> tuple[array.array[Any], str]:
    """Reads a .npy file; returns its values in C order and the letter of their type."""
    try:
        if data[:6] != b"\x93NUMPY" or data[6] not in (1, 2, 3):
            raise ValueError
        start, form = (10, "<H") if data[6] == 1 else (12, "<I")
        (length,) = struct.unpack(form, data[8:start])
        header = ast.literal_eval(data[start : start + length].decode("utf-8"))
        letter, body = _NPY[header["descr"]], data[start + length :]
        values = array.array(letter)
        if header["fortran_order"] and len(header["shape"]) > 1:
            raise InputError("a .npy file in Fortran order; write it with numpy.ascontiguousarray")
        if len(body) != math.prod(header["shape"]) * values.itemsize:
            raise ValueError
        values.frombytes(body)
    except KeyError:
        raise InputError(f"a .npy file must hold one of: {', '.join(sorted(_NPY))}") from None
    except (ValueError, SyntaxError, IndexError, TypeError, struct.error, MemoryError):
        raise InputError("not a .npy file, or a damaged one") from None
    return values, letter


def read_csv(data: bytes) -> list[float]:
    """Reads numbers between commas, semicolons, spaces and line ends."""
    try:
        text = data.decode("utf-8").replace(",", " ").replace(";", " ")
        return [float(word) for word in text.split()]
    except ValueError:
        raise InputError("not a text of numbers") from None


class Program:
    """The C program, kept running; started anew when it has died."""

    name = "generated C"

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, data: bytes) -> bytes:
        """Runs one inference on raw codes; returns the outputs' raw codes."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [str(self._model.directory / "edgekiln-model"), "--stream"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            try:
                assert self._process.stdin and self._process.stdout
                self._process.stdin.write(data)
                self._process.stdin.flush()
                output = self._process.stdout.read(self._model.output_bytes)
            except OSError:
                output = b""
            if len(output) != self._model.output_bytes:
                self._process.kill()
                raise RuntimeError(f"edgekiln-model ended with code {self._process.wait()}")
            return output

    def check(self) -> None:
        """Runs the golden pair, in a process of its own: a model may remember its inputs."""
        command = [str(self._model.directory / "edgekiln-model"), "--selftest"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise RuntimeError(f"the self-test failed with code {done.returncode}")

    def close(self) -> None:
        """Ends what is running."""
        if self._process is not None:
            self._process.communicate()


class LiteRT:
    """LiteRT or its predecessor, on model.tflite."""

    def __init__(self, model: Model) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter

            self.name = "ai-edge-litert"
        except ImportError:
            try:
                from tflite_runtime.interpreter import Interpreter

                self.name = "tflite-runtime"
            except ImportError:
                raise InputError("neither ai-edge-litert nor tflite-runtime is installed") from None
        import numpy

        self._numpy, self._lock = numpy, threading.Lock()
        self._input_bytes = model.input_bytes
        path = model.directory / "model.tflite"
        if not path.is_file():
            raise InputError("this release has no model.tflite")
        self._interpreter = Interpreter(str(path), num_threads=1)
        self._interpreter.allocate_tensors()

    def run(self, data: bytes) -> bytes:
        """Runs one inference on raw codes; returns the outputs' raw codes."""
        at = 0
        with self._lock:
            for entry in self._interpreter.get_input_details():
                count = int(self._numpy.prod(entry["shape"]))
                array_ = self._numpy.frombuffer(data, entry["dtype"], count, at)
                self._interpreter.set_tensor(entry["index"], array_.reshape(entry["shape"]))
                at += array_.nbytes
            self._interpreter.invoke()
            outputs = self._interpreter.get_output_details()
            return b"".join(self._interpreter.get_tensor(o["index"]).tobytes() for o in outputs)

    def check(self) -> None:
        """Runs an inference; raises when it cannot."""
        self.run(bytes(self._input_bytes))

    def close(self) -> None:
        """Ends what is running: nothing."""


class Service:
    """The model, with what is counted while it is served."""

    def __init__(self, model: Model, runtime: Any) -> None:
        self.model = model
        self.runtime = runtime
        self._lock = threading.Lock()
        self._start_s = time.monotonic()
        self._counts: dict[str, float] = {"requests": 0, "inferences": 0, "errors": 0, "seconds": 0}

    def count(self, **counts: float) -> None:
        """Adds to the metrics."""
        with self._lock:
            for name, value in counts.items():
                self._counts[name] += value

    def classify(self, data: bytes, kind: str, codes: bool, top: int) -> list[dict[str, Any]]:
        """Returns the classes of each input in ``data``."""
        results = []
        for number, item in enumerate(self.model.read(data, kind, codes)):
            start_s = time.perf_counter()
            output = self.runtime.run(item)
            self.count(inferences=1, seconds=time.perf_counter() - start_s)
            results.append({"input": number, "classes": self.model.classes(output, top)})
        return results

    def health(self) -> dict[str, Any]:
        """Checks the model; raises when it does not work."""
        self.runtime.check()
        return {"status": "ok", "model": self.model.about["name"]}

    def version(self) -> dict[str, Any]:
        """Says which model this is, and what runs it."""
        about = self.model.about
        return {
            "model": about["name"],
            "model_sha256": about["model_sha256"],
            "edgekiln": about["edgekiln"],
            "release": self.model.directory.name,
            "runtime": self.runtime.name,
        }

    def metrics(self) -> str:
        """Returns the metrics in Prometheus' text format."""
        with self._lock:
            counts = dict(self._counts)
        lines = []
        for name, kind, value in (
            ("requests_total", "counter", counts["requests"]),
            ("errors_total", "counter", counts["errors"]),
            ("inferences_total", "counter", counts["inferences"]),
            ("inference_seconds_total", "counter", counts["seconds"]),
            ("uptime_seconds", "gauge", time.monotonic() - self._start_s),
        ):
            lines += [f"# TYPE edgekiln_{name} {kind}", f"edgekiln_{name} {value:.9g}"]
        return "\n".join(lines) + "\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Any
    timeout = 30
    protocol_version = "HTTP/1.1"
    server_version = "edgekiln-run"

    def do_GET(self) -> None:
        """Answers /health, /version and /metrics."""
        service: Service = self.server.service
        answers: dict[str, Callable[[], Any]] = {
            "/health": service.health,
            "/version": service.version,
            "/metrics": service.metrics,
        }
        self._answer(answers.get(urllib.parse.urlsplit(self.path).path))

    def do_POST(self) -> None:
        """Answers /classify."""
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)

        def classify() -> Any:
            kind = _TYPES.get(
                self.headers.get("Content-Type", "").partition(";")[0].strip(), "auto"
            )
            codes = query.get("codes", ["0"])[0] == "1"
            top = read_top(query.get("top", ["1"])[0])
            return {"results": self.server.service.classify(self._body(), kind, codes, top)}

        def nothing() -> Any:
            self._body()  # a client that is still sending would not read the answer
            raise NotFoundError("not found")

        self._answer(classify if url.path == "/classify" else nothing)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LIMIT_BYTES:
            self.close_connection = True
            raise InputError(f"Content-Length must be there, at most {LIMIT_BYTES}")
        return self.rfile.read(int(length))

    def _answer(self, make: Callable[[], Any] | None) -> None:
        service: Service = self.server.service
        status: int = 404
        value: Any = {"error": "not found"}
        if make is None:
            self.close_connection = True
        else:
            try:
                status, value = 200, make()
            except NotFoundError as error:
                status, value = 404, {"error": str(error)}
            except InputError as error:
                status, value = 400, {"error": str(error)}
            except (RuntimeError, OSError) as error:
                status, value = 503, {"error": str(error)}
        service.count(requests=1, errors=int(status >= 400))
        text = isinstance(value, str)
        body = (str(value) if text else json.dumps(value) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """Names the client in the log; on a Unix socket it has no address."""
        return "client"

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """What went well is in the metrics, not in the log."""


class TcpServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves on loopback."""

    daemon_threads = True


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves on a Unix socket."""

    daemon_threads = True


def make_server(address: str, service: Service) -> Any:
    """Returns a server that listens: on a Unix socket of this user, or on loopback."""
    server: Any
    if address.startswith("unix:"):
        path = address[5:]
        remove_stale_socket(path)
        mask = os.umask(0o177)
        try:
            server = UnixServer(path, Handler)
        finally:
            os.umask(mask)
    else:
        host, _, port = address.rpartition(":")
        if host not in ("127.0.0.1", "localhost") or not port.isdigit() or int(port) > 65535:
            raise InputError("--serve takes unix:/a/path or 127.0.0.1:port, no other network")
        server = TcpServer(("127.0.0.1", int(port)), Handler)
    server.service = service
    return server


def remove_stale_socket(path: str) -> None:
    """Removes the socket of a server that has died; one that answers is left alone."""
    if not os.path.exists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise InputError(f"{path}: in use")


def notify_ready() -> None:
    """Tells systemd that requests are answered, where systemd has started this."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.connect("\0" + address[1:] if address[0] == "@" else address)
            notifier.sendall(b"READY=1")


def read_top(text: str) -> int:
    """Reads how many classes are wanted."""
    if not text.isdigit() or not 1 <= int(text) <= 100000:
        raise InputError("top must be a number of classes, 1 or more")
    return int(text)


def classify_files(options: argparse.Namespace, service: Service) -> None:
    """Prints the classes of each input in the files, or in stdin."""
    top = read_top(options.top)
    for name in options.files or ["-"]:
        kind = options.format
        if kind == "auto" and name.endswith(".csv"):
            kind = "csv"
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        try:
            results = service.classify(data, kind, options.codes, top)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        for result in results:
            if options.json:
                print(json.dumps({"file": name, **result}))
            else:
                classes = (
                    f"{c.get('name', c['class'])}={c['score']:.6g}" for c in result["classes"]
                )
                print(f"{name} {result['input']}: {' '.join(classes)}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="edgekiln-run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="inputs; - or none for stdin")
    parser.add_argument("--format", choices=("auto", "raw", "npy", "csv"), default="auto")
    parser.add_argument("--codes", action="store_true", help="numbers are codes, not real values")
    parser.add_argument("--top", default="1", metavar="K", help="how many classes to show")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--runtime", choices=("c", "litert"), default="c")
    parser.add_argument("--selftest", action="store_true", help="run the golden pair")
    parser.add_argument("--version", action="store_true", help="show what this is, as JSON")
    parser.add_argument("--serve", metavar="ADDRESS", help="unix:/a/path or 127.0.0.1:port")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Does what the command line says."""
    model = Model(HERE)
    if options.selftest:
        return subprocess.run([str(HERE / "edgekiln-model"), "--selftest"], check=False).returncode
    service = Service(model, LiteRT(model) if options.runtime == "litert" else Program(model))
    try:
        if options.version:
            print(json.dumps(service.version()))
        elif options.serve:
            with make_server(options.serve, service) as server:
                print(f"serving {model.about['name']} on {options.serve}", file=sys.stderr)
                notify_ready()
                server.serve_forever()
        else:
            classify_files(options, service)
    finally:
        service.runtime.close()
    return 0


def main() -> None:
    """Entry point."""
    try:
        code = run(parse(sys.argv[1:]))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    except (InputError, OSError, RuntimeError) as error:
        print(f"edgekiln-run: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
