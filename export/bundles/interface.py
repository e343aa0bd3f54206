"""A compiled model's C interface, as the self-test and the examples call it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgekiln.export.compiler import CompiledModel
from edgekiln.export.emit.program import numbered
from edgekiln.export.ir import Tensor


@dataclass(frozen=True)
class Buffer:
    """An input or output of the model in C.

    Attributes:
        name: "input", or "input_0", … where there are several; "output" likewise.
        tensor: Its type and shape.
        expression: Where the caller finds it, an array or a pointer.
        golden: The array of the golden pair.
        macro: The prefix of its macros, such as ``KWS_INPUT``.
    """

    name: str
    tensor: Tensor
    expression: str
    golden: str
    macro: str

    @property
    def declaration(self) -> str:
        """Declares an array that holds it."""
        return f"{self.tensor.dtype.c_type} {self.name}[{self.macro}_LEN]"


@dataclass(frozen=True)
class Interface:
    """The interface of a compiled model.

    Attributes:
        compiled: The model.
    """

    compiled: CompiledModel

    @property
    def name(self) -> str:
        """The model's name in C."""
        return str(self.compiled.report["name"])

    @property
    def upper(self) -> str:
        """Its name in macros."""
        return self.name.upper()

    @property
    def is_separate(self) -> bool:
        """Whether inputs and outputs are buffers of the caller's, not parts of the arena."""
        return bool(self.compiled.report["io"] == "separate")

    @property
    def has_state(self) -> bool:
        """Whether the model remembers something."""
        return bool(self.compiled.report["state_bytes"])

    @cached_property
    def inputs(self) -> list[Buffer]:
        """The inputs in the model's order."""
        return self._buffers("input", self.compiled.graph.inputs)

    @cached_property
    def outputs(self) -> list[Buffer]:
        """The outputs in the model's order."""
        return self._buffers("output", self.compiled.graph.outputs)

    def _buffers(self, kind: str, indices: tuple[int, ...]) -> list[Buffer]:
        return [
            Buffer(
                name=name,
                tensor=self.compiled.graph.tensor(index),
                expression=name if self.is_separate else f"{self.name}_{name}(arena)",
                golden=f"{self.name}_golden_{name}",
                macro=f"{self.upper}_{name.upper()}",
            )
            for name, index in zip(numbered(kind, len(indices)), indices, strict=True)
        ]

    def copy_golden_inputs(self) -> list[str]:
        """Returns statements that make the golden input the model's input."""
        return [f"memcpy({b.expression}, {b.golden}, {b.macro}_BYTES);" for b in self.inputs]

    def invoke(self, *, inputs: list[str], state: str) -> str:
        """Returns the call that runs the model.

        Args:
            inputs: The input buffers, used where the model does not have them in its arena.
            state: The pointer to the state, used where there is one.
        """
        arguments = [*inputs, *(b.name for b in self.outputs)] if self.is_separate else []
        arguments += ["arena", *([state] if self.has_state else [])]
        return f"{self.name}_invoke({', '.join(arguments)});"

    def banner(self, what: str) -> str:
        """Returns the comment that heads the model's own files, for another file."""
        header = self.compiled.files[f"{self.name}.h"]
        banner = header[: header.index("*/") + 2]
        return banner.replace(f"{self.name}: interface.", f"{self.name}: {what}.", 1)
