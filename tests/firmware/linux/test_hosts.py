"""Where to deploy: what users write, what the environment says, what no shell may ever see."""

from __future__ import annotations

import dataclasses

import pytest

from edgekiln.errors import BadInputError
from edgekiln.firmware.boards import Board, Linux, load_board
from edgekiln.firmware.linux.hosts import VIRTUAL_KINDS, choose_targets, parse_target

NASTY = [
    *("", " ", "a b", "it's", 'say "hi"', "$(touch pwned)", "`id`", "a;b", "-oProxyCommand=id"),
    *("pi@-x", "-l", "../x", "a/b", "pi@host:x", "host:99999", "a\nb", "a|b", "a&b", "pi@", "@a"),
    *("virtual:", "virtual:pi9", "virtual:$(id)", "virtual:armhf ", "virtual:-x"),
]


@pytest.fixture
def board() -> Board:
    return load_board("rpi")


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RPI_HOST", raising=False)


@pytest.mark.parametrize("text", NASTY)
def test_what_is_no_host_is_refused(text: str, board: Board) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value)
    if text.strip():
        with pytest.raises(BadInputError):
            choose_targets(board, [text])


def test_without_a_host_the_line_says_what_to_do(board: Board) -> None:
    with pytest.raises(BadInputError) as caught:
        choose_targets(board, [])
    assert str(caught.value) == (
        "rpi: no host to deploy to; set RPI_HOST=pi@raspberrypi.local or give --host "
        "pi@raspberrypi.local, or use the virtual Raspberry Pi: make deploy BOARD=rpi "
        "HOST=virtual (--host virtual)"
    )


def test_the_command_line_comes_before_the_environment_before_the_board(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert board.linux is not None
    linux = dataclasses.replace(board.linux, hosts=("mine",))
    mine = dataclasses.replace(board, linux=linux)
    assert [target.text for target in choose_targets(mine, [])] == ["mine"]
    monkeypatch.setenv("RPI_HOST", "pi@one, pi@two:2222\npi@one,")
    assert [target.text for target in choose_targets(mine, [])] == ["pi@one", "pi@two:2222"]
    assert [target.text for target in choose_targets(mine, ["x"])] == ["x"]


def test_virtual_ones_have_kinds_and_every_target_a_directory_of_its_own() -> None:
    assert parse_target("virtual").virtual == VIRTUAL_KINDS[""]
    armhf = parse_target("virtual:armhf").virtual
    assert armhf is not None and (armhf.architecture, armhf.kind) == ("armhf", "chroot")
    assert parse_target("pi@virtual").virtual is None
    texts = ["virtual:virt", "virtual-virt", "pi:22", "pi", "pi@pi", "[fe80::1]:22", "[fe80::1]"]
    directories = {parse_target(text).directory for text in texts}
    assert len(directories) == len(texts)
    assert not any("/" in name or ":" in name for name in directories)


@pytest.mark.parametrize(
    ("architecture", "features", "target"),
    [
        ("aarch64", {"fp", "asimd", "asimddp"}, "aarch64-dotprod"),
        ("aarch64", {"fp", "asimd"}, "aarch64"),
        ("armv7l", {"neon"}, "armv7-neon"),
        ("armv7l", {"vfpv3d16"}, "generic"),
        ("x86_64", set(), "host"),
        ("armv6l", set(), None),
    ],
)
def test_what_is_compiled_follows_from_what_the_board_has(
    board: Board, architecture: str, features: set[str], target: str | None
) -> None:
    assert isinstance(board.linux, Linux)
    core = board.linux.find_core(architecture, frozenset(features))
    assert (core.target if core else None) == target
