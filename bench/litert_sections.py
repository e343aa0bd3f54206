"""A program for an emulated Raspberry Pi: runs LiteRT and tells qemu/sections.c where to count.

Run by the emulated Python, which has LiteRT and numpy but not edgekiln:
``python litert_sections.py PACKAGES MODEL INPUTS.npy OUTPUTS.npy``. Each inference is a
section, in which LiteRT's library is what counts as the process's own.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_MARK = 0x656B
_LIBRARY = "libpywrap_litert_common.so"


def _find_library() -> tuple[int, int]:
    """Returns where LiteRT's library begins and ends in memory."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(f"/{_LIBRARY}")]
    return min(int(low, 16) for low, _ in spans), max(int(high, 16) for _, high in spans)


def main(packages: str, model: str, inputs: str, outputs: str) -> None:
    """Runs every input twice, and counts the second time.

    Args:
        packages: The directory with LiteRT and numpy.
        model: A ``.tflite`` with one input and one output.
        inputs: A ``.npy`` of the input's dtype, [N, ...].
        outputs: Where the outputs go, likewise.
    """
    sys.path.insert(0, packages)
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=1)
    interpreter.allocate_tensors()
    (x,), (y,) = interpreter.get_input_details(), interpreter.get_output_details()
    mark = ctypes.CDLL(None).syscall
    number, zero = ctypes.c_long(_MARK), ctypes.c_long(0)
    low, high = map(ctypes.c_long, _find_library())
    found = []
    for sample in np.load(inputs):
        interpreter.set_tensor(x["index"], sample.reshape(x["shape"]))
        interpreter.invoke()
        mark(number, low, high)
        interpreter.invoke()
        mark(number, zero, zero)
        found.append(interpreter.get_tensor(y["index"]))
    np.save(outputs, np.concatenate(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
