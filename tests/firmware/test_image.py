from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from edgekiln.errors import BadInputError, DoesNotFitError, ToolMissingError
from edgekiln.firmware.boards import FIRMWARE, Board, Memory, load_board
from edgekiln.firmware.bundle import read_bundle
from edgekiln.firmware.image import (
    Image,
    build_image,
    check_fit,
    emit_linker_script,
    load_image,
    read_symbols,
)
from edgekiln.firmware.toolchain import STRICT_FLAGS

WriteToy = Callable[..., Path]
DigitsImage = Callable[[str, str], Image]
DigitsBundle = Callable[[str, str], Path]

NOTHING = "void toy_invoke(int8_t *arena) { arena[8] = 5; arena[9] = 6; EK_AFTER_NODE(0, 0, 0); }"

# Whatever else an image may call for has to be argued for here: it costs flash.
ALLOWED_FROM_LIBGCC = {"__aeabi_idiv0", "__aeabi_ldiv0"}
NEVER = re.compile(
    r"(m|c|re)alloc|free|_sbrk|.*printf.*|.*puts|fwrite|_write|exit|abort|__aeabi_[fd].*|.*sf[23]|.*df[23]"
)


def with_memory(board: Board, **changes: int) -> Board:
    assert board.memory is not None
    return dataclasses.replace(board, memory=dataclasses.replace(board.memory, **changes))


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@pytest.mark.emulator
def test_sizes_are_those_of_the_files(digits_image: DigitsImage) -> None:
    image = digits_image("cnn", "mps2-an386")
    assert image.bin is not None and image.hex is not None
    assert files_in(image.elf.parent) == ["image.bin", "image.elf", "image.hex", "image.json"]
    assert image.flash_bytes == image.bin.stat().st_size
    assert image.flash_code_bytes == image.flash_bytes - image.flash_constants_bytes
    assert image.data_bytes == 0
    assert image.ram_bytes(200) == image.arena_bytes + image.bss_bytes + 200
    used_bytes = read_symbols(image.elf)["ek_bss_end"] - 0x2000_0000
    padding = used_bytes - image.ram_bytes(image.stack_reserve_bytes)
    assert 0 <= padding < 4


@pytest.mark.emulator
def test_constants_are_those_that_the_compiler_counted(
    digits_image: DigitsImage, digits_bundle: DigitsBundle
) -> None:
    for model in ("mlp", "cnn"):
        image = digits_image(model, "mps2-an386")
        report = read_bundle(digits_bundle(model, "cortex-m4"))
        arguments = _bytes_of_symbols(image.elf, "_args")
        padding = image.flash_constants_bytes - report.constants_bytes - arguments
        assert (arguments > 0) == (model == "cnn")  # where nodes share a function
        assert 0 <= padding < 4 * len(report.nodes)


def _bytes_of_symbols(elf: Path, suffix: str) -> int:
    """Adds up the sizes of the symbols whose names end in ``suffix``."""
    with elf.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return sum(s["st_size"] for s in table.iter_symbols() if s.name.endswith(suffix))


@pytest.mark.emulator
def test_the_application_is_small(digits_image: DigitsImage) -> None:
    """Start-up, vectors, drivers, protocol and its texts: a number to keep an eye on."""
    assert digits_image("mlp", "mps2-an386").flash_app_bytes <= 3760
    assert digits_image("mlp", "mps2-an386").bss_bytes <= 64


@pytest.mark.emulator
def test_hex_and_bin_hold_the_same_bytes(digits_image: DigitsImage, tmp_path: Path) -> None:
    image = digits_image("mlp", "mps2-an385")
    assert image.bin is not None and image.hex is not None
    back = tmp_path / "back.bin"
    command = ["arm-none-eabi-objcopy", "-I", "ihex", "-O", "binary", image.hex, back]
    subprocess.run(command, check=True)
    assert back.read_bytes() == image.bin.read_bytes()


@pytest.mark.emulator
def test_the_vector_table_leads_to_reset_and_an_aligned_stack(digits_image: DigitsImage) -> None:
    image = digits_image("mlp", "mps2-an386")
    assert image.bin is not None
    symbols = read_symbols(image.elf)
    words = [int.from_bytes(image.bin.read_bytes()[i : i + 4], "little") for i in range(0, 64, 4)]
    assert words[0] == symbols["ek_stack_top"] == 0x2000_0000 + image.stack_reserve_bytes
    assert words[1] == symbols["ek_reset"] | 1
    assert words[2:7] == [symbols["ek_fault"] | 1] * 5  # NMI, Hard, MemManage, Bus, Usage
    assert words[7:] == [0] * 9


@pytest.mark.emulator
@pytest.mark.parametrize("slug", ["mps2-an386", "mps2-an385"])
def test_no_heap_no_stdio_no_floating_point(digits_image: DigitsImage, slug: str) -> None:
    image = digits_image("cnn", slug)
    names = set(read_symbols(image.elf))
    assert not [name for name in names if NEVER.fullmatch(name)]
    compiler_helpers = {name for name in names if name.startswith("__aeabi")}
    assert compiler_helpers <= ALLOWED_FROM_LIBGCC


