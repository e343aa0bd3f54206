"""Downloads from a server on this machine that behaves well, badly and worse."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.train import download
from edgekiln.train.download import cache_directory, read_source
from edgekiln.train.sources import IDX_SOURCES, Source

CONTENT = b"".join(hashlib.sha256(bytes((n % 251, n // 251))).digest() for n in range(10_000))
PACKED = gzip.compress(CONTENT, mtime=0)
OTHER = gzip.compress(CONTENT[:-1] + b"?", mtime=0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `PACKED` under names that say how; notes every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.extra = b""
        self.requests: list[tuple[str, str | None]] = []
        self.drops = {"drops": 3, "drops-without-range": 1, "busy": 2, "unsized": 1}

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}/file.gz"

    def take(self, name: str) -> bool:
        """Tells whether this request is one of those that go wrong."""
        self.drops[name] = self.drops.get(name, 0) - 1
        return self.drops[name] >= 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        wanted = self.headers.get("Range")
        self.server.requests.append((kind, wanted))
        if kind == "missing":
            return self.send_error(404)
        if kind == "busy" and self.server.take(kind):
            return self.send_error(503)
        if kind == "always-busy":
            return self.send_error(503)
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/good/file.gz")
            return self.end_headers()
        contents = {"other": OTHER, "text": b"<html>", "extra": self.server.extra}
        self.serve(kind, contents.get(kind, PACKED), wanted)

    def serve(self, kind: str, data: bytes, wanted: str | None) -> None:
        start = int(wanted[6:-1]) if wanted and "without-range" not in kind else 0
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            given = start + 1 if kind == "shifted" else start
            self.send_header("Content-Range", f"bytes {given}-{len(data) - 1}/{len(data)}")
        if kind == "encoded":
            self.send_header("Content-Encoding", "gzip")
        if kind != "unsized":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if kind == "always-drops":
            data = data[: max(start, 1000)]
        elif ("drops" in kind or kind == "unsized") and self.server.take(kind):
            data = data[: start + len(data) // 5]
        self.wfile.write(data[start:])
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no proxy, and pauses that are noted instead of made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("EDGEKILN_DATA", raising=False)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return tmp_path / "edgekiln" / "data" / "set"


def source(server: Server, *kinds: str) -> Source:
    urls = tuple(server.url(kind) for kind in kinds)
    return Source("set/file.gz", urls, SHA256, len(CONTENT))


def files_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def test_the_cache_is_where_users_expect_it(cache: Path) -> None:
    assert cache_directory() == cache.parent


@pytest.mark.parametrize("kind", ["good", "without-range", "moved", "encoded", "busy"])
def test_a_file_is_downloaded_once(
    server: Server, cache: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = source(server, kind)
    assert read_source(wanted) == CONTENT
    asked = len(server.requests)
    assert (cache / "file.gz").read_bytes() == PACKED and files_in(cache) == {"file.gz"}
    out, err = capfd.readouterr()
    assert out == "" and "set/file.gz" in err and "kB" in err
    assert read_source(wanted) == CONTENT and len(server.requests) == asked
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["drops", "unsized"])
def test_what_broke_off_is_gone_on_with(server: Server, cache: Path, kind: str) -> None:
    times = server.drops[kind]
    assert read_source(source(server, kind)) == CONTENT
    fifth = len(PACKED) // 5
    ranges = [None, *(f"bytes={n * fifth}-" for n in range(1, times + 1))]
    assert server.requests == [(kind, wanted) for wanted in ranges]
    assert files_in(cache) == {"file.gz"}


def test_a_server_without_ranges_starts_over(server: Server) -> None:
    assert read_source(source(server, "drops-without-range")) == CONTENT
    assert len(server.requests) == 2


def test_a_download_that_keeps_breaking_off_ends(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    with pytest.raises(ToolMissingError) as caught:
        read_source(source(server, "always-drops"))
    assert str(caught.value) == (
        f"set/file.gz: cannot be downloaded; got 127.0.0.1:{server.server_port}: the connection "
        "broke off; set EDGEKILN_DATA to a directory that holds this file"
    )
    assert len(server.requests) == 4 and pauses == [1.0, 2.0, 4.0]
    (part,) = files_in(cache)
    assert part.endswith(".part") and (cache / part).stat().st_size == 1000


def partial(cache: Path, server: Server, kind: str, data: bytes) -> Path:
    """Puts there what an earlier process had of a file from one mirror."""
    digest = hashlib.sha256(server.url(kind).encode()).hexdigest()[:8]
    cache.mkdir(parents=True)
    path = cache / f"file.gz.{digest}.part"
    path.write_bytes(data)
    return path


def test_the_next_process_goes_on(server: Server, cache: Path) -> None:
    partial(cache, server, "good", PACKED[:5000])
    assert read_source(source(server, "good")) == CONTENT
    assert server.requests == [("good", "bytes=5000-")]


def test_a_partial_file_of_one_mirror_is_not_mixed_with_anothers(
    server: Server, cache: Path
) -> None:
    partial(cache, server, "always-drops", PACKED[:2000])
    assert read_source(source(server, "always-drops", "good")) == CONTENT
    assert server.requests[0] == ("always-drops", "bytes=2000-")
    assert server.requests[-1] == ("good", None) and files_in(cache) == {"file.gz"}


@pytest.mark.parametrize("kind", ["good", "shifted"])
@pytest.mark.parametrize("data", [b"something else" * 9, PACKED + b"!", bytes(len(PACKED) - 1)])
def test_a_partial_file_that_does_not_fit_is_removed(
    server: Server, cache: Path, kind: str, data: bytes
) -> None:
    partial(cache, server, kind, data)
    assert read_source(source(server, kind)) == CONTENT
    assert [wanted for _, wanted in server.requests] == [f"bytes={len(data)}-", None]
    assert files_in(cache) == {"file.gz"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("other", "has another content than it should: the checksum is wrong"),
        ("text", "is not a gzip file, or a damaged one"),
        ("always-busy", "HTTP 503 Service Unavailable"),
    ],
)
def test_a_bad_mirror_is_left_for_the_next_one(
    server: Server, cache: Path, kind: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ToolMissingError, match=rf"127\.0\.0\.1:\d+: {reason}; set EDGEKILN_DATA"):
        read_source(source(server, kind))
    assert files_in(cache) == set()
    assert read_source(source(server, kind, "good")) == CONTENT
    assert reason in capfd.readouterr().err


@pytest.mark.parametrize("data", [PACKED, bytes(2_000_000)])
def test_what_is_too_large_is_not_taken(server: Server, cache: Path, data: bytes) -> None:
    server.extra = data
    small = Source("set/file.gz", (server.url("extra"),), SHA256, 100)
    with pytest.raises(ToolMissingError, match=r"another content|larger than it should be"):
        read_source(small)
    assert files_in(cache) == set()


def test_nobody_there(cache: Path) -> None:
    nobody = Source("set/file.gz", ("http://127.0.0.1:9/file.gz",), SHA256, len(CONTENT))
    with pytest.raises(ToolMissingError, match=r"got 127\.0\.0\.1:9: Connection refused; set EDG"):
        read_source(nobody)
    nowhere = Source("set/file.gz", ("http://no.such.invalid/f.gz",), SHA256, len(CONTENT))
    with pytest.raises(ToolMissingError) as caught:
        read_source(nowhere)
    assert len(str(caught.value)) < 200 and "no.such.invalid: " in str(caught.value)


def test_a_damaged_file_in_the_cache_is_downloaded_anew(server: Server, cache: Path) -> None:
    wanted = source(server, "good")
    read_source(wanted)
    for damage in (OTHER, PACKED[:-1], b""):
        (cache / "file.gz").write_bytes(damage)
        assert read_source(wanted) == CONTENT
        assert (cache / "file.gz").read_bytes() == PACKED


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "edgekiln").write_text("a file where the cache should be")
    with pytest.raises(BadInputError, match=r"cannot be (written|read): .*") as caught:
        read_source(source(server, "good"))
    assert str(tmp_path) in str(caught.value) and server.requests == []


def test_two_processes_download_once(server: Server, cache: Path, root: Path) -> None:
    program = (
        "import sys; from edgekiln.train.download import read_source\n"
        "from edgekiln.train.sources import Source\n"
        "print(len(read_source(Source('set/file.gz', (sys.argv[1],), sys.argv[2], "
        "int(sys.argv[3])))))"
    )
    command = [sys.executable, "-c", program, server.url("good"), SHA256, str(len(CONTENT))]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert out == f"{len(CONTENT)}\n", err
    assert server.requests == [("good", None)]


def test_waiting_for_another_process_is_said(
    server: Server, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent.parent))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("EDGEKILN_DATA", raising=False)
    monkeypatch.setattr(download, "_PATIENCE_S", 0.01)
    cache.mkdir(parents=True)
    other = filelock.FileLock(cache / "file.gz.lock", thread_local=False)
    other.acquire()
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(read_source(source(server, "good"))))
    thread.start()
    deadline = time.monotonic() + 60
    said = ""
    while "waiting for another process" not in said and time.monotonic() < deadline:
        said += capfd.readouterr().err
    assert server.requests == [] and thread.is_alive()
    other.release()
    thread.join(60)
    assert results == [CONTENT]


class TestLocalCopies:
    @pytest.fixture
    def copies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The directory that EDGEKILN_DATA names, with the file in it."""
        directory = tmp_path / "copies"
        (directory / "set").mkdir(parents=True)
        (directory / "set" / "file.gz").write_bytes(PACKED)
        monkeypatch.setenv("EDGEKILN_DATA", str(directory))
        return directory

    def test_they_are_read_and_nothing_is_written(self, server: Server, copies: Path) -> None:
        assert read_source(source(server, "good")) == CONTENT
        assert server.requests == []
        assert [path.name for path in copies.rglob("*")] == ["set", "file.gz"]
        assert not cache_directory().exists()

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (OTHER, "has another content than it should: the checksum is wrong"),
            (PACKED[:5000], "is cut off after 5,000 bytes"),
            (b"", "is cut off after 0 bytes"),
            (b"PNG?", "is not a gzip file, or a damaged one"),
            (None, "no such file"),
        ],
    )
    def test_a_wrong_one_is_named(
        self, server: Server, copies: Path, data: bytes | None, problem: str
    ) -> None:
        path = copies / "set" / "file.gz"
        path.unlink() if data is None else path.write_bytes(data)
        with pytest.raises(BadInputError) as caught:
            read_source(source(server, "good"))
        message = str(caught.value)
        assert message.startswith(f"{path}: {problem} (a copy below EDGEKILN_DATA); ")
        assert "\n" not in message and server.requests == []
        assert path.exists() == (data is not None) and not cache_directory().exists()


