"""Builds the image of a board: a compiled model with the application around it.

The model is compiled with -O2, the application with -Os, and no C library is linked. Whether
the image fits is known before anything is flashed: from the compile report alone where the
model is too large by itself, else from the linker.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from edgekiln.errors import BadInputError, DoesNotFitError
from edgekiln.files import read_input_file, write_bytes, write_json
from edgekiln.firmware.app_model import HEADER_NAME, emit_app_model, emit_board
from edgekiln.firmware.boards import FIRMWARE, Board, Memory, refuse_linux
from edgekiln.firmware.boot2 import seal_boot2
from edgekiln.firmware.bundle import Bundle, NodeInfo, TensorInfo, read_bundle
from edgekiln.firmware.toolchain import (
    STRICT_FLAGS,
    CompileJob,
    compile_objects,
    compiler_version,
    copy_image,
    first_error,
    link,
)
from edgekiln.firmware.uf2 import encode_uf2

IMAGE_JSON = "image.json"

_COMMON_FLAGS = ("-g", "-ffunction-sections", "-fdata-sections")
_MODEL_FLAGS = ("-O2",)
# A loop in mem.c must not be turned into a call of the function that it is in.
_APP_FLAGS = ("-Os", "-fno-tree-loop-distribute-patterns")
_LINK_FLAGS = ("-nostdlib", "-static", "-Wl,--gc-sections")
_APP_SECTIONS = (".boot2", ".vectors", ".app")
_OVERFLOW = re.compile(r"region [`'](FLASH|RAM)' overflowed by (\d+) bytes")


@dataclass(frozen=True)
class Image:
    """What a board is flashed with, and what is known of it.

    Attributes:
        name: The model's name.
        board: The board's slug.
        model_sha256: Of the .tflite.
        elf: The linked image with its symbols.
        bin: The same as plain bytes from the flash's origin, or None on the host.
        hex: The same as Intel HEX, or None on the host.
        inputs: The model's inputs.
        outputs: The model's outputs.
        nodes: The model's nodes, in the order of execution.
        macs: Multiply-accumulates of one inference.
        flash_bytes: All of the image: vectors, code, constants, initialised data.
        flash_constants_bytes: The model's tables in it: weights, biases, multipliers, and the
            arguments of its nodes.
        flash_app_bytes: The application, start-up code and drivers in it.
        data_bytes: Initialised variables.
        bss_bytes: Zeroed variables and the model's state, the arena not included.
        arena_bytes: The arena.
        state_bytes: What the model remembers between inferences, a part of `bss_bytes`.
        stack_reserve_bytes: What is kept for the stack; 0 on the host.
        toolchain: The C compiler and its version.
        flags: The flags that the model was compiled with.
        uf2: The image as a UF2 file, or None where the board's bootloader takes none.
    """

    name: str
    board: str
    model_sha256: str
    elf: Path
    bin: Path | None
    hex: Path | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[NodeInfo, ...]
    macs: int
    flash_bytes: int
    flash_constants_bytes: int
    flash_app_bytes: int
    data_bytes: int
    bss_bytes: int
    arena_bytes: int
    state_bytes: int
    stack_reserve_bytes: int
    toolchain: str
    flags: str
    uf2: Path | None = None

    @property
    def flash_code_bytes(self) -> int:
        """The image without the model's constants: code, the application, vectors."""
        return self.flash_bytes - self.flash_constants_bytes

    @property
    def input_bytes(self) -> int:
        """Size of all inputs of one inference."""
        return sum(tensor.bytes for tensor in self.inputs)

    @property
    def output_bytes(self) -> int:
        """Size of all outputs of one inference."""
        return sum(tensor.bytes for tensor in self.outputs)

    def ram_bytes(self, stack_bytes: int) -> int:
        """Returns the RAM in use when the stack's measured peak is ``stack_bytes``."""
        return self.arena_bytes + self.data_bytes + self.bss_bytes + stack_bytes