@pytest.mark.emulator
def test_the_same_input_gives_the_same_bytes(
    digits_bundle: DigitsBundle, digits_image: DigitsImage, tmp_path: Path
) -> None:
    first = digits_image("mlp", "mps2-an386")
    bundle = digits_bundle("mlp", "cortex-m4")
    second = build_image(
        bundle, load_board("mps2-an386"), tmp_path / "again", extra_flags=["-Werror"]
    )
    assert second.elf.read_bytes() == first.elf.read_bytes()
    assert b"edgekiln-image-" not in first.elf.read_bytes()


@pytest.mark.emulator
def test_an_image_is_read_back_as_it_was(digits_image: DigitsImage) -> None:
    image = digits_image("cnn", "mps2-an386")
    assert load_image(image.elf.parent) == image


@pytest.mark.emulator
def test_the_golden_pair_is_linked_on_demand_only(
    digits_bundle: DigitsBundle, digits_image: DigitsImage, tmp_path: Path
) -> None:
    plain = digits_image("mlp", "mps2-an386")
    bundle = digits_bundle("mlp", "cortex-m4")
    board = load_board("mps2-an386")
    flags = ["-Werror"]
    tested = build_image(bundle, board, tmp_path, selftest=True, extra_flags=flags)
    assert "digits_mlp_golden_input" not in read_symbols(plain.elf)
    assert "digits_mlp_golden_input" in read_symbols(tested.elf)
    assert tested.flash_bytes >= plain.flash_bytes + 64 + 10
    assert tested.flash_constants_bytes == plain.flash_constants_bytes


