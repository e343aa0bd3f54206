#!/usr/bin/env python3
"""Asks a served model, as an application would.

Usage: example_client.py SOCKET FILE.npy

Only the standard library is needed. Start the server with
edgekiln-run --serve unix:SOCKET, or install the service.
"""

import http.client
import json
import socket
import sys
from typing import Any


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def classify(path: str, data: bytes, top: int = 3) -> list[Any]:
    """Returns the results for the inputs in a .npy file's bytes."""
    connection = UnixConnection(path)
    try:
        headers = {"Content-Type": "application/x-npy"}
        connection.request("POST", f"/classify?top={top}", data, headers)
        answer = json.load(connection.getresponse())
    finally:
        connection.close()
    if "error" in answer:
        raise SystemExit(f"example_client: {answer['error']}")
    return list(answer["results"])


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    try:
        with open(sys.argv[2], "rb") as stream:
            results = classify(sys.argv[1], stream.read())
    except OSError as error:
        raise SystemExit(f"example_client: {error}") from None
    for result in results:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
