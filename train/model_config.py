"""What a model file says of its layers, read and judged before Keras builds any of them.

A Keras model can hold Python code: Lambda layers, functions, classes of other packages. Such a
file is refused here, with the layer's name. Keras's own safe mode comes second.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import BadModelError
from edgekiln.train.unpack import check_unpacked_size

Config = dict[str, Any]

#: Layers that are made of code, or that run a program from a file beside the model.
_CODE_LAYERS = frozenset({"FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper"})
#: Class names under which Keras stores functions; ``__lambda__`` holds marshalled bytecode.
_BYTECODE = "__lambda__"
_MODELS = frozenset({"Functional", "Model", "Sequential"})
_ENCRYPTED = 1
_CODE_HINT = (
    "replace the layer by layers of Keras, or load the file yourself and call "
    "edgekiln.quantize.own.quantize_model"
)


@dataclass(frozen=True)
class Entry:
    """One object in a model's configuration.

    Attributes:
        layer: The name of the layer that it is or belongs to; empty for the model itself.
        is_layer: Whether it is a layer or a model.
        value: Its part of the configuration, with ``class_name`` and ``config``.
    """

    layer: str
    is_layer: bool
    value: Config

    @property
    def class_name(self) -> str:
        """The class's name without its package."""
        return str(self.value["class_name"])

    @property
    def package(self) -> str:
        """The module of the class, empty where the file does not say."""
        return str(self.value.get("module") or "")

    @property
    def registered_name(self) -> str:
        """The name under which the class would have been registered with Keras."""
        return str(self.value.get("registered_name") or self.class_name)


def read_config(path: Path) -> Config:
    """Returns the configuration in a ``.keras`` or ``.h5`` file.

    Raises:
        BadInputError: It unpacks to more than this machine can hold.
        BadModelError: The file is no such file, or damaged, or encrypted.
    """
    try:
        text = _from_h5(path) if path.suffix != ".keras" else _from_zip(path)
        config = json.loads(text)
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise _unreadable(path, "a configuration without a class")
    return config


def _unreadable(path: Path, reason: object) -> BadModelError:
    kind = "a Keras 3 model" if path.suffix == ".keras" else "a Keras model in HDF5"
    return BadModelError(
        f"is not {kind} that can be read", where=path, got=reason, hint="check the file"
    )


def _from_zip(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        if any(member.flag_bits & _ENCRYPTED for member in archive.infolist()):
            raise BadModelError("is an encrypted zip file", where=path, hint="decrypt it first")
        check_unpacked_size(archive, path)
        return archive.read("config.json")


def _from_h5(path: Path) -> str | bytes:
    import h5py

    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise BadModelError(
                "holds weights without a model",
                where=path,
                hint="save the whole model: model.save('model.keras')",
            )
        text = file.attrs["model_config"]
        return text if isinstance(text, str | bytes) else str(text)


def walk(value: Any, layer: str = "") -> Iterator[Entry]:
    """Yields all objects in a configuration, in the order in which they stand there."""
    if isinstance(value, list):
        for item in value:
            yield from walk(item, layer)
    elif isinstance(value, dict):
        if isinstance(value.get("class_name"), str) and "config" in value:
            inner = value["config"] if isinstance(value["config"], dict) else {}
            is_layer = "trainable" in inner or value["class_name"] in _CODE_LAYERS | _MODELS
            if is_layer and value["class_name"] not in _MODELS:
                layer = str(inner.get("name") or value.get("name") or layer)
            yield Entry(layer, is_layer, value)
        for item in value.values():
            yield from walk(item, layer)


def check_config(config: Config, where: Path) -> None:
    """Refuses a model that holds code, or classes that are not Keras's and not registered.

    Args:
        config: The configuration.
        where: The file, for messages.

    Raises:
        BadModelError: It does; the message names the layer and the class.
    """
    for entry in walk(config):
        if entry.class_name in _CODE_LAYERS and entry.is_layer:
            raise BadModelError(
                f"{_of(entry)} is a {entry.class_name}: it holds code, which is not run",
                where=where,
                hint=_CODE_HINT,
            )
        if entry.class_name == _BYTECODE:
            raise BadModelError(
                f"{_of(entry)} holds a Python function, which is not run",
                where=where,
                hint=_CODE_HINT,
            )
        if not _is_known(entry):
            raise BadModelError(
                f"{_of(entry)} needs {_named(entry)}, which is not Keras's",
                where=where,
                allowed="layers and functions of Keras",
                hint=_CODE_HINT,
            )


def _of(entry: Entry) -> str:
    return f"layer '{entry.layer}'" if entry.layer else "the model"


def _named(entry: Entry) -> str:
    if entry.class_name == "function":
        return f"the function {entry.value['config']}"
    package = f" of {entry.package}" if entry.package else ""
    return f"the class {entry.class_name}{package}"


def _is_known(entry: Entry) -> bool:
    """Tells whether a class is Keras's, or was registered in this process.

    Old files name no modules: for them the layers are looked up, and Keras judges the rest.
    """
    from edgekiln.train.quiet_keras import keras

    if keras.saving.get_registered_object(entry.registered_name) is not None:
        return True
    if entry.class_name == "function":
        functions = (keras.activations, keras.ops)
        return any(hasattr(module, str(entry.value["config"])) for module in functions)
    if entry.package:
        return entry.package.partition(".")[0] == "keras"
    return (
        not entry.is_layer or entry.class_name in _MODELS or hasattr(keras.layers, entry.class_name)
    )
