/* UART0 on GP0 and GP1, timer and clocks of the RP2040 (its datasheet, 2.14 to 2.18, 4.2, 4.6).
 *
 * The processor runs from PLL_SYS, the UART and the timer's microseconds from the crystal. Every
 * wait for a clock has an end: without PLL_SYS the board runs at the crystal's speed, with the
 * right baud rate and the right time; without the crystal it runs from the ring oscillator,
 * whose frequency nobody knows.
 *
 * The timer counts microseconds in 64 bits, so nothing has to be done before it wraps.
 */
#include <stdint.h>

#include "ek_board.h"
#include "ek_cortex_m.h"
#include "ek_port.h"

#define SET(address) EK_REGISTER((address) + 0x2000u)   /* what is written there is set … */
#define CLEAR(address) EK_REGISTER((address) + 0x3000u) /* … or cleared */

#define RESETS 0x4000C000u
#define RESET_IO_BANK0 (1u << 5)
#define RESET_PADS_BANK0 (1u << 8)
#define RESET_PLL_SYS (1u << 12)
#define RESET_TIMER (1u << 21)
#define RESET_UART0 (1u << 22)
#define RESET_DONE EK_REGISTER(RESETS + 0x08u)

#define XOSC_CTRL 0x40024000u
#define XOSC_STATUS EK_REGISTER(0x40024004u)
#define XOSC_STARTUP EK_REGISTER(0x4002400Cu)
#define XOSC_1_TO_15_MHZ 0xAA0u
#define XOSC_ENABLE (0xFABu << 12)
#define XOSC_STABLE (1u << 31)

#define PLL_CS EK_REGISTER(0x40028000u)
#define PLL_PWR 0x40028004u
#define PLL_FBDIV EK_REGISTER(0x40028008u)
#define PLL_PRIM EK_REGISTER(0x4002800Cu)
#define PLL_LOCKED (1u << 31)
#define PLL_PWR_PD (1u << 0)
#define PLL_PWR_POSTDIV (1u << 3)
#define PLL_PWR_VCO (1u << 5)

#define CLK_REF_CTRL EK_REGISTER(0x40008030u)
#define CLK_REF_DIV EK_REGISTER(0x40008034u)
#define CLK_REF_SELECTED EK_REGISTER(0x40008038u)
#define CLK_SYS_CTRL 0x4000803Cu
#define CLK_SYS_DIV EK_REGISTER(0x40008040u)
#define CLK_SYS_SELECTED EK_REGISTER(0x40008044u)
#define CLK_PERI_CTRL EK_REGISTER(0x40008048u)
#define CLK_SYS_RESUS_CTRL EK_REGISTER(0x40008078u)
#define CLK_REF_FROM_ROSC 0u
#define CLK_REF_FROM_XOSC 2u
#define CLK_SYS_FROM_AUX 1u
#define CLK_SYS_AUX_MASK (7u << 5) /* 0: PLL_SYS */
#define CLK_PERI_FROM_ROSC (3u << 5)
#define CLK_PERI_FROM_XOSC (4u << 5)
#define CLK_PERI_ENABLE (1u << 11)
#define CLK_DIV_BY_1 (1u << 8)

#define WATCHDOG_TICK EK_REGISTER(0x4005802Cu)
#define WATCHDOG_TICK_ENABLE (1u << 9)

#define GPIO_CTRL(gpio) EK_REGISTER(0x40014004u + 8u * (gpio))
#define GPIO_FUNCTION_UART 2u
#define PAD(gpio) EK_REGISTER(0x4001C004u + 4u * (gpio))
#define PAD_SCHMITT (1u << 1)
#define PAD_PULL_UP (1u << 3)
#define PAD_INPUT (1u << 6)

#define UART_DR EK_REGISTER(EK_UART_ADDRESS + 0x00u)
#define UART_FR EK_REGISTER(EK_UART_ADDRESS + 0x18u)
#define UART_IBRD EK_REGISTER(EK_UART_ADDRESS + 0x24u)
#define UART_FBRD EK_REGISTER(EK_UART_ADDRESS + 0x28u)
#define UART_LCR_H EK_REGISTER(EK_UART_ADDRESS + 0x2Cu)
#define UART_CR EK_REGISTER(EK_UART_ADDRESS + 0x30u)
#define UART_IMSC EK_REGISTER(EK_UART_ADDRESS + 0x38u)
#define UART_FR_RX_EMPTY (1u << 4)
#define UART_FR_TX_FULL (1u << 5)
#define UART_LCR_H_8N1_FIFO 0x70u
#define UART_CR_ON 0x301u
#define UART_INT_RX (1u << 4)
#define UART_INT_RX_TIMEOUT (1u << 6) /* some bytes are there, but too few for the other */

#define TIMER_RAWH EK_REGISTER(EK_TIMER_ADDRESS + 0x24u)
#define TIMER_RAWL EK_REGISTER(EK_TIMER_ADDRESS + 0x28u)

#define CRYSTAL_HZ EK_UART_CLOCK_HZ
#define CRYSTAL_MHZ (CRYSTAL_HZ / 1000000u)
#define PLL_MULTIPLIER 125u
#define PLL_DIVIDER_1 6u
#define PLL_DIVIDER_2 2u

#if CRYSTAL_HZ % 1000000u != 0u || CRYSTAL_HZ > 15000000u
#error "the crystal has to have a whole number of MHz, 15 at most"
#endif
#if CRYSTAL_HZ / (PLL_DIVIDER_1 * PLL_DIVIDER_2) * PLL_MULTIPLIER != EK_CORE_CLOCK_HZ
#error "PLL_SYS does not make the core's clock from the crystal's"
#endif
#if EK_TIMER_CLOCK_HZ != 1000000u
#error "the timer counts microseconds"
#endif
#if EK_UART_CLOCK_HZ / EK_UART_BAUD < 16u
#error "the UART divides its clock by 16 at least: a lower baud rate is needed"
#endif

