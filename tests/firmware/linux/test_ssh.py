from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.linux import ssh
from edgekiln.firmware.linux.ssh import (
    Completed,
    Connection,
    Host,
    check_remote_path,
    explain_rsync,
    explain_script,
    explain_ssh,
    parse_host,
)

NASTY = (
    "a b",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned",
    "a & touch pwned",
    "a | touch pwned",
    "> pwned",
    "$HOME",
    "*",
    "\\",
    "-rf",
    "--rsh=touch pwned",
    "-oProxyCommand=touch pwned",
    "new\nline",
    "ümlaut",
    "'; touch pwned; '",
)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("pi@raspberrypi.local", Host("raspberrypi.local", "pi")),
        ("mypi", Host("mypi")),
        ("10.0.0.7:2222", Host("10.0.0.7", "", 2222)),
        ("pi@10.0.0.7:22", Host("10.0.0.7", "pi", 22)),
        ("[2001:db8::7]", Host("2001:db8::7")),
        ("pi@[2001:db8::7]:2222", Host("2001:db8::7", "pi", 2222)),
        ("my_pi-4.lan", Host("my_pi-4.lan")),
    ],
)
def test_hosts_are_read_and_written(text: str, host: Host) -> None:
    assert parse_host(text) == host
    if not text.endswith("::7]"):
        assert str(host) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "pi@", "@host", "host:", "host:0", "host:65536", "host:22x", "host:2²", "a:b:c"),
        *("-oProxyCommand=x", "pi@-h", "-l@host", "a@b@c", "pi@host ", " host", "ho\nst", "ho\0st"),
        *(
            "host\n",
            "pi@host\n",
            "host:22\n",
            "[::1",
            "[::1]:",
            "[::1]x",
            "[x]",
            "ssh://host",
            "a/b",
        ),
        *(
            "$(id)",
            "`id`",
            "a;b",
            "a'b",
            'a"b',
            "a|b",
            "..",
            "ssh://host",
            ".host",
            "h" * 256,
            "pi@ümlaut",
        ),
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="not a host") as caught:
        parse_host(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12))
def test_accepted_hosts_hold_nothing_that_shells_or_ssh_could_read(text: str) -> None:
    try:
        host = parse_host(text)
    except BadInputError:
        return
    assert not set(host.destination) - set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-@:"
    )
    assert not host.destination.startswith("-") and not host.name.startswith("-")


