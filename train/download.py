"""Files of data sets: from local copies, from the cache, or over the network into the cache.

A file's content is what its SHA-256 says, or the file is not used. `EDGEKILN_DATA` in the
environment names a directory with copies, which is only read: then nothing is downloaded. A copy
below data/ of the directory `EDGEKILN_SHARED` is taken where there is one. Otherwise files lie in
the cache, ``$XDG_CACHE_HOME/edgekiln/data`` or ``~/.cache/edgekiln/data``; a download which broke
off is gone on with where it stopped, by this process or by the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import http
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import platformdirs
import requests
import urllib3.exceptions
from rich.progress import Progress

from edgekiln import __version__, console, files
from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.train.sources import Source

DATA_VARIABLE = "EDGEKILN_DATA"
SHARED_VARIABLE = "EDGEKILN_SHARED"

_ATTEMPTS = 4
_BACK_OFF_S = 1.0
_PATIENCE_S = 0.5
_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 16
#: What a gzip file may be larger than its content: a header with a name, and blocks as they are.
_SLACK_BYTES = 1 << 20
_GZIP_WBITS = 31
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class _BrokenError(Exception):
    """The transfer broke off, or the server is busy: to be tried again after a pause."""


class _UselessError(Exception):
    """This mirror does not have the file: the next one has to be tried."""


def read_source(source: Source) -> bytes:
    """Returns the uncompressed content of a file, after checking it.

    Raises:
        BadInputError: The copy below ``EDGEKILN_DATA`` is missing, or a copy has another content,
            or the cache cannot be written.
        ToolMissingError: The file cannot be had from any mirror.
    """
    local = os.environ.get(DATA_VARIABLE)
    if local:
        return _read_local(source, Path(local) / source.path, DATA_VARIABLE)
    shared = os.environ.get(SHARED_VARIABLE)
    copy = Path(shared) / "data" / source.path if shared else None
    if copy is not None and copy.exists():
        return _read_local(source, copy, SHARED_VARIABLE)
    path = cache_directory() / source.path
    content = _read_cached(source, path)
    return _download_once(source, path) if content is None else content


def cache_directory() -> Path:
    """Returns the directory that holds what was downloaded, which need not exist yet."""
    return platformdirs.user_cache_path("edgekiln") / "data"


def _read_local(source: Source, path: Path, variable: str) -> bytes:
    try:
        return _unpack(source, files.read_input_file(path))
    except (_BrokenError, _UselessError) as error:
        problem, hint = str(error), f"get the file anew, or unset {variable} to download it"
    except BadInputError as error:
        problem = error.what
        hint = f"{variable} names the directory; unset it to download the file"
    raise BadInputError(f"{problem} (a copy below {variable})", where=path, hint=hint)


def _read_cached(source: Source, path: Path) -> bytes | None:
    """Returns the content of a file of the cache; None when it is missing or damaged."""
    try:
        return _unpack(source, path.read_bytes())
    except (FileNotFoundError, _BrokenError, _UselessError):
        return None
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}", where=path) from None


def _unpack(source: Source, packed: bytes) -> bytes:
    """Decompresses a whole gzip file and checks its content.

    Raises:
        _BrokenError: The file ends too early.
        _UselessError: It is not gzip, or its content is another one.
    """
    unpacker = zlib.decompressobj(wbits=_GZIP_WBITS)
    try:
        content = unpacker.decompress(packed, source.size_bytes + 1)
    except zlib.error:
        raise _UselessError("is not a gzip file, or a damaged one") from None
    if len(content) <= source.size_bytes and not unpacker.eof:
        raise _BrokenError(f"is cut off after {len(packed):,} bytes")
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise _UselessError("has another content than it should: the checksum is wrong")
    return content


def _download_once(source: Source, path: Path) -> bytes:
    """Downloads a file unless another process has just done so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f"{path.name}.lock"), source):
            content = _read_cached(source, path)
            return _download(source, path) if content is None else content
    except OSError as error:
        raise BadInputError(
            f"cannot be written: {error.strerror or error}",
            where=error.filename or path,
            hint="XDG_CACHE_HOME names another directory for the cache",
        ) from None


