"""Compiled models as packages for other build systems.

Each package holds the model's C files, a self-test on the golden pair, an example that runs it,
what its build system wants to know, and the licence of the kernels. The texts that are not
generated lie in ``templates/<kind>/`` as they will lie in the package; ``@name@`` and the like
stand for what differs between models.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from packaging.version import Version

from edgekiln import __version__
from edgekiln.errors import BadInputError
from edgekiln.export.bundles.examples import example_values
from edgekiln.export.bundles.interface import Interface
from edgekiln.export.bundles.selftest import (
    emit_selftest,
    emit_selftest_header,
    selftest_header_name,
)
from edgekiln.export.bundles.single import amalgamate
from edgekiln.export.compiler import REPORT_NAME, CompiledModel, bundle_directory
from edgekiln.export.targets import find_target
from edgekiln.files import sha256_bytes, write_bytes, write_json

_PLACEHOLDER = re.compile(r"@(\w+)@")


@dataclass(frozen=True)
class Package:
    """A package that was written.

    Attributes:
        path: The directory or .zip file.
        report: What ``compile_report.json`` beside it holds.
    """

    path: Path
    report: dict[str, Any]


@dataclass(frozen=True)
class _Layout:
    """Where a build system wants the files.

    Attributes:
        public: Folder of the headers that an application includes.
        private: Folder of everything else that is compiled. A model's own one in Arduino
            libraries, because all that lies in ``src`` itself is offered to sketches.
        max_name: The longest package name that it takes, or None.
        zipped: Whether the package is one .zip file.
    """

    public: str = "include"
    private: str = "src"
    max_name: int | None = None
    zipped: bool = False


_LAYOUTS = {
    "arduino": _Layout(public="src", private="src/@name@", max_name=63, zipped=True),
    "platformio": _Layout(max_name=100),
    "zephyr": _Layout(),
    "esp-idf": _Layout(),
    "cmake": _Layout(),
    "single": _Layout(public=".", private="."),
}

BUNDLES = tuple(_LAYOUTS)
"""The build systems that packages are made for; ``single`` is two files for any of them."""


def package_name(name: str) -> str:
    """Returns what a model's package is called, which no package of the system itself is."""
    return f"edgekiln_{name}"


def package_files(compiled: CompiledModel, kind: str) -> dict[str, str]:
    """Returns the text of each file of a package by its path in it.

    Raises:
        BadInputError: The kind is unknown, or the model's name too long for it.
    """
    layout = _find_layout(kind)
    interface = Interface(compiled)
    _check_name(interface.name, kind, layout.max_name)
    values = _about(interface) | example_values(interface)
    files = {"LICENSE": _read(resources.files("edgekiln.export") / "kernels/LICENSE")}
    if kind == "single":
        files |= amalgamate(interface)
    else:
        files |= _place(interface, layout.public, _fill(layout.private, values))
    templates = resources.files("edgekiln.export.bundles") / "templates" / kind
    for path, text in _read_tree(templates).items():
        files[_fill(path, values)] = _fill(text, values)
    return dict(sorted(files.items()))


def write_package(compiled: CompiledModel, kind: str, directory: Path) -> Package:
    """Writes a package and the compiler's report; the directory is replaced whole.

    The same model and options give the same bytes.

    Args:
        compiled: The model.
        kind: One of `BUNDLES`.
        directory: Gets ``compile_report.json`` and the package: a directory or, for Arduino,
            a .zip file.

    Raises:
        BadInputError: As `package_files`, or the directory holds something else, or cannot be
            written.
    """
    files = package_files(compiled, kind)
    package = package_name(compiled.report["name"])
    if _LAYOUTS[kind].zipped:
        written = {f"{package}.zip": _zip(package, files)}
    else:
        written = {f"{package}/{path}": text.encode("utf-8") for path, text in files.items()}
    report = compiled.report | {
        "bundle": kind,
        "files": {path: sha256_bytes(data) for path, data in written.items()},
    }
    with bundle_directory(directory) as new:
        for path, data in written.items():
            write_bytes(new / path, data)
        write_json(new / REPORT_NAME, report)
    name = f"{package}.zip" if _LAYOUTS[kind].zipped else package
    return Package(directory / name, report)


def _find_layout(kind: str) -> _Layout:
    if kind not in _LAYOUTS:
        raise BadInputError(
            "unknown build system", where="--bundle", got=kind, allowed=", ".join(BUNDLES)
        )
    return _LAYOUTS[kind]


def _check_name(name: str, kind: str, max_name: int | None) -> None:
    if max_name is not None and len(package_name(name)) > max_name:
        raise BadInputError(
            f"the model's name is too long for {kind}",
            where="--name",
            got=f"{len(name)} characters",
            allowed=f"up to {max_name - len(package_name(''))}",
        )


def _place(interface: Interface, public: str, private: str) -> dict[str, str]:
    """Returns the model's files and the self-test in the folders where they belong."""
    header, selftest_header = f"{interface.name}.h", selftest_header_name(interface)
    files = {f"{private}/{name}": text for name, text in interface.compiled.files.items()}
    files[f"{public}/{header}"] = files.pop(f"{private}/{header}")
    files[f"{public}/{selftest_header}"] = emit_selftest_header(interface)
    files[f"{private}/{interface.name}_selftest.c"] = emit_selftest(interface)
    return files


def _about(interface: Interface) -> dict[str, str]:
    """Returns what the templates say of a model, by placeholder."""
    report = interface.compiled.report
    name = interface.name
    return {
        "name": name,
        "NAME": interface.upper,
        "package": package_name(name),
        "PACKAGE": package_name(name).upper(),
        # Package managers want three numbers, and the model itself has none to give.
        "version": ".".join(str(part) for part in (*Version(__version__).release, 0, 0)[:3]),
        "edgekiln": __version__,
        "target": report["target"],
        "target_description": find_target(report["target"]).description,
        "sha256": report["model_sha256"],
        "arena_bytes": f"{report['arena_bytes']:,}",
        "constants_bytes": f"{report['constants_bytes']:,}",
    }


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def _read(file: Traversable) -> str:
    return file.read_text(encoding="utf-8")


def _read_tree(root: Traversable, below: str = "") -> dict[str, str]:
    """Returns the text of all files below a folder, by their paths in it."""
    found: dict[str, str] = {}
    for entry in root.iterdir():
        path = f"{below}{entry.name}"
        if entry.is_dir():
            found |= _read_tree(entry, f"{path}/")
        else:
            found[path] = _read(entry)
    return found


def _zip(root: str, files: Mapping[str, str]) -> bytes:
    """Returns an archive whose bytes depend on the files alone.

    It is not compressed: compressors differ in what they write, and build systems unpack it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, text in files.items():
            entry = zipfile.ZipInfo(f"{root}/{path}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, whatever runs here
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, text.encode("utf-8"))
    return buffer.getvalue()
