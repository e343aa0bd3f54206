"""A ``.tflite`` as a C array, for those who run TensorFlow Lite Micro themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgekiln import files
from edgekiln.errors import BadInputError, BadModelError

_BYTES_PER_LINE = 12
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)

_HEADER = """\
/* {name}_tflite.h: a TensorFlow Lite model as bytes, for TensorFlow Lite Micro.
 *
 * Written by edgekiln. The bytes are those of a .tflite file with
 * SHA-256 {sha256}
 */
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

/* The flatbuffer, {length} bytes, aligned to 16 bytes. */
extern const unsigned char {name}_tflite[];
extern const unsigned int {name}_tflite_len;

#ifdef __cplusplus
}}
#endif

#endif /* {guard} */
"""

_SOURCE = """\
/* {name}_tflite.c: the bytes that {name}_tflite.h declares.
 *
 * Written by edgekiln. The bytes are those of a .tflite file with
 * SHA-256 {sha256}
 */
#include "{name}_tflite.h"

#if defined(__cplusplus) && __cplusplus >= 201103L
#define {macro} alignas(16)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define {macro} _Alignas(16)
#elif defined(__GNUC__) || defined(__clang__)
#define {macro} __attribute__((aligned(16)))
#else
#error "Say here how this compiler aligns a variable to 16 bytes."
#endif

{macro} const unsigned char {name}_tflite[{length}] = {{
{rows}
}};

const unsigned int {name}_tflite_len = {length}U;
"""


def write_c_array(tflite: bytes, name: str, directory: Path) -> tuple[Path, Path]:
    """Writes ``<name>_tflite.h`` and ``<name>_tflite.c``, each whole or not at all.

    Args:
        tflite: The content of the ``.tflite``.
        name: What the array is called, before ``_tflite``: a C identifier that starts with
            a letter.
        directory: Where to write.

    Returns:
        The paths of the header and the source.

    Raises:
        BadInputError: The name cannot be used, or the files cannot be written.
        BadModelError: ``tflite`` is empty.
    """
    _check_name(name)
    if not tflite:
        raise BadModelError("the model is empty", where=name)
    values = {
        "name": name,
        "guard": f"{name.upper()}_TFLITE_H",
        "macro": f"{name.upper()}_TFLITE_ALIGNED",
        "sha256": files.sha256_bytes(tflite),
        "length": len(tflite),
    }
    header = directory / f"{name}_tflite.h"
    source = directory / f"{name}_tflite.c"
    files.write_text(header, _HEADER.format(**values))
    files.write_text(source, _SOURCE.format(**values, rows=",\n".join(_rows(tflite))))
    return header, source


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BadInputError(
            "the model's name cannot be used in C",
            got=f"'{name}'",
            allowed="a letter, then letters, digits and underscores",
            hint="choose another with --name",
        )


def _rows(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), _BYTES_PER_LINE):
        row = ", ".join(f"0x{byte:02x}" for byte in data[start : start + _BYTES_PER_LINE])
        yield f"    {row}"