@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_the_application_compiles_without_a_warning(
    compiler: str, digits_bundle: DigitsBundle, tmp_path: Path
) -> None:
    from edgekiln.firmware.app_model import emit_app_model, emit_board

    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    board = load_board("host")
    bundle = read_bundle(digits_bundle("mlp", "host"))
    (tmp_path / "ek_app_model.h").write_text(emit_app_model(bundle, board, selftest=True))
    (tmp_path / "ek_board.h").write_text(emit_board(board))
    for name in ("app/main.c", "host/host.c", "app/mem.c"):
        command = [compiler, "-std=c99", *STRICT_FLAGS, "-Werror", f"-I{tmp_path}"]
        command += [f"-I{bundle.directory}", f"-I{FIRMWARE / 'app'}", "-fsyntax-only"]
        subprocess.run([*command, FIRMWARE / name], check=True)


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ram_bytes": 4096},
            "toy on mps2-an386: RAM is too small by 952 bytes; got 5048 bytes (arena 3000, "
            "stack 2048, variables); allowed: 4096; node 0 (CONV_2D conv0) needs most of the arena",
        ),
        (
            {"flash_bytes": 1000},
            "toy on mps2-an386: flash is too small by 8000 bytes; got 9000 bytes (weights 9000); "
            "allowed: 1000; node 1 (CONV_2D conv1) has the largest weights, 4501 bytes",
        ),
    ],
)
def test_a_model_that_cannot_fit_is_refused_before_it_is_compiled(
    write_toy: WriteToy, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    bundle = write_toy("this is not C", nodes=2, arena_bytes=3000, constants_bytes=9000)
    board = with_memory(load_board("mps2-an386"), **changes)
    with pytest.raises(DoesNotFitError) as caught:
        build_image(bundle, board, tmp_path / "out")
    assert str(caught.value) == message
    assert caught.value.exit_code == 2
    assert files_in(tmp_path / "out") == []


def test_what_just_fits_is_not_refused(write_toy: WriteToy) -> None:
    bundle = read_bundle(write_toy("", arena_bytes=3000, constants_bytes=9000))
    board = load_board("mps2-an386")
    check_fit(bundle, with_memory(board, ram_bytes=3000 + 2048, flash_bytes=9000))
    with pytest.raises(DoesNotFitError, match="RAM is too small by 1 bytes"):
        check_fit(bundle, with_memory(board, ram_bytes=3000 + 2047, flash_bytes=9000))


@pytest.mark.emulator
@pytest.mark.parametrize("region", ["flash", "ram"])
def test_the_linker_finds_what_the_report_could_not(
    digits_bundle: DigitsBundle, digits_image: DigitsImage, tmp_path: Path, region: str
) -> None:
    whole = digits_image("mlp", "mps2-an386")
    need_bytes = {
        "flash": whole.flash_bytes,
        "ram": read_symbols(whole.elf)["ek_bss_end"] - 0x2000_0000,
    }[region]
    bundle = digits_bundle("mlp", "cortex-m4")
    board = with_memory(load_board("mps2-an386"), **{f"{region}_bytes": need_bytes - 12})
    output = tmp_path / "out"
    with pytest.raises(DoesNotFitError, match="is too small by 12 bytes"):
        build_image(bundle, board, output)
    assert files_in(output) == []
    exact = with_memory(load_board("mps2-an386"), **{f"{region}_bytes": need_bytes})
    assert build_image(bundle, exact, output).flash_bytes == whole.flash_bytes


def test_a_failed_build_leaves_what_was_there(write_toy: WriteToy, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "image.elf").write_text("old")
    with pytest.raises(BadInputError, match=r"toy\.c: does not compile: .*error"):
        build_image(write_toy("int toy_invoke(void) { return x; }"), load_board("host"), output)
    assert files_in(output) == ["image.elf"]
    assert (output / "image.elf").read_text() == "old"


# ---- bundles that cannot be used ----


def test_a_directory_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"compile_report\.json: no such file"):
        build_image(tmp_path, load_board("host"), tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', "null"])
def test_a_damaged_report_is_one_line(write_toy: WriteToy, text: str) -> None:
    bundle = write_toy(NOTHING)
    (bundle / "compile_report.json").write_text(text)
    with pytest.raises(BadInputError, match="not a compile report") as caught:
        read_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_bundle_that_lacks_a_file_is_refused(write_toy: WriteToy) -> None:
    bundle = write_toy(NOTHING)
    (bundle / "toy_weights.c").unlink()
    with pytest.raises(BadInputError, match=r"lacks a file; got toy_weights\.c"):
        read_bundle(bundle)


def test_only_models_that_the_application_can_drive(write_toy: WriteToy) -> None:
    with pytest.raises(BadInputError, match="--io separate; compile with --io arena"):
        read_bundle(write_toy(NOTHING, io="separate"))
    with pytest.raises(BadInputError, match="cannot move values of the type of x; got float64"):
        read_bundle(write_toy(NOTHING, dtype="float64"))


def test_a_report_of_another_header_does_not_compile(write_toy: WriteToy, tmp_path: Path) -> None:
    bundle = write_toy("void toy_invoke(int8_t *arena) { (void)arena; }")
    path = bundle / "compile_report.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps({**report, "arena_bytes": 24}))
    with pytest.raises(BadInputError, match=r"main\.c: does not compile: .*ek_check_arena"):
        build_image(bundle, load_board("host"), tmp_path / "out")


def test_without_the_compiler_one_line_says_what_to_install(
    write_toy: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_toy(NOTHING)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError) as caught:
        build_image(bundle, load_board("mps2-an386"), tmp_path / "out")
    assert str(caught.value) == (
        "arm-none-eabi-gcc is not installed; "
        "install it with: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"
    )
    assert caught.value.exit_code == 3


def test_without_the_headers_one_line_says_what_to_install(
    write_toy: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_toy(NOTHING)
    fake = tmp_path / "arm-none-eabi-gcc"
    fake.write_text("#!/bin/sh\necho 'x.h:7:10: fatal error: string.h: No such file' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ToolMissingError, match="the C library's headers for Cortex-M4F"):
        build_image(bundle, load_board("mps2-an386"), tmp_path / "out")


# ---- the linker script ----


def test_the_linker_script_is_filled_from_the_board() -> None:
    template = (FIRMWARE / "arm/cortex_m.ld").read_text()
    text = emit_linker_script(template, "mine", Memory(0x0800_0000, 65536, 0x2000_0000, 8192, 512))
    assert "Memory of mine." in text
    assert "FLASH (rx) : ORIGIN = 0x08000000, LENGTH = 65536" in text
    assert "RAM (rwx)  : ORIGIN = 0x20000000, LENGTH = 8192" in text
    assert ". = . + 512;" in text
    assert not re.search(r"@[A-Z]", text)


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadInputError, match="@FLASH_SIZE@"):
        emit_linker_script("@FLASH_SIZE@", "mine", Memory(0, 1, 0, 1, 8))


@pytest.mark.emulator
def test_sections_lie_where_the_script_says(digits_image: DigitsImage) -> None:
    with digits_image("mlp", "mps2-an386").elf.open("rb") as stream:
        elf = ELFFile(stream)
        address = {s.name: s["sh_addr"] for s in elf.iter_sections() if s["sh_flags"] & 2}
    wanted = [".vectors", ".app", ".weights", ".text", ".stack", ".arena", ".data", ".bss"]
    assert list(address) == wanted
    assert address[".vectors"] == 0
    assert address[".stack"] == 0x2000_0000
    assert address[".arena"] % 16 == 0


def test_symbols_of_a_file_that_is_no_elf(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"MZ")
    with pytest.raises(BadInputError, match="not an ELF file"):
        read_symbols(tmp_path / "x")


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"elf": "image.elf"}'])
def test_a_damaged_description_of_an_image_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "image.json").write_text(text)
    with pytest.raises(BadInputError, match="not an image's description"):
        load_image(tmp_path)
