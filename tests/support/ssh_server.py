"""An SSH server of the tests' own, on loopback, as the user who runs them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekiln.firmware.linux.ssh import Connection, Host, parse_host

PROGRAMS = {"sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
SBIN = "/usr/sbin:/sbin"


@dataclass(frozen=True)
class Server:
    """A running sshd.

    Attributes:
        directory: Its keys and configuration.
        config: What ssh takes with -F to reach it.
        port: Its port on loopback.
        wrappers: Where what it runs looks for programs first; empty at first.
        alias: What the configuration calls it.
    """

    directory: Path
    config: Path
    port: int
    wrappers: Path
    alias: str

    @property
    def host(self) -> Host:
        return parse_host(self.alias)

    @property
    def home(self) -> Path:
        """The home directory of whoever logs in."""
        return self.directory / "home"

    def connect(self) -> Connection:
        return Connection(self.host, ssh_config=self.config)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@contextlib.contextmanager
def run_server(
    directory: Path, alias: str = "virtual-pi", environment: str = ""
) -> Iterator[Server]:
    """Runs a server; its directory holds a home, too. ``environment``: NAME=value for logins."""
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name, path=path)]
    if missing:
        reason = f"not installed: {', '.join(missing)} (make setup installs them)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    directory.chmod(0o700)
    for name in ("host_key", "user_key"):
        make_key(directory / name)
    wrappers, home = directory / "wrappers", directory / "home"
    wrappers.mkdir()
    home.mkdir(exist_ok=True)
    port = free_port()
    (directory / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host_key\n"
        f"AuthorizedKeysFile {directory}/user_key.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        # Neither are start-up files of whoever runs the tests read nor is their home written to.
        'ForceCommand cd && eval "$SSH_ORIGINAL_COMMAND"\n'
        f"MaxStartups 100\nSetEnv HOME={home} PATH={wrappers}:/usr/local/bin:/usr/bin:/bin "
        f"{environment}\n"
    )
    key = (directory / "host_key.pub").read_text().split()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    config = directory / "ssh_config"
    config.write_text(
        f"Host {alias}\n  HostName 127.0.0.1\n  Port {port}\n"
        f"  IdentityFile {directory}/user_key\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        f"  UserKnownHostsFile {directory}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    sshd = shutil.which("sshd", path=path)
    assert sshd
    log = (directory / "log").open("wb")
    command = [sshd, "-D", "-e", "-f", str(directory / "sshd_config")]
    with log, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log) as process:
        wait_for(process, port, directory / "log")
        try:
            yield Server(directory, config, port, wrappers, alias)
        finally:
            process.terminate()
            process.wait(10)


def wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            pytest.fail(f"sshd does not start: {log.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd does not answer")


@pytest.fixture(scope="session")
def connection(server: Server) -> Iterator[Connection]:
    with server.connect() as opened:
        yield opened