def build_image(
    bundle: Path,
    board: Board,
    output: Path,
    *,
    selftest: bool = False,
    model_flags: Sequence[str] = _MODEL_FLAGS,
    extra_flags: Sequence[str] = (),
) -> Image:
    """Compiles and links a bundle with the application for a board.

    Args:
        bundle: The directory which the compiler wrote.
        board: The board.
        output: Where image.elf, image.bin, image.hex, image.json and, for a board that takes
            it, image.uf2 go; other files there are left alone. Nothing is written unless all
            succeeds.
        selftest: Link the golden pair and the ``selftest`` command. Off by default: the same
            can be had by sending the golden input, and flash sizes stay the model's.
        model_flags: How the model's code is optimized.
        extra_flags: Flags for all files and the linker, such as ``-Werror`` in tests.

    Raises:
        DoesNotFitError: The model is larger than the board's flash or RAM.
        ToolMissingError: The C compiler is not installed.
        BadInputError: The bundle is damaged, or does not compile.
    """
    refuse_linux(board)
    model = read_bundle(bundle)
    check_fit(model, board)
    flags = (*board.cpu_flags, board.toolchain.standard, *_COMMON_FLAGS)
    model_flags = (*model_flags, *_far_flags(model, board))
    flags = (*flags, *model_flags, *extra_flags)
    with tempfile.TemporaryDirectory(prefix="edgekiln-image-") as name:
        work = Path(name)
        _write_headers(model, board, work, selftest)
        jobs = _plan_jobs(model, board, work, selftest, tuple(model_flags), tuple(extra_flags))
        compile_objects(board, jobs)
        elf = work / "image.elf"
        _link(model, board, jobs, work, elf, extra_flags)
        seal_boot2(elf)
        sizes = measure_objects([job.object for job in jobs]) if board.is_host else _measure(elf)
        image = Image(
            name=model.name,
            board=board.slug,
            model_sha256=model.model_sha256,
            elf=output / "image.elf",
            bin=None if board.is_host else output / "image.bin",
            hex=None if board.is_host else output / "image.hex",
            inputs=model.inputs,
            outputs=model.outputs,
            nodes=model.nodes,
            macs=model.macs,
            arena_bytes=model.arena_bytes,
            state_bytes=model.state_bytes,
            stack_reserve_bytes=board.memory.stack_bytes if board.memory else 0,
            toolchain=compiler_version(board.toolchain),
            flags=" ".join(flags),
            uf2=None if board.uf2_family is None else output / "image.uf2",
            **sizes,
        )
        _store(image, board, elf)
    return image


def load_image(directory: Path) -> Image:
    """Reads back what `build_image` wrote.

    Raises:
        BadInputError: image.json or the ELF is missing or damaged.
    """
    path = directory / IMAGE_JSON
    try:
        values = json.loads(read_input_file(path))
        for key in ("elf", "bin", "hex", "uf2"):
            values[key] = directory / values[key] if values[key] else None
        for key, kind in (("inputs", TensorInfo), ("outputs", TensorInfo), ("nodes", NodeInfo)):
            values[key] = tuple(kind(**item) for item in values[key])
        for tensor in (*values["inputs"], *values["outputs"]):
            object.__setattr__(tensor, "shape", tuple(tensor.shape))
        image = Image(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"not an image's description: {error}", where=path) from None
    if not image.elf.is_file():
        raise BadInputError("no such file", where=image.elf)
    return image


def read_symbols(elf: Path) -> dict[str, int]:
    """Returns the addresses of an ELF's symbols by name, Thumb's lowest bit cleared.

    Raises:
        BadInputError: The file is missing or not an ELF.
    """
    try:
        with elf.open("rb") as stream:
            parsed = ELFFile(stream)
            mask = ~1 if parsed["e_machine"] == "EM_ARM" else ~0
            table = parsed.get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                raise BadInputError("has no symbols", where=elf)
            return {symbol.name: symbol["st_value"] & mask for symbol in table.iter_symbols()}
    except (OSError, ELFError) as error:
        raise BadInputError(f"not an ELF file: {error}", where=elf) from None


def measure_objects(objects: Sequence[Path]) -> dict[str, int]:
    """Adds up the sections of objects: where there is a C library, the linked file is mostly that.

    Args:
        objects: What was compiled. The application's have names that begin with ``app_``, the
            model's tables are in ``model_weights.o``, and the arena is called ``ek_arena``.

    Returns:
        Those attributes of `Image` that are sizes of sections.
    """
    sizes = {"flash": 0, "constants": 0, "app": 0, "data": 0, "bss": 0}
    for path in objects:
        for name, size, kind in _allocated_sections(path):
            if kind == "SHT_NOBITS":
                sizes["bss"] += 0 if name == ".bss.ek_arena" else size
                continue
            sizes["flash"] += size
            is_data = name.startswith(".data") and not name.startswith(".data.rel.ro")
            sizes["data"] += size if is_data else 0
            sizes["app"] += size if path.name.startswith("app_") else 0
            is_table = path.name == "model_weights.o" or name.endswith("_args")
            sizes["constants"] += size if is_table else 0
    return {
        "flash_bytes": sizes["flash"],
        "flash_constants_bytes": sizes["constants"],
        "flash_app_bytes": sizes["app"],
        "data_bytes": sizes["data"],
        "bss_bytes": sizes["bss"],
    }