/* The baud rate's divider in 64ths, rounded: clock / (16 * baud). */
#define BAUD_DIVIDER ((EK_UART_CLOCK_HZ * 8u / EK_UART_BAUD + 1u) / 2u)

#define PATIENCE 100000u /* polls: 50 ms and more; a crystal takes one */

/* Waits until all bits of a register are set; returns whether they are. */
static int wait_for(const volatile uint32_t *reg, uint32_t bits)
{
    for (uint32_t polls = PATIENCE; polls > 0u; --polls) {
        if ((*reg & bits) == bits) {
            return 1;
        }
    }
    return 0;
}

static void start_blocks(uint32_t blocks)
{
    CLEAR(RESETS) = blocks;
    (void)wait_for(&RESET_DONE, blocks);
}

static int start_crystal(void)
{
    EK_REGISTER(XOSC_CTRL) = XOSC_1_TO_15_MHZ;
    XOSC_STARTUP = (CRYSTAL_HZ / 1000u + 128u) / 256u; /* 1 ms, in units of 256 periods */
    SET(XOSC_CTRL) = XOSC_ENABLE;
    return wait_for(&XOSC_STATUS, XOSC_STABLE);
}

static int start_pll(void)
{
    SET(RESETS) = RESET_PLL_SYS;
    start_blocks(RESET_PLL_SYS);
    PLL_CS = 1; /* the crystal's clock, not divided */
    PLL_FBDIV = PLL_MULTIPLIER;
    CLEAR(PLL_PWR) = PLL_PWR_PD | PLL_PWR_VCO;
    if (!wait_for(&PLL_CS, PLL_LOCKED)) {
        return 0;
    }
    PLL_PRIM = (PLL_DIVIDER_1 << 16) | (PLL_DIVIDER_2 << 12);
    CLEAR(PLL_PWR) = PLL_PWR_POSTDIV;
    return 1;
}

/* Returns with clk_sys at the highest speed to be had. What ran before may have left it on the
 * PLL (a debugger's reset does), so it leaves that first. */
static void start_clocks(void)
{
    CLK_SYS_RESUS_CTRL = 0;
    CLEAR(CLK_SYS_CTRL) = CLK_SYS_FROM_AUX;
    (void)wait_for(&CLK_SYS_SELECTED, 1u << 0);
    CLK_REF_CTRL = CLK_REF_FROM_ROSC;
    (void)wait_for(&CLK_REF_SELECTED, 1u << CLK_REF_FROM_ROSC);
    CLK_SYS_DIV = CLK_DIV_BY_1;
    CLK_REF_DIV = CLK_DIV_BY_1;
    WATCHDOG_TICK = WATCHDOG_TICK_ENABLE | CRYSTAL_MHZ;
    if (!start_crystal()) {
        CLK_PERI_CTRL = CLK_PERI_ENABLE | CLK_PERI_FROM_ROSC;
        return;
    }
    CLK_PERI_CTRL = CLK_PERI_ENABLE | CLK_PERI_FROM_XOSC;
    CLK_REF_CTRL = CLK_REF_FROM_XOSC;
    (void)wait_for(&CLK_REF_SELECTED, 1u << CLK_REF_FROM_XOSC);
    if (start_pll()) {
        CLEAR(CLK_SYS_CTRL) = CLK_SYS_AUX_MASK;
        SET(CLK_SYS_CTRL) = CLK_SYS_FROM_AUX;
        (void)wait_for(&CLK_SYS_SELECTED, 1u << CLK_SYS_FROM_AUX);
    }
}

void ek_port_init(void)
{
    start_clocks();
    SET(RESETS) = RESET_TIMER | RESET_UART0;
    start_blocks(RESET_IO_BANK0 | RESET_PADS_BANK0 | RESET_TIMER | RESET_UART0);
    UART_IBRD = BAUD_DIVIDER / 64u;
    UART_FBRD = BAUD_DIVIDER % 64u;
    UART_LCR_H = UART_LCR_H_8N1_FIFO;
    UART_CR = UART_CR_ON;
    UART_IMSC = UART_INT_RX | UART_INT_RX_TIMEOUT;
    GPIO_CTRL(0u) = GPIO_FUNCTION_UART;
    PAD(1u) = PAD_INPUT | PAD_PULL_UP | PAD_SCHMITT; /* quiet when nothing is connected */
    GPIO_CTRL(1u) = GPIO_FUNCTION_UART;
}

struct ek_time ek_port_now(void)
{
    static uint64_t second_began;
    static uint32_t seconds;
    uint32_t high = TIMER_RAWH;
    uint32_t low = TIMER_RAWL;
    while (TIMER_RAWH != high) {
        high = TIMER_RAWH;
        low = TIMER_RAWL;
    }
    const uint64_t now = ((uint64_t)high << 32) | low;
    while (now - second_began >= 1000000u) {
        second_began += 1000000u;
        ++seconds;
    }
    return (struct ek_time){seconds, (uint32_t)(now - second_began)};
}

uint8_t ek_port_get(void)
{
    while ((UART_FR & UART_FR_RX_EMPTY) != 0u) {
        ek_sleep_until_interrupt(EK_UART_INTERRUPT, EK_UART_INTERRUPT);
        EK_NVIC_ICPR(EK_UART_INTERRUPT) = EK_NVIC_BIT(EK_UART_INTERRUPT);
    }
    return (uint8_t)UART_DR;
}

void ek_port_put(uint8_t byte)
{
    while ((UART_FR & UART_FR_TX_FULL) != 0u) {
    }
    UART_DR = byte;
}
