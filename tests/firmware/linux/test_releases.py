"""Deploys, and every fault that can come in between.

Programs that the board's side of a deploy runs (mv, ln, sync, sha256sum, …) are replaced by
wrappers that count, and at the n-th call do harm. So faults come before and after every single
command of a deploy, without a hook in what ships.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekiln.errors import BadInputError, BoardError, CheckFailedError, EdgekilnError
from edgekiln.firmware.linux.facts import find_facts
from edgekiln.firmware.linux.releases import (
    Deployed,
    Release,
    deploy_release,
    list_releases,
    make_release,
    rollback,
)
from edgekiln.firmware.linux.ssh import Connection

NAME = "digits"
# All that change something, and those that what is checked depends on.
WRAPPED = ("mkdir", "rm", "cp", "mv", "ln", "sync", "sha256sum", "timeout", "rsync")


def write_release(directory: Path, answer: str, *, works: bool = True, size: int = 100) -> Release:
    directory.mkdir()
    (directory / "answer").write_text(answer)
    (directory / "data").write_bytes(answer.encode() * size)
    (directory / "shared").write_bytes(b"the same in all" * 100)
    runner = directory / "edgekiln-run"
    # The self-test is this program itself, run in the release's directory.
    test = f'[ "$1" != --selftest ] || [ "$(cat answer)" = {answer} ]' if works else "exit 1"
    runner.write_text(f"#!/bin/sh\n{test} || exit 1\ncat answer\n")
    runner.chmod(0o755)
    return make_release(directory, NAME)


def answer_of(base: Path) -> str:
    """What the application answers, asked by its link as users do."""
    done = subprocess.run(
        ["./edgekiln-run", "--selftest"],
        cwd=base / NAME / "current",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def leftovers(base: Path) -> list[str]:
    root = base / NAME
    names = [path.name for path in (*root.iterdir(), *(root / "releases").iterdir())]
    return [name for name in names if name.startswith(".")]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "the board's base; $(touch pwned)"


def test_a_release_arrives_is_tested_and_becomes_current(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    one, two = (write_release(tmp_path / name, name) for name in ("one", "two"))
    assert one.id != two.id
    first = deploy_release(connection, one, base=str(base), facts=find_facts(connection))
    assert first == Deployed(one.id, "", first.sent_bytes, f"{base}/{NAME}/releases/{one.id}")
    assert first.sent_bytes > one.bytes
    assert (base / NAME / "current").readlink() == Path("releases") / one.id
    again = deploy_release(connection, one, base=str(base))
    assert (again.sent_bytes, again.is_unchanged) == (0, True)
    second = deploy_release(connection, two, base=str(base))
    assert (second.id, second.previous) == (two.id, one.id)
    assert second.sent_bytes < two.bytes - 1000, "what is equal is not sent"
    assert answer_of(base) == "two"
    assert leftovers(base) == []


def test_three_are_kept_and_rollback_goes_back_one_by_one(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    made = [write_release(tmp_path / f"r{i}", f"r{i}") for i in range(4)]
    for release in made:
        deploy_release(connection, release, base=str(base))
    infos = list_releases(connection, NAME, base=str(base))
    assert [info.id for info in infos] == [release.id for release in made[:0:-1]]
    assert [info.is_current for info in infos] == [True, False, False]
    assert all(info.is_whole and info.bytes > 0 for info in infos)
    back = rollback(connection, NAME, base=str(base))
    assert (back.id, back.previous, answer_of(base)) == (made[2].id, made[3].id, "r2")
    assert rollback(connection, NAME, base=str(base)).id == made[1].id
    with pytest.raises(BadInputError, match="there is no earlier release"):
        rollback(connection, NAME, base=str(base))
    assert answer_of(base) == "r1"
    assert deploy_release(connection, made[3], base=str(base)).sent_bytes == 0
    assert rollback(connection, NAME, base=str(base)).id == made[1].id


def test_nothing_deployed_is_no_mystery(connection: Connection, base: Path) -> None:
    assert list_releases(connection, NAME, base=str(base)) == ()
    with pytest.raises(BoardError, match="nothing has been deployed there"):
        rollback(connection, NAME, base=str(base))


def test_a_damaged_release_is_replaced_beside_it(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    release = write_release(tmp_path / "one", "one")
    deploy_release(connection, release, base=str(base))
    (base / NAME / "releases" / release.id / "data").write_bytes(b"rotten")
    assert not list_releases(connection, NAME, base=str(base))[0].is_whole
    repaired = deploy_release(connection, release, base=str(base))
    assert repaired.id == f"{release.id}-2"
    assert 0 < repaired.sent_bytes < release.bytes
    assert list_releases(connection, NAME, base=str(base))[0].is_whole
    assert deploy_release(connection, release, base=str(base)).is_unchanged


def test_a_rollback_skips_what_is_damaged(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    made = [write_release(tmp_path / f"r{i}", f"r{i}") for i in range(3)]
    for release in made:
        deploy_release(connection, release, base=str(base))
    (base / NAME / "releases" / made[1].id / "data").unlink()
    assert rollback(connection, NAME, base=str(base)).id == made[0].id


def test_two_deploys_at_once_do_not_mix(
    server: Any, connection: Connection, tmp_path: Path, base: Path
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "edgekiln-run").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nsleep 3\n")
    (slow / "edgekiln-run").chmod(0o755)
    other = write_release(tmp_path / "one", "one")
    first = make_release(slow, NAME)
    done: list[Deployed] = []

    def deploy_slowly() -> None:
        with server.connect() as own:
            done.append(deploy_release(own, first, base=str(base)))

    thread = threading.Thread(target=deploy_slowly)
    thread.start()
    while not (tmp_path / "started").exists() and thread.is_alive():
        thread.join(0.05)
    with pytest.raises(BoardError, match=r"another deploy is going on: [A-Za-z0-9._ -]+$"):
        deploy_release(connection, other, base=str(base))
    thread.join()
    assert [deployed.id for deployed in done] == [first.id]
    assert deploy_release(connection, other, base=str(base)).previous == first.id


def test_what_a_killed_deploy_left_running_is_waited_for(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    deploy_release(connection, write_release(tmp_path / "one", "one"), base=str(base))
    script = 'cd "$1"; exec 8>>busy; flock 8; touch "$2"; sleep 2; rm "$2"'
    mark = tmp_path / "still running"
    with subprocess.Popen(["sh", "-c", script, "sh", base / NAME, mark]) as orphan:
        while not mark.exists() and orphan.poll() is None:
            time.sleep(0.01)
        deploy_release(connection, write_release(tmp_path / "two", "two"), base=str(base))
        assert not mark.exists()
    assert answer_of(base) == "two"


def test_a_rollback_from_a_release_that_is_not_current_is_refused(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    one, two = (write_release(tmp_path / name, name) for name in ("one", "two"))
    deploy_release(connection, one, base=str(base))
    deploy_release(connection, two, base=str(base))
    with pytest.raises(BadInputError, match=f"another release is current; got {two.id}"):
        rollback(connection, NAME, base=str(base), only_from=one.id)
    assert answer_of(base) == "two"
    assert rollback(connection, NAME, base=str(base), only_from=two.id).id == one.id


def test_the_disk_has_a_release_before_the_link_to_it(
    server: Any, connection: Connection, tmp_path: Path, base: Path
) -> None:
    calls = tmp_path / "calls"
    for name in ("mv", "sync"):
        wrapper = server.wrappers / name
        wrapper.write_text(
            f'#!/bin/sh\necho {name} "$@" >>{calls}\nexec {shutil.which(name)} "$@"\n'
        )
        wrapper.chmod(0o755)
    try:
        release = write_release(tmp_path / "one", "one")
        deploy_release(connection, release, base=str(base))
    finally:
        for name in ("mv", "sync"):
            (server.wrappers / name).unlink()
    incoming = f"releases/.incoming-{release.id}"
    assert calls.read_text().splitlines()[:5] == [
        f"sync -f {incoming}",
        f"mv -T {incoming} releases/{release.id}",
        "sync releases",
        "mv -fT .current.new current",
        "sync .",
    ]


def test_checksums_are_checked_with_any_sha256sum(
    server: Any, connection: Connection, tmp_path: Path, base: Path
) -> None:
    """That of busybox, as in Alpine Linux, has no long options."""
    wrapper = server.wrappers / "sha256sum"
    real = shutil.which("sha256sum")
    wrapper.write_text(f'#!/bin/sh\ncase $* in *--*) exit 1 ;; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    try:
        deploy_release(connection, write_release(tmp_path / "one", "one"), base=str(base))
    finally:
        wrapper.unlink()
    assert answer_of(base) == "one"


@pytest.mark.parametrize(
    "name", ["", "a b", "-x", "../x", "a/b", "$(id)", "a;b", "it's", ".x", "a\n", "envs"]
)
def test_names_that_could_do_harm_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInputError, match="not a name"):
        make_release(tmp_path, name)


def test_files_with_any_name_arrive(connection: Connection, tmp_path: Path, base: Path) -> None:
    write_release(tmp_path / "one", "one")
    names = (
        "a b",
        "it's",
        'say "hi"',
        "$(touch pwned)",
        "a;b",
        "-rf",
        "--delete",
        "*",
        "ü",
        "`id`",
    )
    for name in names:
        (tmp_path / "one" / name).mkdir()
        (tmp_path / "one" / name / name).write_text(name)
    release = make_release(tmp_path / "one", NAME)
    deployed = deploy_release(connection, release, base=str(base))
    for name in names:
        assert (Path(deployed.directory) / name / name).read_text() == name
    assert {path.name for path in base.parent.iterdir()} == {base.name, "one"}


def test_files_that_a_manifest_cannot_hold_are_refused(tmp_path: Path) -> None:
    (tmp_path / "new\nline").write_text("")
    with pytest.raises(BadInputError, match="printable name"):
        make_release(tmp_path, NAME)
    (tmp_path / "new\nline").unlink()
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(BadInputError, match="regular files only"):
        make_release(tmp_path, NAME)
    (tmp_path / "link").unlink()
    with pytest.raises(BadInputError, match="nothing to deploy"):
        make_release(tmp_path, NAME)


class Board:
    """A board with a release on it, and faults on order."""

    def __init__(self, server: Any, tmp_path: Path) -> None:
        self.base = tmp_path / "base"
        self.wrappers: Path = server.wrappers
        self.counter = tmp_path / "counter"
        self.log = tmp_path / "calls"

    def order(self, harm: str, number: int) -> None:
        """Has ``harm`` done at the n-th call of any program of WRAPPED; 0 only counts."""
        self.counter.write_text("")
        self.log.write_text("")
        for name in WRAPPED:
            real = shutil.which(name)
            assert real
            wrapper = self.wrappers / name
            harms = {
                "before": "kill -9 $PPID; exit 137",
                "after": f'{real} "$@"; kill -9 $PPID; exit 137',
                "full": f"echo '{name}: No space left on device' >&2; exit 1",
            }
            wrapper.write_text(
                f"#!/bin/sh\nprintf x >>{self.counter}\n"
                f"echo {name} >>{self.log}\n"
                f'[ "$(stat -c %s {self.counter})" != {number} ] || {{ {harms[harm]}; }}\n'
                f'exec {real} "$@"\n'
            )
            wrapper.chmod(0o755)

    def heal(self) -> int:
        """Ends all harm; returns how many programs were called."""
        for name in WRAPPED:
            (self.wrappers / name).unlink(missing_ok=True)
        return self.counter.stat().st_size


@pytest.fixture
def board(server: Any, tmp_path: Path) -> Iterator[Board]:
    made = Board(server, tmp_path)
    made.counter.write_text("")
    yield made
    made.heal()


def count_calls(board: Board, connection: Connection, releases: tuple[Release, ...]) -> int:
    """Deploys the second release over the first and counts what that calls on the board."""
    deploy_release(connection, releases[0], base=str(board.base))
    board.order("before", 0)
    deploy_release(connection, releases[1], base=str(board.base))
    return board.heal()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("harm", ["before", "after", "full"])
def test_a_fault_at_any_command_leaves_what_ran_before(
    board: Board, server: Any, tmp_path: Path, harm: str, record_property: Any
) -> None:
    old, new, next_one = (write_release(tmp_path / name, name) for name in ("old", "new", "next"))
    with server.connect() as connection:
        calls = count_calls(board, connection, (old, new))
        assert calls > 12
        survived = []
        shutil.rmtree(board.base)
        deploy_release(connection, old, base=str(board.base))
        shutil.copytree(board.base, tmp_path / "kept", symlinks=True)
        for number in range(1, calls + 1):
            shutil.rmtree(board.base)
            shutil.copytree(tmp_path / "kept", board.base, symlinks=True)
            board.order(harm, number)
            failed = ""
            try:
                deploy_release(connection, new, base=str(board.base))
            except EdgekilnError as error:
                failed = str(error)
                assert "\n" not in failed
            program = board.log.read_text().splitlines()[number - 1]
            board.heal()
            step = f"{harm} call {number} ({program}): {failed or 'no failure'}"
            assert answer_of(board.base) == ("old" if failed else "new") or (
                # The link was replaced already; only cleaning up has failed.
                failed and answer_of(board.base) == "new"
            ), step
            infos = list_releases(connection, NAME, base=str(board.base))
            assert all(info.is_whole for info in infos), step
            assert infos[0].is_current, step
            deploy_release(connection, next_one, base=str(board.base))
            assert answer_of(board.base) == "next", step
            assert leftovers(board.base) == [], step
            survived.append(step)
    record_property("faults", len(survived))
    print(*survived, f"{len(survived)} faults", sep="\n")


def make_client_fault(directory: Path, program: str, number: int, harm: str) -> None:
    """Writes a wrapper of ssh or rsync for this side that does harm at its n-th call."""
    real = shutil.which(program)
    directory.mkdir(exist_ok=True)
    counter = directory / "counter"
    counter.write_text("")
    harms = {
        "cut before": "echo 'Connection closed by remote host' >&2; exit 255",
        "cut after": f'{real} "$@" >/dev/null 2>&1; echo "Connection reset by peer" >&2; exit 255',
        "killed": "kill -9 $$",
    }
    wrapper = directory / program
    wrapper.write_text(
        f"#!/bin/sh\nprintf x >>{counter}\n"
        f'[ "$(stat -c %s {counter})" != {number} ] || {{ {harms[harm]}; }}\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut before", "cut after", "killed"])
def test_a_lost_connection_at_any_step_leaves_what_ran_before(
    server: Any, connection: Connection, tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, next_one = (write_release(tmp_path / name, name) for name in ("old", "new", "next"))
    base, faults, path = tmp_path / "base", tmp_path / "faults", os.environ["PATH"]
    steps = []
    deploy_release(connection, old, base=str(base))
    shutil.copytree(base, tmp_path / "kept", symlinks=True)
    # lock, prepare, push (ssh below rsync), verify, self-test, activate; and rsync itself
    for program, number in [*(("ssh", n) for n in range(1, 7)), ("rsync", 1)]:
        if harm == "cut after" and program == "ssh" and number in (1, 3):
            continue  # the channels of the lock and of rsync end when the deploy does
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", base, symlinks=True)
        make_client_fault(faults, program, number, harm)
        monkeypatch.setenv("PATH", f"{faults}:{path}")
        with pytest.raises(EdgekilnError) as caught:
            deploy_release(connection, new, base=str(base))
        monkeypatch.setenv("PATH", path)
        shutil.rmtree(faults)
        step = f"{harm} {program} {number}: {caught.value}"
        assert "\n" not in str(caught.value)
        last = (program, number, harm) == ("ssh", 6, "cut after")
        assert answer_of(base) == ("new" if last else "old"), step
        deploy_release(connection, next_one, base=str(base))
        assert answer_of(base) == "next"
        assert leftovers(base) == []
        steps.append(step)
    print(*steps, f"{len(steps)} faults", sep="\n")


def test_files_damaged_on_the_way_are_noticed(
    board: Board, server: Any, connection: Connection, tmp_path: Path
) -> None:
    old, new = (write_release(tmp_path / name, name) for name in ("old", "new"))
    deploy_release(connection, old, base=str(board.base))
    rsync = server.wrappers / "rsync"
    rsync.write_text(
        '#!/bin/sh\n/usr/bin/rsync "$@"\ncode=$?\n'
        f"printf rot >>'{board.base}/{NAME}/releases/.incoming-{new.id}/data'\nexit $code\n"
    )
    rsync.chmod(0o755)
    with pytest.raises(CheckFailedError, match="files are damaged; what ran before still runs"):
        deploy_release(connection, new, base=str(board.base))
    board.heal()
    assert answer_of(board.base) == "old"
    assert deploy_release(connection, new, base=str(board.base)).id == new.id
    assert leftovers(board.base) == []


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("#!/bin/sh\nexit 1\n", "self-test failed with code 1"),
        ("#!/bin/sh\nkill -9 $$\n", "self-test failed with code 137"),
        ("#!/bin/sh\nsleep 9\n", "not done within 1 s"),
        ("#!/no/such/interpreter\n", "cannot be run: made for"),
        ("\x7fELF\x02\x01\x01" + "\0" * 9 + "\x02\0\xff\0" + "\0" * 44, "cannot be run: made for"),
    ],
)
def test_a_failing_self_test_keeps_what_ran_before(
    connection: Connection, tmp_path: Path, base: Path, program: str, message: str
) -> None:
    old = write_release(tmp_path / "old", "old")
    deploy_release(connection, old, base=str(base))
    write_release(tmp_path / "new", "new")
    (tmp_path / "new/edgekiln-run").write_bytes(program.encode("latin-1"))
    new = make_release(tmp_path / "new", NAME)
    with pytest.raises(CheckFailedError, match=message):
        deploy_release(connection, new, base=str(base), selftest_timeout_s=1)
    assert answer_of(base) == "old"
    assert leftovers(base) == []


def test_wrong_architecture_is_found_before_anything_is_sent(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    write_release(tmp_path / "one", "one")
    release = make_release(tmp_path / "one", NAME, architecture="armv6l")
    with pytest.raises(BadInputError, match="another architecture; got armv6l; allowed: "):
        deploy_release(connection, release, base=str(base), facts=find_facts(connection))
    assert not base.exists()


def test_a_full_disk_leaves_what_ran_before(
    connection: Connection, tmp_path: Path, base: Path
) -> None:
    base.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "edgekiln-test", str(base)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    try:
        old = write_release(tmp_path / "old", "old")
        deploy_release(connection, old, base=str(base))
        large = write_release(tmp_path / "large", "large", size=100_000)
        with pytest.raises(BoardError, match="its disk is full: make room there"):
            deploy_release(connection, large, base=str(base))
        assert answer_of(base) == "old"
        new = write_release(tmp_path / "new", "new")
        assert deploy_release(connection, new, base=str(base)).id == new.id
        assert answer_of(base) == "new"
        assert leftovers(base) == []
    finally:
        subprocess.run(["umount", str(base)], check=True)