def check_fit(bundle: Bundle, board: Board) -> None:
    """Refuses a model that is too large for the board before anything is compiled.

    Raises:
        DoesNotFitError: The arena, the state and the stack exceed the RAM, or the constants
            the flash.
    """
    memory = board.memory
    if memory is None:
        return
    need_bytes = bundle.arena_bytes + bundle.state_bytes + memory.stack_bytes
    if need_bytes > memory.ram_bytes:
        _fail_ram(bundle, board, memory, need_bytes - memory.ram_bytes)
    if bundle.constants_bytes > memory.flash_bytes:
        _fail_flash(bundle, board, memory, bundle.constants_bytes - memory.flash_bytes)


def _far_flags(model: Bundle, board: Board) -> tuple[str, ...]:
    """Returns the flags for tables that are too large for short pointers, where they are."""
    near_bytes = board.memory.near_table_bytes if board.memory else None
    is_far = near_bytes is not None and model.constants_bytes > near_bytes
    return board.toolchain.far_flags if is_far else ()


def _fail_ram(bundle: Bundle, board: Board, memory: Memory, excess_bytes: int) -> NoReturn:
    node = None if bundle.peak_node is None else bundle.find_node(bundle.peak_node)
    state = f"state {bundle.state_bytes}, " if bundle.state_bytes else ""
    raise DoesNotFitError(
        f"RAM is too small by {excess_bytes} bytes",
        where=f"{bundle.name} on {board.slug}",
        got=f"{memory.ram_bytes + excess_bytes} bytes "
        f"(arena {bundle.arena_bytes}, {state}stack {memory.stack_bytes}, variables)",
        allowed=f"{memory.ram_bytes}",
        hint=f"{node} needs most of the arena" if node else "",
    )


def _fail_flash(bundle: Bundle, board: Board, memory: Memory, excess_bytes: int) -> NoReturn:
    node = max(bundle.nodes, key=lambda node: node.constants_bytes, default=None)
    raise DoesNotFitError(
        f"flash is too small by {excess_bytes} bytes",
        where=f"{bundle.name} on {board.slug}",
        got=f"{memory.flash_bytes + excess_bytes} bytes (weights {bundle.constants_bytes})",
        allowed=f"{memory.flash_bytes}",
        hint=f"{node} has the largest weights, {node.constants_bytes} bytes" if node else "",
    )


def _write_headers(model: Bundle, board: Board, work: Path, selftest: bool) -> None:
    texts = {
        HEADER_NAME: emit_app_model(model, board, selftest=selftest),
        "ek_board.h": emit_board(board),
    }
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")


def _plan_jobs(
    model: Bundle,
    board: Board,
    work: Path,
    selftest: bool,
    model_flags: tuple[str, ...],
    extra_flags: tuple[str, ...],
) -> list[CompileJob]:
    # Debug information holds no path of this machine: equal inputs give equal ELF files.
    places = {work: "build", model.directory.resolve(): "model", FIRMWARE.resolve(): "firmware"}
    common = (
        *(board.toolchain.standard, *_COMMON_FLAGS, *STRICT_FLAGS),
        *(f"-fdebug-prefix-map={path}={name}" for path, name in places.items()),
        *(f"-I{path}" for path in (work, model.directory.resolve(), FIRMWARE.resolve() / "app")),
    )
    drivers = tuple(f"-I{path}" for path in _source_directories(board))
    marks = () if board.is_host else ("-include", str(FIRMWARE.resolve() / "app/ek_node_marks.h"))
    jobs = []
    for name in (*model.sources, *((model.golden_source,) if selftest else ())):
        kind = Path(name).stem.removeprefix(model.name) or "_code"
        jobs.append(
            CompileJob(
                source=model.directory.resolve() / name,
                object=work / f"model{kind}.o",
                flags=(*common, *marks, *model_flags, *extra_flags),
            )
        )
    for name in ("app/main.c", *board.sources):
        source = FIRMWARE.resolve() / name
        jobs.append(
            CompileJob(
                source=source,
                object=work / f"app_{source.stem}.o",
                flags=(*common, *drivers, *_APP_FLAGS, *extra_flags),
            )
        )
    return jobs


