"""What build systems ask of a package's manifests: their rules, held against what is written.

Sources of the rules:

- Arduino: library specification 1.5 (rev. 2.2) and sketch specification, in arduino/arduino-cli,
  docs/library-specification.md and docs/sketch-specification.md
- PlatformIO: platformio/platformio-core, platformio/package/manifest/schema.py, and
  docs.platformio.org/en/latest/manifests/library-json
- Zephyr: zephyrproject-rtos/zephyr, METADATA_SCHEMA in scripts/zephyr_module.py
- ESP-IDF: idf_component_tools/manifest/models.py of PyPI's idf-component-manager, and
  docs.espressif.com/projects/idf-component-manager, "idf_component.yml Manifest File"
- semver.org 2.0.0
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from edgekiln.export.bundles import package_files, package_name
from edgekiln.export.compiler import c_name_of, compile_model

MODEL = Path(__file__).parent.parent / "golden" / "digits_mlp_int8.tflite"

# The names that c_name_of makes of these files: as awkward as names get.
FILES = ("kws.tflite", "Größe 9.tflite", "main.tflite", "test.tflite", "a__b_.tflite", "9x.tflite")

SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")

Files = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module", params=FILES)
def package(request: pytest.FixtureRequest) -> tuple[str, Files]:
    """A model's name, and a function that returns the files of its package for a system."""
    name = c_name_of(Path(request.param))
    compiled = compile_model(MODEL.read_bytes(), name=name)
    return name, lambda kind: package_files(compiled, kind)


def test_arduino(package: tuple[str, Files]) -> None:
    name, files_for = package
    files = files_for("arduino")
    lines = files["library.properties"].splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    assert len(properties) == len(lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category"}
    assert required | {"url", "architectures"} <= properties.keys()
    optional = {"depends", "dot_a_linkage", "includes", "precompiled", "ldflags"}
    assert properties.keys() <= required | {"url", "architectures"} | optional
    assert all(properties.values())
    # Letters, digits, spaces, _ . -, a letter or digit first; "Arduino…" is reserved.
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]*", properties["name"])
    assert not properties["name"].lower().startswith("arduino")
    assert SEMVER.fullmatch(properties["version"])
    assert properties["category"] in {
        *("Display", "Communication", "Signal Input/Output", "Sensors", "Device Control"),
        *("Timing", "Data Storage", "Data Processing", "Other"),
    }
    assert properties["url"].startswith("https://")
    # The folder's name: up to 63 of these characters.
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", package_name(name))
    # src is compiled with its subfolders; headers in src itself are for sketches.
    headers = {path for path in files if re.fullmatch(r"src/[^/]+\.h", path)}
    assert headers == {f"src/{header}" for header in properties["includes"].split(",")}
    compiled = [path for path in files if path.endswith((".c", ".cpp", ".S"))]
    assert compiled and all(path.startswith("src/") for path in compiled)
    # A sketch lies in a folder of its name, which follows the rule of library folders.
    (sketch,) = [PurePosixPath(path) for path in files if path.endswith(".ino")]
    assert sketch.parts[0] == "examples" and sketch.parent.name == sketch.stem


def test_platformio(package: tuple[str, Files]) -> None:
    name, files_for = package
    files = files_for("platformio")
    manifest = json.loads(files["library.json"])
    assert re.fullmatch(r"[^:;/,@<>]{1,100}", manifest["name"])
    assert manifest["name"] == package_name(name)
    assert SEMVER.fullmatch(manifest["version"])
    assert 1 <= len(manifest["description"]) <= 255  # the registry's limit; the schema's is 1000
    assert all(re.fullmatch(r"[a-z\d\-+. ]{1,50}", word) for word in manifest["keywords"])
    assert all(1 <= len(author["name"]) <= 100 for author in manifest["authors"])
    assert manifest["frameworks"] == manifest["platforms"] == "*"
    include, source = manifest["build"]["includeDir"], manifest["build"]["srcDir"]
    assert {f"{include}/{header}" for header in manifest["headers"]} == {
        path for path in files if path.startswith(f"{include}/")
    }
    assert any(re.fullmatch(rf"{source}/\w+\.c", path) for path in files)
    for example in manifest["examples"]:
        assert re.fullmatch(r"[a-zA-Z\d\-_/]+", example["name"])
        assert {f"{example['base']}/{file}" for file in example["files"]} == {
            path for path in files if path.startswith(f"{example['base']}/")
        }
    known = {"$schema", "name", "version", "description", "keywords", "authors", "frameworks"}
    assert manifest.keys() == known | {"platforms", "headers", "examples", "build"}


