"""Which serial port is the board's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from flash_boards import make_board

from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.boards import Board, Usb
from edgekiln.firmware.flash.destination import AUTO
from edgekiln.firmware.flash.ports import Port, find_port, list_ports, probe_of, wait_for_port

UNO, STLINK, OTHER = (0x2341, 0x0043), (0x0483, 0x374B), (0x10C4, 0xEA60)
FTDI = (0x0403, 0x6010)  # a device with two ports

Attach = Callable[..., list[str]]


@pytest.fixture
def attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attach:
    """Attaches devices, each ``(vendor, product)`` and a serial number; returns their ports."""

    def attach(*devices: tuple[tuple[int, int] | None, str]) -> list[str]:
        found = []
        for number, (usb, serial) in enumerate(devices):
            path = tmp_path / f"ttyACM{number}"
            path.touch()
            vid, pid = usb or (None, None)
            found.append(
                SimpleNamespace(
                    device=str(path),
                    description="n/a",
                    vid=vid,
                    pid=pid,
                    serial_number=serial,
                    location=f"1-{number // 2}.4:1.{number % 2}" if usb == FTDI else None,
                )
            )
        monkeypatch.setattr("serial.tools.list_ports.comports", lambda: reversed(found))
        return [each.device for each in found]

    return attach


def board(*ids: str, is_probe: bool = False) -> Board:
    return make_board(usb=Usb(ids, is_probe) if ids else None)


def nobody(question: str, answers: Sequence[str]) -> None:
    return None


def unasked(question: str, answers: Sequence[str]) -> int:
    raise AssertionError("asked without need")


def test_this_machine_can_be_listed() -> None:
    assert all(port.usb_id for port in list_ports())


def test_the_one_that_fits(attach: Attach) -> None:
    ports = attach((OTHER, "1"), (UNO, "2"), (None, ""))
    assert find_port(board("2341:0043"), AUTO, unasked) == Port(ports[1], "", "2341:0043", "2")


def test_none_fits_and_all_are_listed(attach: Attach) -> None:
    ports = attach((OTHER, "1"))
    with pytest.raises(BoardError) as caught:
        find_port(board("2341:0043"), AUTO, unasked)
    assert f"{ports[0]} (10c4:ea60)" in str(caught.value)
    assert "allowed: USB 2341:0043" in str(caught.value)
    attach()
    with pytest.raises(BoardError, match="got no serial port on USB"):
        find_port(board("2341:0043"), AUTO, unasked)


def test_several_fit_and_a_person_is_asked(attach: Attach) -> None:
    ports = attach((UNO, "1"), (OTHER, "2"), (UNO, "3"))
    asked = []

    def second(question: str, answers: Sequence[str]) -> int:
        asked.append((question, list(answers)))
        return 1

    assert find_port(board("2341:0043"), AUTO, second).device == ports[2]
    lines = [f"{ports[0]} (2341:0043)", f"{ports[2]} (2341:0043)"]
    assert asked == [("Which of these is demo?", lines)]


def test_several_fit_and_nobody_is_there(attach: Attach) -> None:
    ports = attach((UNO, "1"), (UNO, "3"))
    with pytest.raises(BadInputError, match=r"several serial ports fit.*--port") as caught:
        find_port(board("2341:0043"), AUTO, nobody)
    assert all(port in str(caught.value) for port in ports)


def test_a_board_behind_any_adapter(attach: Attach) -> None:
    (port,) = attach((OTHER, "1"))
    assert find_port(board(), AUTO, unasked).device == port


def test_a_port_that_is_named(attach: Attach, tmp_path: Path) -> None:
    ports = attach((OTHER, "1"))
    assert find_port(board("2341:0043"), ports[0], unasked).usb_id == "10c4:ea60"
    with pytest.raises(BoardError, match=r"ttyEK0: no such port; allowed: .*ttyACM0"):
        find_port(board("2341:0043"), "/dev/ttyEK0", unasked)


@pytest.mark.parametrize("name", ["-ttyX", "--help", "a b", "$(touch pwned)", "x;y", "usb:ft0"])
def test_a_name_is_a_path_and_nothing_else(
    name: str, attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BoardError, match="no such port"):
        find_port(board(), name, unasked)
    Path(name).touch()
    assert find_port(board(), name, unasked).device == str(tmp_path / name)


def test_a_port_that_may_not_be_used(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = attach((UNO, "1"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != ports[0])
    with pytest.raises(BoardError, match=r"permission to use the port is denied.*dialout"):
        find_port(board("2341:0043"), AUTO, unasked)


def test_one_of_a_devices_ports(attach: Attach) -> None:
    first, second = attach((FTDI, "1"), (FTDI, "1"))
    usb = Usb(("0403:6010",), False, interface=1)
    assert find_port(make_board(usb=usb), AUTO, unasked).device == second
    both = dataclasses.replace(usb, interface=None)
    with pytest.raises(BadInputError, match=rf"several serial ports fit.*{first}"):
        find_port(make_board(usb=both), AUTO, nobody)
    # Where the system does not tell, all of them are asked about.
    attach((OTHER, "1"), (OTHER, "1"))
    with pytest.raises(BadInputError, match="several serial ports fit"):
        find_port(make_board(usb=Usb(("10c4:ea60",), False, interface=1)), AUTO, nobody)


def test_the_probe_of_a_port(attach: Attach) -> None:
    nucleo = board("0483:374b", is_probe=True)
    first, _ = attach((STLINK, "AA"), (OTHER, "BB"))
    port = find_port(nucleo, first, unasked)
    assert probe_of(nucleo, port) == "", "the only one needs no name"
    first, second, third = attach((STLINK, "AA"), (STLINK, "CC"), (OTHER, "BB"))
    assert probe_of(nucleo, find_port(nucleo, second, unasked)) == "CC"
    assert probe_of(nucleo, find_port(nucleo, third, unasked)) == "", "an adapter of its own"
    behind_adapter = board("0483:374b")
    assert probe_of(behind_adapter, find_port(nucleo, second, unasked)) == ""


def test_a_port_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tty"
    monkeypatch.setattr("edgekiln.firmware.flash.ports._RESTART_SECONDS", 0.1)
    monkeypatch.setattr("edgekiln.firmware.flash.ports._PAUSE_SECONDS", 0.01)
    with pytest.raises(BoardError, match="did not come back"):
        wait_for_port(str(path))
    monkeypatch.setattr("time.sleep", lambda _: path.touch())
    wait_for_port(str(path))
