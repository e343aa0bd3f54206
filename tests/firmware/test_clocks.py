"""Ports bring their chip to full speed, and go on at a lower one where a clock does not start.

QEMU models none of these clock trees. Here a port runs on this machine against registers that
answer as the reference manuals say; what it wrote, in its order, is held against the data sheets.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekiln.firmware.app_model import emit_board
from edgekiln.firmware.boards import FIRMWARE, load_board

# Stands for ek_cortex_m.h and ek_riscv.h. Every access goes through `ek_access`, which first lets
# the chip react to what was written before.
HEADER = """
#include <stdint.h>
#define EK_REGISTER(address) (*ek_access(address))
volatile uint32_t *ek_access(uint32_t address);
#define EK_NVIC_ICPR(interrupt) EK_REGISTER(0xE000E280u + 4u * ((interrupt) / 32u))
#define EK_NVIC_BIT(interrupt) (1u << ((interrupt) % 32u))
#define EK_CSR_READ(name, value) ((value) = 0)
#define EK_CLINT_MTIME_LOW EK_REGISTER(0x0200BFF8u)
static inline void ek_forget_interrupts(void) {}
static inline void ek_listen_to(uint32_t interrupt) { (void)interrupt; }
"""
SLEEP_ARM = (
    "static inline void ek_sleep_until_interrupt(uint32_t a, uint32_t b) { (void)a, (void)b; }\n"
)
SLEEP_RISCV = "static inline void ek_sleep_until_interrupt(uint32_t ticks) { (void)ticks; }\n"

HARNESS = """
#include <stdio.h>
#include <stdlib.h>
#include "ek_port.h"
#include "ek_chip.h"
enum { CELLS = 64 };
static struct { uint32_t address, seen; volatile uint32_t value; } cells[CELLS];
static unsigned used;
static volatile uint32_t *cell(uint32_t address)
{
    for (unsigned i = 0; i < used; ++i) {
        if (cells[i].address == address) { return &cells[i].value; }
    }
    if (used == CELLS) { abort(); }
    cells[used].address = address;
    cells[used].seen = cells[used].value = initial(address);
    return &cells[used++].value;
}
#define R(address) (*cell(address))
#define FOLLOW(address, bits, condition) \\
    (R(address) = (condition) ? R(address) | (bits) : R(address) & ~(uint32_t)(bits))
static const unsigned broken = BROKEN;
static void show_changes(void)
{
    for (unsigned i = 0; i < used; ++i) {
        if (cells[i].seen != cells[i].value) {
            printf("%08x %08x\\n", (unsigned)cells[i].address, (unsigned)cells[i].value);
            cells[i].seen = cells[i].value;
        }
    }
}
static void react(void)
{
    REACT
    for (unsigned i = 0; i < used; ++i) { /* what the chip did is not what the port wrote */
        cells[i].seen = cells[i].value;
    }
}
volatile uint32_t *ek_access(uint32_t address)
{
    show_changes();
    react();
    return cell(address);
}
int main(void)
{
    ek_port_init();
    (void)ek_access(0);
    return 0;
}
"""

RCC_CR, RCC_PLLCFGR, RCC_CFGR = 0x40023800, 0x40023804, 0x40023808
FLASH_ACR, PWR_CR = 0x40023C00, 0x40007000
TIM2_PSC, GPIOA_MODER, GPIOA_AFRL, GPIOA_AFRH = 0x40000028, 0x40020000, 0x40020020, 0x40020024

NO_HSE, NO_PLL, NO_SWITCH, NO_OVERDRIVE = 1, 2, 4, 8
STM32 = """
    FOLLOW(0x40023800u, 1u << 1, R(0x40023800u) & 1u);                               /* HSI */
    FOLLOW(0x40023800u, 1u << 17, !(broken & 1u) && R(0x40023800u) & 1u << 16);      /* HSE */
    FOLLOW(0x40023800u, 1u << 25, !(broken & 2u) && R(0x40023800u) & 1u << 24);      /* PLL */
    FOLLOW(0x40007004u, 3u << 16, !(broken & 8u) && R(0x40007000u) & 1u << 16);      /* overdrive */
    if (!(broken & 4u) || (R(0x40023808u) & 3u) == 0u) {
        FOLLOW(0x40023808u, 3u << 2, 0);
        R(0x40023808u) |= (R(0x40023808u) & 3u) << 2;
    }
"""
# A bootloader has left the PLL on, and the core running from it.
STM32_INITIAL = """
static uint32_t initial(uint32_t address)
{
    return address == 0x40023800u ? 0x03000083u : address == 0x40023804u ? 0x24003010u :
           address == 0x40023808u ? 0x0000000Au : address == 0x40020000u ? 0xA8000000u : 0u;
}
"""
NO_CRYSTAL, NO_LOCK = 1, 2
FE310 = """
    FOLLOW(0x10008000u, 1u << 31, R(0x10008000u) & 1u << 30);
    FOLLOW(0x10008004u, 1u << 31, !(broken & 1u) && R(0x10008004u) & 1u << 30);
    FOLLOW(0x10008008u, 1u << 31, !(broken & 2u));
    R(0x0200BFF8u) += 1u;