def test_zephyr(package: tuple[str, Files]) -> None:
    name, files_for = package
    files = files_for("zephyr")
    module = read_yaml(files["zephyr/module.yml"])
    assert module == {
        "name": package_name(name),
        "build": {"cmake": "zephyr", "kconfig": "zephyr/Kconfig"},
        "samples": ["samples"],
    }
    # Paths are those from the module's root, wherever module.yml lies.
    assert f"{module['build']['cmake']}/CMakeLists.txt" in files
    assert module["build"]["kconfig"] in files
    # Kconfig: symbols of upper-case letters, digits and _; prj.conf sets what is defined.
    symbols = re.findall(r"^config (.*)$", files["zephyr/Kconfig"], re.MULTILINE)
    assert symbols and all(re.fullmatch(r"[A-Z][A-Z0-9_]*", symbol) for symbol in symbols)
    wanted = [line.removeprefix("CONFIG_") for line in files["samples/selftest/prj.conf"].split()]
    assert wanted == [f"{symbol}=y" for symbol in symbols]
    used = set(re.findall(r"CONFIG_([A-Z0-9_]+)", files["zephyr/CMakeLists.txt"]))
    assert used == set(symbols)
    sample = read_yaml(files["samples/selftest/sample.yaml"])
    (test,) = sample["tests"]
    assert re.fullmatch(r"[\w.-]+", test)
    said = f'"{name}: %lu wrong values in the self-test\\n"'
    assert said in files["samples/selftest/src/main.c"]
    assert sample["tests"][test]["harness_config"]["regex"] == [
        f"{name}: 0 wrong values in the self-test"
    ]


def test_esp_idf(package: tuple[str, Files]) -> None:
    name, files_for = package
    files = files_for("esp-idf")
    manifest = read_yaml(files["idf_component.yml"])
    assert manifest.keys() == {"version", "description", "dependencies"}
    assert SEMVER.fullmatch(manifest["version"])
    assert manifest["dependencies"] == {"idf": ">=4.4"}
    # A component is called as its directory; README and licence make it fit for the registry.
    assert re.fullmatch(r"[a-z][a-z0-9_-]*", package_name(name))
    assert {"README.md", "LICENSE", "CMakeLists.txt"} <= files.keys()
    registered = set(re.findall(r'"(src/[^"]+)"', files["CMakeLists.txt"]))
    assert registered == {path for path in files if re.fullmatch(r"src/\w+\.c", path)}
    # Every folder of examples is a project: project.cmake, and a component called main.
    assert "tools/cmake/project.cmake" in files["examples/selftest/CMakeLists.txt"]
    main = files["examples/selftest/main/CMakeLists.txt"]
    assert main == f'idf_component_register(SRCS "main.c" REQUIRES {package_name(name)})\n'


def test_cmake(package: tuple[str, Files]) -> None:
    name, files_for = package
    files = files_for("cmake")
    listed = set(re.findall(r"^  (src/\w+\.c)$", files["CMakeLists.txt"], re.MULTILINE))
    assert listed == {path for path in files if path.startswith("src/") and path.endswith(".c")}
    # `test`, `all` and others are names of CMake's own targets.
    targets = re.findall(r"add_(?:library|executable)\(([\w:]+)", files["CMakeLists.txt"])
    assert targets == [f"edgekiln_{name}", f"edgekiln::{name}", f"edgekiln_{name}_selftest"]


def read_yaml(text: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not here: it comes with tflite-micro")
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found
