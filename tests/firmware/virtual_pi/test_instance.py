"""How a virtual Pi fails to start, with commands that are none."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.virtual_pi import start_virtual_pi
from edgekiln.firmware.virtual_pi.access import Access
from edgekiln.firmware.virtual_pi.instance import VirtualPi

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("ssh-keygen", "setpriv"))), reason="needs ssh-keygen and setpriv"
)


class Plan:
    """Plays a Pi with a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.ports: list[int] = []
        self.directory = Path()

    def __call__(self, access: Access, port: int) -> list[str]:
        self.ports.append(port)
        self.directory = access.directory
        return ["sh", "-c", self.command]

    def start(self, *, port: int | None = None, wait_s: float = 60.0) -> VirtualPi:
        return VirtualPi("chroot", "arm64", plan=self, port=port, wait_s=wait_s)


def test_its_last_words_are_in_the_line() -> None:
    plan = Plan("echo mount: no; echo 'sshd: \033[1mno hostkeys'; exit 3")
    with pytest.raises(BoardError) as caught:
        plan.start()
    assert str(caught.value) == (
        "the virtual Pi (chroot) ended with code 3; got mount: no sshd: [1mno hostkeys"
    )
    assert not plan.directory.exists()


def test_silence_has_an_end() -> None:
    plan = Plan("echo booting; exec sleep 300")
    with pytest.raises(BoardError, match="does not answer within 9 s; got booting"):
        plan.start(wait_s=9.0)
    assert not plan.directory.exists()


def test_a_port_that_was_taken_meanwhile_is_given_up_for_another() -> None:
    plan = Plan("echo 'error: Bind to port failed: Address already in use.'; exit 255")
    with pytest.raises(BoardError, match="Address already in use"):
        plan.start()
    assert len(plan.ports) == 5


def test_a_port_that_the_user_chose_is_not() -> None:
    plan = Plan("echo 'error: Bind to port failed: Address already in use.'; exit 255")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(BadInputError, match=f"port {port} is in use"):
        plan.start(port=port)
    assert plan.ports == [port]


def test_a_directory_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(access: Access) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Access, "make_keys", refuse)
    with pytest.raises(BadInputError, match=r"cannot be written: No space left .* set TMPDIR"):
        Plan("true").start()


@pytest.mark.parametrize("cpu", ["", "max;reboot", "a b", "-x\n"])
def test_a_core_is_a_name(cpu: str) -> None:
    with pytest.raises(BadInputError, match="no such core"):
        start_virtual_pi(cpu=cpu)


def test_the_configuration_quotes_its_paths(tmp_path: Path) -> None:
    directory = tmp_path / "100% a b"
    directory.mkdir()
    access = Access(directory)
    access.make_keys()
    access.write_configuration(4022, guest=("127.0.0.1", 22), environment="A=b")
    text = access.ssh_config.read_text()
    assert f'IdentityFile "{tmp_path}/100%% a b/id_ed25519"' in text
    assert "StrictHostKeyChecking yes" in text
    assert access.identity_file.stat().st_mode & 0o777 == 0o600