"""
NRF = "FOLLOW(0x40000100u, 1u, !(broken & 1u) && R(0x40000000u));"
ZERO = "static uint32_t initial(uint32_t address) { (void)address; return 0; }\n"

Writes = list[tuple[int, int]]
Init = Callable[..., Writes]


@pytest.fixture
def init(tmp_path: Path) -> Init:
    """Returns a function that runs a board's ek_port_init and returns what it wrote, in order."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")

    def run(slug: str, source: str, reactions: str, broken: int = 0, initial: str = ZERO) -> Writes:
        shutil.copy(FIRMWARE / source, tmp_path / "port.c")
        (tmp_path / "ek_board.h").write_text(emit_board(load_board(slug)))
        (tmp_path / "ek_chip.h").write_text(initial)
        for name, sleep in (("ek_cortex_m.h", SLEEP_ARM), ("ek_riscv.h", SLEEP_RISCV)):
            (tmp_path / name).write_text(HEADER + sleep)
        (tmp_path / "harness.c").write_text(HARNESS.replace("REACT", reactions))
        program = tmp_path / "program"
        command = [compiler, "-std=c99", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover"]
        command += [
            f"-I{tmp_path}",
            f"-I{FIRMWARE / 'app'}",
            f"-DBROKEN={broken}u",
            "-o",
            str(program),
        ]
        subprocess.run(
            [*command, str(tmp_path / "port.c"), str(tmp_path / "harness.c")], check=True
        )
        done = subprocess.run([str(program)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        words = [line.split() for line in done.stdout.splitlines()]
        return [(int(address, 16), int(value, 16)) for address, value in words]

    return run


def last(writes: Writes, address: int, default: int = 0) -> int:
    return next((value for where, value in reversed(writes) if where == address), default)


# ---- STM32F4 ----


@dataclass(frozen=True)
class Limits:
    """What a data sheet allows, in MHz; wait states by the clock that they are enough for."""

    core: int
    apb1: int
    apb2: int
    wait_states: tuple[int, ...]


LIMITS = {
    "stm32f405": Limits(168, 42, 84, (30, 60, 90, 120, 150, 168)),
    "nucleo-f401re": Limits(84, 42, 84, (30, 60, 84)),
    "nucleo-f446re": Limits(180, 45, 90, (30, 60, 90, 120, 150, 180)),
    "blackpill-f411": Limits(100, 50, 100, (30, 64, 90, 100)),
}


@dataclass(frozen=True)
class Clocks:
    """The clocks that register values lead to, in Hz."""

    core: int
    apb1: int
    apb2: int

    @property
    def timer(self) -> int:
        return self.apb1 if self.apb1 == self.core else 2 * self.apb1


def clocks_of(writes: Writes, hse_hz: int) -> Clocks:
    """What RCC's registers say at the end."""
    cfgr, pll = last(writes, RCC_CFGR), last(writes, RCC_PLLCFGR)
    core = 16_000_000
    if cfgr & 3 == 2:
        source = hse_hz if pll >> 22 & 1 else 16_000_000
        core = source // (pll & 63) * (pll >> 6 & 511) // (2 * (pll >> 16 & 3) + 2)
    dividers = {0: 1, 4: 2, 5: 4, 6: 8, 7: 16}
    return Clocks(core, core // dividers[cfgr >> 10 & 7], core // dividers[cfgr >> 13 & 7])


@pytest.mark.parametrize("slug", LIMITS)
@pytest.mark.parametrize("broken", [0, NO_HSE, NO_PLL, NO_SWITCH, NO_OVERDRIVE])
def test_an_stm32_runs_at_full_speed_or_at_what_there_is(
    init: Init, slug: str, broken: int
) -> None:
    board, limits = load_board(slug), LIMITS[slug]
    defines = dict(board.defines)
    writes = init(slug, "stm32/stm32f4.c", STM32, broken, STM32_INITIAL)
    found = clocks_of(writes, defines["EK_HSE_HZ"])
    assert board.clock_hz == 1_000_000 * limits.core and board.uart and board.timer

    fails = broken & (NO_PLL | NO_SWITCH) or (broken & NO_OVERDRIVE and defines["EK_PWR_OVERDRIVE"])
    assert found.core == (16_000_000 if fails else board.clock_hz)
    if not fails:
        assert found.apb1 <= 1_000_000 * limits.apb1 and found.apb2 <= 1_000_000 * limits.apb2
        assert found.timer == board.timer.clock_hz
        on_hse = bool(defines["EK_HSE_HZ"]) and not broken & NO_HSE
        assert last(writes, RCC_PLLCFGR) >> 22 & 1 == on_hse

    uart_hz = found.apb2 if board.uart.address >= 0x4001_0000 else found.apb1
    baud = uart_hz / last(writes, board.uart.address + 8)
    assert abs(baud / board.uart.baud - 1) < 0.005
    assert found.timer / (last(writes, TIM2_PSC) + 1) == 2_000_000

    for pin in (defines["EK_UART_TX_PIN"], defines["EK_UART_RX_PIN"]):
        assert last(writes, GPIOA_MODER) >> 2 * pin & 3 == 2
        assert last(writes, GPIOA_AFRH if pin >= 8 else GPIOA_AFRL) >> 4 * (pin % 8) & 15 == 7
    assert last(writes, GPIOA_MODER) >> 26 == 0xA8000000 >> 26  # the debugger's pins


@pytest.mark.parametrize("slug", LIMITS)
def test_an_stm32_changes_its_clock_in_an_order_that_is_allowed(init: Init, slug: str) -> None:
    limits = LIMITS[slug]
    writes = init(slug, "stm32/stm32f4.c", STM32, 0, STM32_INITIAL)
    pll_on, core_on_pll, wait_states, vos = True, True, 0, 0
    switched = False
    for address, value in writes:
        if address == RCC_CFGR:
            core_on_pll = value & 3 == 2
            if core_on_pll:
                switched = True
                assert pll_on and limits.wait_states[wait_states] >= limits.core
                assert value >> 10  # the buses are slowed before, or at least with it
        elif address == RCC_CR:
            assert value >> 24 & 1 or not core_on_pll
            pll_on = bool(value >> 24 & 1)
        elif address == RCC_PLLCFGR:
            assert not pll_on
            assert 100 <= (value >> 6 & 511) <= 432  # MHz of the PLL's oscillator
        elif address == FLASH_ACR:
            wait_states = value & 15
        elif address == PWR_CR:
            assert value >> 14 & 3 == vos or not pll_on
            vos = value >> 14 & 3
            assert not value >> 17 & 1 or pll_on  # overdrive is switched to with the PLL on
    assert switched


# ---- FE310 ----


def fe310_hz(writes: Writes) -> int:
    pll = last(writes, 0x10008008)
    assert pll >> 16 & 1 and pll >> 17 & 1  # from the PLL, which takes the crystal
    if pll >> 18 & 1:
        return 16_000_000
    r, f, q = (pll & 7) + 1, 2 * ((pll >> 4 & 63) + 1), 1 << (pll >> 10 & 3)
    assert 6 <= 16 // r <= 12 and 384 <= 16 // r * f <= 768
    return 16_000_000 // r * f // q


@pytest.mark.parametrize("broken", [0, NO_CRYSTAL, NO_LOCK])
def test_the_hifive1_runs_from_its_pll_or_its_crystal(init: Init, broken: int) -> None:
    board = load_board("hifive1")
    writes = init("hifive1", "riscv/fe310.c", FE310, broken)
    assert board.uart is not None
    core_hz = fe310_hz(writes)
    assert core_hz == (16_000_000 if broken & NO_LOCK else board.clock_hz)
    baud = core_hz / (last(writes, board.uart.address + 0x18) + 1)
    assert abs(baud / board.uart.baud - 1) < 0.01
    assert last(writes, 0x10012038) == 1 << 16 | 1 << 17
    addresses = [address for address, _ in writes]
    if not broken & NO_LOCK:
        selected = max(i for i, (a, v) in enumerate(writes) if a == 0x10008008 and v >> 16 & 1)
        assert addresses.index(0x10014000) < selected  # the flash's clock is slowed before
        assert core_hz / (2 * (last(writes, 0x10014000) + 1)) <= 50_000_000


# ---- nRF ----


@pytest.mark.parametrize("slug", ["microbit", "nrf52840dk"])
@pytest.mark.parametrize("broken", [0, NO_CRYSTAL])
def test_an_nrf_goes_on_without_its_crystal(init: Init, slug: str, broken: int) -> None:
    board = load_board(slug)
    defines = dict(board.defines)
    writes = init(slug, "nrf/nrf5.c", NRF, broken)
    assert (0x40000000, 1) in writes  # the crystal is asked for
    assert last(writes, 0x40002524) == 0x01D7E000  # 115200 baud, as Nordic's table has it
    assert last(writes, 0x4000250C) == defines["EK_UART_TX_PIN"]
    assert last(writes, 0x40002514) == defines["EK_UART_RX_PIN"]
    assert last(writes, 0x40008508) == 3 and last(writes, 0x40008510) == 3  # 32 bits, 2 MHz
    assert (last(writes, 0x4001E540) == 1) == (slug == "nrf52840dk")  # the flash's cache
