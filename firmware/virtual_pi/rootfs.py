"""Root file systems of Debian for another architecture, made from packages alone.

Packages are unpacked, their maintainer scripts are not run: that would need an emulator and takes
minutes. What those scripts would have left behind and what a Pi needs is written here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgekiln.console import progress
from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.files import new_directory, sha256_file, write_json
from edgekiln.firmware.toolchain import install_hint

Architecture = Literal["arm64", "armhf"]

SUITE = "bookworm"  # what Raspberry Pi OS 12 is made of
_PYTHON = "3.11"
_MIRROR = "http://deb.debian.org/debian"
_FREE_BYTES = 1 << 30

PACKAGES = (
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "login",
    "mawk",
    "mount",
    "passwd",
    "procps",
    "sed",
    "tar",
    "util-linux",
    "openssh-server",
    "openssh-sftp-server",
    "rsync",
    "python3",
    "python3-venv",
    # what the wheels of the runtimes are linked with
    "libgomp1",
    "libstdc++6",
    "zlib1g",
)

#: Links that the packages' scripts make.
_LINKS = {"usr/bin/awk": "mawk", "usr/bin/which": "which.debianutils", "usr/bin/sh": "dash"}
_TEXTS = {
    "etc/hostname": "raspberrypi\n",
    "etc/hosts": "127.0.0.1 localhost raspberrypi\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/resolv.conf": "",
    "etc/shells": "/bin/sh\n/bin/bash\n",
    "etc/edgekiln-virtual-pi": "This is no Raspberry Pi: edgekiln made it for an emulator.\n",
}
USER, USER_ID = "pi", 1000
_PASSWD = ("sshd:x:101:65534::/run/sshd:/usr/sbin/nologin", "pi:x:1000:1000::/home/pi:/bin/bash")


@dataclass(frozen=True)
class Root:
    """A root file system in the cache. Nothing may be written to it.

    Attributes:
        architecture: Debian's name of its architecture.
        path: The directory that is its ``/``.
        packages: The version of every package in it.
    """

    architecture: Architecture
    path: Path
    packages: Mapping[str, str]

    def damaged_files(self) -> list[str]:
        """Returns the files that are missing, differ from when they were made, or are new."""
        wanted = json.loads((self.path.parent / "files.json").read_text(encoding="utf-8"))
        got = _describe_files(self.path)
        return sorted(name for name in wanted.keys() | got if wanted.get(name) != got.get(name))


def cache_directory() -> Path:
    """Returns the directory for what is expensive to make: EDGEKILN_CACHE, or the user's."""
    if "EDGEKILN_CACHE" in os.environ:
        return Path(os.environ["EDGEKILN_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgekiln"


def build_root(architecture: Architecture, cache: Path | None = None) -> Root:
    """Returns a Pi's root file system, built if it is not in the cache.

    Args:
        architecture: ``arm64`` or ``armhf``.
        cache: Where it is kept; `cache_directory` by default.

    Raises:
        BadInputError: The cache cannot be written or has no room.
        ToolMissingError: A program is missing, or the packages cannot be had.
    """
    return build_packages(architecture, "pi", PACKAGES, _finish_pi, cache)


def build_packages(
    architecture: Architecture,
    name: str,
    packages: Sequence[str],
    finish: Callable[[Path], None],
    cache: Path | None = None,
) -> Root:
    """Returns a directory with packages unpacked, built if it is not in the cache.

    Args:
        architecture: ``arm64`` or ``armhf``.
        name: What it is, for its name in the cache.
        packages: Debian's names; what they depend on comes along.
        finish: Turns what was unpacked into what is wanted.
        cache: Where it is kept; `cache_directory` by default.

    Raises:
        BadInputError: The architecture is not known, or the cache cannot be written.
        ToolMissingError: A program is missing, or the packages cannot be had.
    """
    if architecture not in get_args(Architecture):
        raise BadInputError(
            "no such architecture", got=architecture, allowed=" ".join(get_args(Architecture))
        )
    recipe = {"suite": SUITE, "packages": sorted(packages), "code": sha256_file(Path(__file__))}
    recipe["finish"] = sha256_file(Path(finish.__code__.co_filename))
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    place = (cache or cache_directory()).absolute() / f"{name}-{architecture}-{key}"
    with locked(place):
        if not place.is_dir():
            for leftover in place.parent.glob(f".{place.name}.*"):  # of a build that was killed
                remove_tree(leftover)
            with new_directory(place) as directory:
                _build(architecture, packages, finish, directory)
    versions = json.loads((place / "packages.json").read_text(encoding="utf-8"))
    return Root(architecture, place / "root", versions)


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Keeps other processes from making the same thing in the cache at the same time.

    Raises:
        BadInputError: The cache cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        stream = place.with_name(f"{place.name}.lock").open("wb")
    except OSError as error:
        raise BadInputError(
            f"cannot be written: {error.strerror}",
            where=place.parent,
            hint="set EDGEKILN_CACHE to a directory that can",
        ) from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def remove_tree(path: Path) -> None:
    """Removes a directory, also where parts of it are read-only."""
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(directory, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def find_program(name: str, package: str) -> str:
    """Returns the path of a program.

    Raises:
        ToolMissingError: It is not installed; says which Debian package has it.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise ToolMissingError(f"{name} is not installed", hint=install_hint([package]))
    return path


def guard_command(scratch: Path | None) -> list[str]:
    """Returns the beginning of a command that ends with whoever holds its standard input."""
    find_program("setpriv", "util-linux")
    script = Path(__file__).with_name("guard.sh")
    return ["sh", str(script), str(scratch) if scratch else ""]


def _build(
    architecture: Architecture,
    packages: Sequence[str],
    finish: Callable[[Path], None],
    directory: Path,
) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < _FREE_BYTES:
        raise BadInputError(
            "no room for a root file system",
            where=directory.parent,
            got=f"{free_bytes >> 20} MiB free",
            allowed=f"{_FREE_BYTES >> 20} MiB",
            hint="set EDGEKILN_CACHE to a directory that has",
        )
    root = directory / "root"
    with progress() as bar:
        task = bar.add_task(f"Debian packages for {architecture}", total=None, note="")
        _unpack(architecture, packages, root, lambda note: bar.update(task, note=note))
        bar.update(task, total=1, completed=1, note="")
    archives = root / "var/cache/apt/archives"
    versions = dict(name.stem.split("_")[:2] for name in sorted(archives.glob("*.deb")))
    if not versions:
        raise ToolMissingError("mmdebstrap left no packages", where=root)
    shutil.rmtree(archives)
    finish(root)
    write_json(directory / "packages.json", {k: v.replace("%3a", ":") for k, v in versions.items()})
    write_json(directory / "files.json", _describe_files(root))


def _unpack(
    architecture: str, packages: Sequence[str], root: Path, report: Callable[[str], None]
) -> None:
    """Runs mmdebstrap. What it makes belongs to root, or to the user where that is not root."""
    is_root = os.geteuid() == 0
    output = root if is_root else root.with_suffix(".tar")
    command = [find_program("mmdebstrap", "mmdebstrap"), f"--architectures={architecture}"]
    command += ["--variant=extract", f"--include={','.join(packages)}", "--skip=cleanup/apt/cache"]
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", *_proxy_options()]
    command += ['--aptopt=Acquire::Retries "3"']
    command += ["--mode=root" if is_root else "--mode=unshare", SUITE, str(output), _source()]
    if is_root:
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [find_program("unshare", "util-linux"), *namespaces, *command]
    else:
        find_program("newuidmap", "uidmap")
    lines = _run_guarded(command, report)
    if lines is not None:
        text = "\n".join(lines)
        if "No space left" in text or "enough free space" in text:
            raise BadInputError("no room for a root file system", where=root.parent)
        errors = [line for line in lines if line.startswith("E:")] or lines[-1:]
        raise ToolMissingError(
            f"mmdebstrap cannot get the packages for {architecture}",
            got=errors[0][:200] if errors else "no message",
            hint="can apt-get update reach Debian's servers?",
        )
    if not is_root:
        root.mkdir()
        command = [
            "tar",
            "--extract",
            f"--file={output}",
            f"--directory={root}",
            "--exclude=./dev/*",
        ]
        subprocess.run(
            [*command, "--no-same-owner", "--preserve-permissions"], check=True, capture_output=True
        )
        output.unlink()


def _run_guarded(command: Sequence[str], report: Callable[[str], None]) -> list[str] | None:
    """Runs a command that must not outlive this process.

    Returns:
        None if it succeeded, the end of what it said otherwise.
    """
    lines: list[str] = []
    with subprocess.Popen(
        [*guard_command(None), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            for line in process.stdout:
                lines = [*lines[-50:], line.strip()]
                report(line.strip().removeprefix("I: ")[:40])
        finally:
            process.stdin.close()  # the end of the command, should it still run
    return lines if process.returncode else None


def _source() -> str:
    """Returns an apt source with this system's mirror where it is the same Debian.

    Updates between point releases are left out: nobody but its owner reaches a virtual Pi.
    """
    mirror = _MIRROR
    if shutil.which("apt-get"):
        output = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        match = re.search(rf"^Debian {SUITE} (https?://\S+)$", output, re.MULTILINE)
        mirror = match[1] if match else mirror
    return f"deb {mirror} {SUITE} main"


def _proxy_options() -> list[str]:
    """Returns mmdebstrap's options for the proxies that apt uses on this system."""
    if not shutil.which("apt-config"):
        return []
    output = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, check=False
    ).stdout
    proxies = re.findall(r'^(Acquire::https?::Proxy "[^"]+";)$', output, re.MULTILINE)
    return [f"--aptopt={proxy}" for proxy in proxies]


def _finish_pi(root: Path) -> None:
    """Does what maintainer scripts would have done, and adds the user of a Pi."""
    masters = root / "usr/share/base-passwd"
    passwd = (masters / "passwd.master").read_text().replace(":*:", ":x:").splitlines()
    group = (masters / "group.master").read_text().replace(":*:", ":x:").splitlines()
    texts = dict(_TEXTS)
    texts["etc/passwd"] = "\n".join([*passwd, *_PASSWD, ""])
    texts["etc/group"] = "\n".join([*group, f"{USER}:x:{USER_ID}:", ""])
    names = [line.split(":")[0] for line in [*passwd, *_PASSWD]]
    texts["etc/shadow"] = "".join(f"{name}:*:19000:0:99999:7:::\n" for name in names)
    for name, text in texts.items():
        (root / name).unlink(missing_ok=True)
        (root / name).write_text(text, encoding="ascii")
    (root / "etc/shadow").chmod(0o600)
    for name, target in _LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    for name in ("dev", "proc", "run", "sys", "tmp", "root", "mnt"):
        (root / name).mkdir(exist_ok=True)
    shutil.rmtree(root / "dev")
    (root / "dev").mkdir()
    (root / "tmp").chmod(0o1777)
    home = root / "home" / USER
    home.mkdir(parents=True)
    home.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(home, USER_ID, USER_ID)
    for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info"):
        shutil.rmtree(root / name, ignore_errors=True)
    _compile_python(root)


def _compile_python(root: Path) -> None:
    """Compiles Python's library where this system has the same version: imports are slow else."""
    python = shutil.which(f"python{_PYTHON}")
    if python:
        options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
        libraries = [str(root / f"usr/lib/python{_PYTHON}"), str(root / "usr/lib/python3")]
        subprocess.run(
            [python, "-I", "-m", "compileall", *options, *libraries],
            capture_output=True,
            check=False,  # some of the files are for other versions
        )


def _describe_files(root: Path) -> dict[str, str]:
    """Returns kind, permissions, and content of everything below a directory."""
    described = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            text = f"link {os.readlink(path)}"
        elif path.is_file():
            text = f"file {status.st_mode & 0o7777:o} {sha256_file(path)}"
        else:
            text = f"other {status.st_mode:o}"
        described[str(path.relative_to(root))] = text
    return described