@pytest.mark.parametrize("path", ["", "-x", "~/x", "a/../b", "..", "/", ".", "a\nb", "a\0b", "//"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(BadInputError, match="not a path"):
        check_remote_path(path)


def test_host_keys_are_checked_as_the_user_says(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("")
    with Connection(parse_host("pi@h:7"), ssh_config=config) as connection:
        argv = connection.command("echo $1", "a b")
    assert "BatchMode=yes" in argv
    assert not any("StrictHostKeyChecking" in word or "KnownHosts" in word for word in argv)
    assert argv[argv.index("-F") + 1] == str(config)
    assert argv[argv.index("-p") + 1] == "7"
    assert argv[-3:] == ["--", "pi@h", "exec sh -c 'echo $1' 'edgekiln' 'a b'"]


def test_configuration_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ssh.CONFIG_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(BadInputError, match="no such ssh configuration file"):
        Connection(parse_host("h"))


def test_control_socket_is_private_and_goes_away(server: Any) -> None:
    with server.connect() as connection:
        connection.run("true")
        socket = next(
            Path(word.partition("=")[2])
            for word in connection.command("")
            if word.startswith("ControlPath=")
        )
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_ISSOCK(socket.stat().st_mode)
    assert not socket.parent.exists()


@pytest.mark.parametrize("word", [*NASTY, "\\'", "a\\", "\\\\", "%self"])
def test_no_backslash_is_where_fish_reads_it_otherwise(tmp_path: Path, word: str) -> None:
    config = tmp_path / "config"
    config.write_text("")
    with Connection(parse_host("pi@h"), ssh_config=config) as connection:
        line = connection.command("printf '\\n\\\\'", word)[-1]
    # In fish \\' and \\\\ mean something between single quotes, so there may be no backslash.
    unquoted = re.sub(r"'[^'\\]*'|\"(\\\\|')\"", "", line)
    assert unquoted.split() == ["exec", "sh", "-c"], line


@pytest.mark.parametrize("word", NASTY)
def test_arguments_arrive_as_they_are(connection: Connection, word: str) -> None:
    script = 'cd "$1" && printf "%s|" "$2" "$#" && cat'
    done = connection.run(script, "/tmp", word, stdin=b"\x00\xff")
    assert done.stdout == word.encode() + b"|2|\x00\xff"
    assert not Path("/tmp/pwned").exists()


@settings(max_examples=15)
@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
def test_any_text_arrives_as_it_is(connection: Connection, word: str) -> None:
    assert connection.run('printf %s "$1"', word).stdout == word.encode()


@pytest.mark.parametrize("name", [word for word in NASTY if "\n" not in word and word != "-rf"])
def test_names_run_no_command_when_files_are_sent(
    connection: Connection, tmp_path: Path, name: str
) -> None:
    source, there = tmp_path / "source", tmp_path / "there"
    source.mkdir()
    there.mkdir()
    file = name.replace("/", "_")
    (source / file).write_bytes(b"data")
    target = f"{there}/{file}"
    assert connection.push(source, target) == 4
    assert (there / file / file).read_bytes() == b"data"
    connection.pull(target, tmp_path / "back")
    assert (tmp_path / "back" / file).read_bytes() == b"data"
    assert [path.name for path in there.iterdir()] == [file]
    assert not list(Path.cwd().glob("pwned"))
    assert not (Path.home() / "pwned").exists()


def test_files_that_are_there_are_not_sent_again(connection: Connection, tmp_path: Path) -> None:
    source, there = tmp_path / "source", tmp_path / "there"
    (source / "sub").mkdir(parents=True)
    (source / "sub/a").write_bytes(bytes(1000))
    (source / "b").write_bytes(b"12345")
    there.mkdir()
    assert connection.push(source, f"{there}/1") == 1005
    os.utime(source / "b", (1, 1))
    assert connection.push(source, f"{there}/1") == 0
    (source / "b").write_bytes(b"1234")
    assert connection.push(source, f"{there}/1") == 4
    (source / "sub/a").unlink()
    assert connection.push(source, f"{there}/1") == 0
    assert not (there / "1/sub/a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"UserKnownHostsFile": "/dev/null"}, "host key is not known here; log in once"),
        ({"UserKnownHostsFile": "{other}"}, "host key has changed.*ssh-keygen -R"),
        ({"IdentityFile": "{fresh}"}, "accepts none of your keys; .*ssh-copy-id virtual-pi"),
        ({"Port": "1"}, "refuses connections"),
        ({"HostName": "no-such-host.invalid"}, "no host of this name is known"),
        ({"Nonsense": "1"}, "ssh configuration cannot be used"),
    ],
)
def test_failures_are_one_clear_line(
    server: Any, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "fresh")]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    key = (tmp_path / "fresh.pub").read_text().split()
    (tmp_path / "other").write_text(f"[127.0.0.1]:{server.port} {key[0]} {key[1]}\n")
    values = {"other": str(tmp_path / "other"), "fresh": str(tmp_path / "fresh")}
    lines = server.config.read_text().splitlines()
    for name, value in change.items():
        lines = [line for line in lines if line.split()[0] != name]
        lines.append(f"  {name} {value.format(**values)}")
    config = tmp_path / "config"
    config.write_text("\n".join(lines) + "\n")
    with (
        Connection(server.host, ssh_config=config) as connection,
        pytest.raises(BoardError, match=message) as caught,
    ):
        connection.run("true")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("virtual-pi: ")


def test_a_login_shell_that_prints_is_named(server: Any) -> None:
    wrapper = server.wrappers / "sh"
    wrapper.write_text('#!/bin/sh\necho "Welcome to $(id -un)\'s Pi!"\nexec /bin/sh "$@"\n')
    wrapper.chmod(0o755)
    try:
        with (
            server.connect() as connection,
            pytest.raises(
                BoardError, match=r"login shell prints .* got \"Welcome .*Pi!\"; ssh vir"
            ),
        ):
            connection.run("true")
    finally:
        wrapper.unlink()


def test_a_login_that_hangs_is_no_killed_ssh(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "LOGIN_TIMEOUT_S", 2.0)
    wrapper = server.wrappers / "sh"
    wrapper.write_text("#!/bin/sh\nexec sleep 60\n")
    wrapper.chmod(0o755)
    try:
        with (
            server.connect() as connection,
            pytest.raises(BoardError, match="virtual-pi: no answer within 2 s"),
        ):
            connection.run("true")
    finally:
        wrapper.unlink()


def test_killed_ssh_and_failed_scripts_are_told_apart(connection: Connection) -> None:
    with pytest.raises(BoardError, match="virtual-pi: it went wrong"):
        connection.run("echo noise >&2; echo 'edgekiln: it went wrong' >&2; exit 3")
    with pytest.raises(BoardError, match="killed by signal 9"):
        connection.run("sh -c 'kill -9 $$'; exit 137")
    with pytest.raises(BoardError, match="no answer within"):
        connection.run("sleep 5", timeout_s=0.5)
    assert connection.run("exit 7", check=False).returncode == 7


@pytest.mark.parametrize(
    ("returncode", "stderr", "message"),
    [
        (-9, "", "killed by signal 9"),
        (255, "ssh: connect to host h port 22: Connection timed out\r\n", "does not answer"),
        (255, "ssh: connect to host h port 22: No route to host", "no way to it"),
        (255, "Timeout, server h not responding.", "does not answer"),
        (255, "client_loop: send disconnect: Broken pipe", "connection was lost"),
        (255, "kex_exchange_identification: read: Connection reset by peer", "was lost"),
        (255, "", "the connection was lost"),
        (255, "something \x1b[31mnew\n", r"ssh failed: something \?\[31mnew$"),
    ],
)
def test_what_ssh_says_is_understood(returncode: int, stderr: str, message: str) -> None:
    with pytest.raises(BoardError, match=message) as caught:
        raise explain_ssh(Host("h", "pi", 22), returncode, stderr)
    assert str(caught.value).startswith("pi@h:22: ")


def test_full_disks_and_missing_programs_are_named() -> None:
    full = 'rsync: [receiver] write failed on "/x": No space left on device (28)\nrsync error: …'
    assert "disk is full" in explain_rsync(Completed(11, b"", full))
    assert "disk is full" in explain_script(Completed(1, b"", "mkdir: x: No space left on device"))
    missing = "sh: 1: rsync: not found\nrsync: connection unexpectedly closed (0 bytes received)"
    assert "apt-get install rsync" in explain_rsync(Completed(12, b"", missing))
    assert explain_script(Completed(4, b"", "")) == "a command on it failed with code 4"