class TestSharedCopies:
    @pytest.fixture
    def copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The file where EDGEKILN_SHARED has it."""
        path = tmp_path / "shared" / "data" / "set" / "file.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(PACKED)
        monkeypatch.setenv("EDGEKILN_SHARED", str(tmp_path / "shared"))
        return path

    def test_they_are_read(self, server: Server, copy: Path) -> None:
        assert read_source(source(server, "good")) == CONTENT
        assert server.requests == [] and not cache_directory().exists()

    def test_a_wrong_one_is_named(self, server: Server, copy: Path) -> None:
        copy.write_bytes(OTHER)
        with pytest.raises(BadInputError, match=r"wrong \(a copy below EDGEKILN_SHARED\); "):
            read_source(source(server, "good"))

    def test_what_is_not_there_is_downloaded(self, server: Server, copy: Path) -> None:
        copy.unlink()
        assert read_source(source(server, "good")) == CONTENT
        assert server.requests


def test_the_real_files_are_complete_in_the_table() -> None:
    assert set(IDX_SOURCES) == {"mnist", "fashion_mnist"}
    everything = [source for sources in IDX_SOURCES.values() for source in sources]
    assert len({source.sha256 for source in everything}) == len(everything) == 8
    for each in everything:
        assert re.fullmatch("[0-9a-f]{64}", each.sha256) and len(each.urls) == 2
        for url in each.urls:
            assert url.startswith(("https://", "http://fashion-mnist.s3-website."))
            assert url.endswith(each.path.partition("/")[2])