def _source_directories(board: Board) -> tuple[Path, ...]:
    """Returns the directories that a port's files may take headers from, each once."""
    parents = (FIRMWARE.resolve() / Path(name).parent for name in board.sources)
    return tuple(dict.fromkeys(parents))


def _link(
    model: Bundle,
    board: Board,
    jobs: Sequence[CompileJob],
    work: Path,
    elf: Path,
    extra_flags: Sequence[str],
) -> None:
    flags: tuple[str, ...] = tuple(extra_flags)
    if board.memory is not None and board.linker_script is not None:
        script = work / "image.ld"
        template = (FIRMWARE / board.linker_script).read_text(encoding="utf-8")
        script.write_text(emit_linker_script(template, board.slug, board.memory), encoding="utf-8")
        flags = (*_LINK_FLAGS, *flags, f"-T{script}", *board.toolchain.link_flags)
    message = link(board, [job.object for job in jobs], flags, elf)
    if not message:
        return
    if board.memory is not None:
        for region, excess in _OVERFLOW.findall(message):
            fail = _fail_flash if region == "FLASH" else _fail_ram
            fail(model, board, board.memory, int(excess))
    raise BadInputError(f"does not link: {first_error(message)}", where=model.directory)


def emit_linker_script(template: str, slug: str, memory: Memory) -> str:
    """Fills a linker script's ``@NAMES@`` with a board's memories.

    Raises:
        BadInputError: The template asks for a name that does not exist.
    """
    values = {
        "SLUG": slug,
        "FLASH_ORIGIN": f"0x{memory.flash_origin:08X}",
        "FLASH_BYTES": str(memory.flash_bytes),
        "RAM_ORIGIN": f"0x{memory.ram_origin:08X}",
        "RAM_BYTES": str(memory.ram_bytes),
        "STACK_BYTES": str(memory.stack_bytes),
    }

    def replace(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise BadInputError("the linker script asks for an unknown name", got=match[0])
        return values[match[1]]

    return re.sub(r"@([A-Z_]+)@", replace, template)


def _measure(elf: Path) -> dict[str, int]:
    with elf.open("rb") as stream:
        parsed = ELFFile(stream)
        size = {section.name: section["sh_size"] for section in parsed.iter_sections()}
        loads = [s for s in parsed.iter_segments("PT_LOAD") if s["p_filesz"]]
        begin = min(s["p_paddr"] for s in loads)
        end = max(s["p_paddr"] + s["p_filesz"] for s in loads)
    return {
        "flash_bytes": end - begin,
        "flash_constants_bytes": size.get(".weights", 0) + size.get(".far_weights", 0),
        "flash_app_bytes": sum(size.get(name, 0) for name in _APP_SECTIONS),
        "data_bytes": size.get(".data", 0),
        "bss_bytes": size.get(".bss", 0),
    }


def _allocated_sections(path: Path) -> list[tuple[str, int, str]]:
    skipped = (".eh_frame", ".note")
    with path.open("rb") as stream:
        return [
            (section.name, section["sh_size"], section["sh_type"])
            for section in ELFFile(stream).iter_sections()
            if section["sh_flags"] & 2 and not section.name.startswith(skipped)  # SHF_ALLOC
        ]


def _store(image: Image, board: Board, elf: Path) -> None:
    made = [(image.elf, elf)]
    for target, output_format in ((image.bin, "binary"), (image.hex, "ihex")):
        if target is not None:
            path = elf.with_name(target.name)
            copy_image(board, elf, path, output_format)
            made.append((target, path))
    if image.uf2 and image.bin and board.memory and board.uf2_family is not None:
        data = elf.with_name(image.bin.name).read_bytes()
        path = elf.with_name(image.uf2.name)
        path.write_bytes(encode_uf2(data, board.memory.flash_origin, board.uf2_family))
        made.append((image.uf2, path))
    for target, path in made:
        write_bytes(target, path.read_bytes())
    if board.is_host:
        image.elf.chmod(0o755)
    values: dict[str, Any] = dataclasses.asdict(image)
    for key in ("elf", "bin", "hex", "uf2"):
        values[key] = values[key].name if values[key] else None
    write_json(image.elf.with_name(IMAGE_JSON), values)
