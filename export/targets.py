"""The processors that code can be generated for, and what their kernels may use."""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.errors import BadInputError


@dataclass(frozen=True)
class Target:
    """A class of processors.

    Attributes:
        name: As given to ``--target``.
        description: For people.
        features: What a kernel may ask for: ``dsp`` (Arm's SIMD-in-32-bit instructions),
            ``unaligned`` (32-bit loads from any address), ``neon`` (Arm's 64-bit cores, and 32-bit
            ones that have it), ``dotprod`` (dot products, as in -march=armv8.2-a+dotprod),
            ``armv6m`` (eight low registers, no more than a 32-bit product).
        has_float: Whether models may compute in float32.
        has_room: Whether constants may take what they like: weights of 4 bits become bytes, and
            zeros are stored unless that costs instructions.
        max_object_bytes: The largest array that its C compiler takes, or None for any.
    """

    name: str
    description: str
    features: frozenset[str] = frozenset()
    has_float: bool = True
    has_room: bool = False
    max_object_bytes: int | None = None


_DSP = frozenset({"dsp", "unaligned"})

TARGETS = {
    target.name: target
    for target in (
        Target("generic", "any core with a C99 compiler"),
        Target("host", "the machine that edgekiln runs on", has_room=True),
        Target("cortex-m0plus", "Arm Cortex-M0, M0+ and M1", frozenset({"armv6m"})),
        Target("cortex-m4", "Arm Cortex-M4 and M4F", _DSP),
        Target("cortex-m7", "Arm Cortex-M7", _DSP),
        Target("cortex-m33", "Arm Cortex-M33 and M35P with the DSP extension", _DSP),
        Target("cortex-m55", "Arm Cortex-M55 (its DSP extension; Helium is not used)", _DSP),
        Target("rv32imc", "32-bit RISC-V with multiplication, as RV32IMC and RV32IMAC"),
        Target(
            "armv7-neon",
            "32-bit Arm with NEON, as Raspberry Pi 2",
            frozenset({"neon"}),
            has_room=True,
        ),
        Target(
            "aarch64",
            "64-bit Arm with NEON, as Raspberry Pi 3 and 4",
            frozenset({"neon"}),
            has_room=True,
        ),
        Target(
            "aarch64-dotprod",
            "64-bit Arm with dot products (Armv8.2), as Raspberry Pi 5",
            frozenset({"neon", "dotprod"}),
            has_room=True,
        ),
        Target(
            "avr",
            "8-bit AVR, as ATmega328P and ATmega2560; integers only, constants stay in flash",
            has_float=False,
            max_object_bytes=32767,
        ),
    )
}


def find_target(name: str) -> Target:
    """Returns the target with this name.

    Raises:
        BadInputError: There is none.
    """
    try:
        return TARGETS[name]
    except KeyError:
        raise BadInputError(
            "no such target", where="--target", got=name, allowed=", ".join(sorted(TARGETS))
        ) from None