@contextlib.contextmanager
def _locked(path: Path, source: Source) -> Iterator[None]:
    """Holds a lock inside the block; says so where it has to wait for another process."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except filelock.Timeout:
        console.say(f"{source.path}: waiting for another process that downloads it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(source: Source, path: Path) -> bytes:
    """Tries the mirrors in their order until one gives the right content."""
    problems = []
    with console.byte_progress() as bar, requests.Session() as session:
        for url in source.urls:
            transfer = _Transfer(source, url, path, session, bar)
            try:
                return transfer.run()
            except (_BrokenError, _UselessError) as error:
                problems.append(f"{urlsplit(url).netloc}: {error}")
                transfer.stop()
                console.say(f"{source.path}: {problems[-1]}")
    raise ToolMissingError(
        "cannot be downloaded",
        where=source.path,
        got="; ".join(problems),
        hint=f"set {DATA_VARIABLE} to a directory that holds this file",
    )


@dataclass
class _Transfer:
    """One file from one mirror.

    Attributes:
        source: The file.
        url: Where it is got.
        path: Where it goes when it is whole and right.
        session: The connection.
        bar: A started display.
    """

    source: Source
    url: str
    path: Path
    session: requests.Session
    bar: Progress

    def __post_init__(self) -> None:
        self._task = self.bar.add_task(self.source.path, total=None, note="")
        # Bytes of two mirrors do not belong together: each has a partial file of its own.
        mirror = hashlib.sha256(self.url.encode()).hexdigest()[:8]
        self._part = self.path.with_name(f"{self.path.name}.{mirror}.part")

    def stop(self) -> None:
        """Takes the bar away."""
        self.bar.remove_task(self._task)

    def run(self) -> bytes:
        """Gets the file, in several goes where it has to be, and moves it to its place.

        Returns:
            The uncompressed content.

        Raises:
            _BrokenError: It breaks off again and again without getting further.
            _UselessError: The mirror does not have the file, or another one.
        """
        furthest, attempts = self._size(), 0
        while True:
            resumed = self._size() > 0
            try:
                self._receive()
                return self._finish()
            except _UselessError:
                self._part.unlink(missing_ok=True)
                if not resumed:
                    raise
                self._note("what was there does not fit; starting over")
            except _BrokenError as error:
                size = self._size()
                attempts = 1 if size > furthest else attempts + 1
                furthest = max(furthest, size)
                if attempts == _ATTEMPTS:
                    raise
                self._note(f"{error}; trying again")
                time.sleep(_BACK_OFF_S * 2 ** (attempts - 1))

    def _note(self, note: str) -> None:
        self.bar.update(self._task, note=note)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _finish(self) -> bytes:
        content = _unpack(self.source, self._part.read_bytes())
        os.replace(self._part, self.path)
        for other in self.path.parent.glob(f"{self.path.name}.*.part"):
            other.unlink()
        size = self.path.stat().st_size
        self.bar.update(self._task, total=size, completed=size, note="")
        return content

    def _receive(self) -> None:
        """Adds what is missing to the partial file, or starts it anew where that cannot be.

        Raises:
            _BrokenError: The transfer broke off, or the server is busy.
            _UselessError: The server does not have the file.
        """
        start = self._size()
        headers = {"Accept-Encoding": "identity", "User-Agent": f"edgekiln/{__version__}"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with self.session.get(
                self.url,
                headers=headers,
                stream=True,
                timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
            ) as response:
                start = self._check_status(response, start)
                self._write(response, start)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _BrokenError(_reason(error)) from None

    def _check_status(self, response: requests.Response, start: int) -> int:
        """Returns at which byte of the file the answer begins."""
        status = response.status_code
        if status == http.HTTPStatus.PARTIAL_CONTENT and start:
            given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if given is None or int(given[1]) != start:
                raise _UselessError("answers with another part of the file than was asked for")
            return start
        if status == http.HTTPStatus.OK:
            return 0
        text = f"HTTP {status} {response.reason}"
        if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            raise _UselessError(text)
        raise (_BrokenError if status in _RETRIED else _UselessError)(text)

    def _write(self, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        self.bar.update(self._task, total=total, completed=start, note="")
        most = self.source.size_bytes + _SLACK_BYTES
        with self._part.open("ab" if start else "wb") as stream:
            # Undecoded: a server may call the file's own gzip an encoding.
            for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                stream.write(chunk)
                self.bar.advance(self._task, len(chunk))
                if stream.tell() > most:
                    raise _UselessError("is larger than it should be")


def _reason(error: BaseException) -> str:
    """Returns the short cause at the bottom of requests' and urllib3's errors."""
    within = [getattr(error, "reason", None), *error.args]
    for inner in within:
        if isinstance(inner, Exception):
            return _reason(inner)
    if isinstance(error, urllib3.exceptions.IncompleteRead):
        return "the connection broke off"
    text = str(error).rpartition(": ")[2]
    return re.sub(r"^\[Errno -?\d+\] ", "", text) or type(error).__name__
