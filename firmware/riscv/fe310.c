/* Clock and UART of SiFive's FE310-G000 (its manual, chapters 6, 18 and 19). Timestamps come from
 * the core's cycle counter: mtime, at 32768 Hz, is too coarse and only ends a long sleep.
 *
 * The core runs from the PLL on the crystal. Every step has a time-out; where the PLL does not
 * lock, the crystal's 16 MHz drive the core, and UART and time are set for that.
 */
#include <stdint.h>

#include "ek_board.h"
#include "ek_port.h"
#include "ek_riscv.h"
#include "ek_ticks.h"

#define PRCI_HFROSCCFG EK_REGISTER(0x10008000u)
#define PRCI_HFXOSCCFG EK_REGISTER(0x10008004u)
#define PRCI_PLLCFG EK_REGISTER(0x10008008u)
#define PRCI_PLLDIV EK_REGISTER(0x1000800Cu)
#define PRCI_OSCILLATOR_ON (1u << 30)
#define PRCI_READY (1u << 31)
#define PRCI_PLL_SELECT (1u << 16)
#define PRCI_PLL_CRYSTAL (1u << 17)
#define PRCI_PLL_BYPASS (1u << 18)
#define PRCI_PLL_R_2 (1u << 0)
#define PRCI_PLL_F(factor) (((factor) / 2u - 1u) << 4)
#define PRCI_PLL_Q_2 (1u << 10)
#define PRCI_PLLDIV_BY_1 0x100u

#define QSPI_SCKDIV EK_REGISTER(0x10014000u)
#define QSPI_SCKDIV_8 3u /* 40 MHz for the flash; it takes 50 */

#define GPIO_IOF_ENABLE EK_REGISTER(0x10012038u)
#define GPIO_IOF_SELECT EK_REGISTER(0x1001203Cu)

#define UART_TXDATA EK_REGISTER(EK_UART_ADDRESS + 0x00u)
#define UART_RXDATA EK_REGISTER(EK_UART_ADDRESS + 0x04u)
#define UART_TXCTRL EK_REGISTER(EK_UART_ADDRESS + 0x08u)
#define UART_RXCTRL EK_REGISTER(EK_UART_ADDRESS + 0x0Cu)
#define UART_IE EK_REGISTER(EK_UART_ADDRESS + 0x10u)
#define UART_DIV EK_REGISTER(EK_UART_ADDRESS + 0x18u)
#define UART_BUSY (1u << 31) /* TXDATA: full; RXDATA: empty */
#define UART_IE_RX 2u

#define CRYSTAL_HZ 16000000u
#define PLL_FACTOR (EK_CORE_CLOCK_HZ / (CRYSTAL_HZ / 4u)) /* R and Q halve */
#define POLLS 100000u
#define CYCLES_SHIFT 3u /* a tick is 8 cycles: it takes 107 s until their counter wraps */
#define WAKE_TICKS (60u * EK_TIMER_CLOCK_HZ)

/* The oscillator of the PLL has to be between 384 and 768 MHz. */
#if EK_CORE_CLOCK_HZ * 2u < 384000000u || EK_CORE_CLOCK_HZ * 2u > 768000000u || \
    EK_CORE_CLOCK_HZ % 8000000u != 0u
#error "clock.hz: from 192 to 384 MHz in steps of 8"
#endif
#if EK_UART_CLOCK_HZ != EK_CORE_CLOCK_HZ
#error "the UART's clock is the core's"
#endif

static uint32_t ticks_per_us;
static struct ek_ticks ticks;

static int wait_until_ready(volatile const uint32_t *address)
{
    for (uint32_t i = 0; i < POLLS; ++i) {
        if ((*address & PRCI_READY) != 0u) {
            return 1;
        }
    }
    return 0;
}

/* A lock means nothing in the first 100 us: waits 5 ticks of 31 us, if mtime runs. */
static void wait_for_pll(void)
{
    const uint32_t start = EK_CLINT_MTIME_LOW;
    for (uint32_t i = 0; i < POLLS && EK_CLINT_MTIME_LOW - start < 5u; ++i) {
    }
}

/* Returns the clock that the core runs at, in Hz. */
static uint32_t start_clock(void)
{
    PRCI_HFROSCCFG |= PRCI_OSCILLATOR_ON;
    (void)wait_until_ready(&PRCI_HFROSCCFG);
    PRCI_PLLCFG &= ~PRCI_PLL_SELECT; /* wherever the bootloader has left it */
    PRCI_HFXOSCCFG = PRCI_OSCILLATOR_ON;
    (void)wait_until_ready(&PRCI_HFXOSCCFG);
    PRCI_PLLDIV = PRCI_PLLDIV_BY_1;
    const uint32_t plan = PRCI_PLL_CRYSTAL | PRCI_PLL_R_2 | PRCI_PLL_F(PLL_FACTOR) | PRCI_PLL_Q_2;
    PRCI_PLLCFG = plan | PRCI_PLL_BYPASS;
    PRCI_PLLCFG = plan;
    wait_for_pll();
    if (wait_until_ready(&PRCI_PLLCFG)) {
        QSPI_SCKDIV = QSPI_SCKDIV_8;
        PRCI_PLLCFG = plan | PRCI_PLL_SELECT;
        return EK_CORE_CLOCK_HZ;
    }
    PRCI_PLLCFG = PRCI_PLL_CRYSTAL | PRCI_PLL_BYPASS | PRCI_PLL_SELECT;
    return CRYSTAL_HZ;
}

void ek_port_init(void)
{
    const uint32_t clock_hz = start_clock();
    ticks_per_us = (clock_hz >> CYCLES_SHIFT) / 1000000u;
    GPIO_IOF_SELECT &= ~((1u << EK_UART_TX_PIN) | (1u << EK_UART_RX_PIN));
    GPIO_IOF_ENABLE |= (1u << EK_UART_TX_PIN) | (1u << EK_UART_RX_PIN);
    UART_DIV = clock_hz / EK_UART_BAUD - 1u;
    UART_TXCTRL = 1u;
    UART_RXCTRL = 1u;
    UART_IE = UART_IE_RX;
    ek_listen_to(EK_UART_INTERRUPT);
}

struct ek_time ek_port_now(void)
{
    uint32_t low;
    uint32_t high;
    uint32_t again;
    do {
        EK_CSR_READ(mcycleh, high);
        EK_CSR_READ(mcycle, low);
        EK_CSR_READ(mcycleh, again);
    } while (high != again);
    const uint32_t now = (low >> CYCLES_SHIFT) | (high << (32u - CYCLES_SHIFT));
    return ek_ticks_update(&ticks, now, ticks_per_us);
}

uint8_t ek_port_get(void)
{
    uint32_t word = UART_RXDATA; /* reading takes the byte out */
    while ((word & UART_BUSY) != 0u) {
        ek_sleep_until_interrupt(WAKE_TICKS);
        (void)ek_port_now(); /* so that the counter does not wrap unseen */
        word = UART_RXDATA;
    }
    return (uint8_t)word;
}

void ek_port_put(uint8_t byte)
{
    while ((UART_TXDATA & UART_BUSY) != 0u) {
    }
    UART_TXDATA = byte;
}
