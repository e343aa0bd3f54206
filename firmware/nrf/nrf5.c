/* Clock, UART and timer of nRF51 and nRF52 (nRF51 Series Reference Manual, chapters 13, 29 and
 * 18; nRF52840 Product Specification, 5.4, 6.33 and 6.30): the same registers in both.
 *
 * The core always runs at full speed, 16 or 64 MHz; the crystal, which makes it exact, is
 * started with a time-out. nRF51 has no SysTick; TIMER0 counts 32 bits in both.
 */
#include <stdint.h>

#include "ek_board.h"
#include "ek_cortex_m.h"
#include "ek_port.h"
#include "ek_ticks.h"

#define CLOCK_HFCLKSTART EK_REGISTER(0x40000000u)
#define CLOCK_HFCLKSTARTED EK_REGISTER(0x40000100u)

#define GPIO_OUTSET EK_REGISTER(0x50000508u)
#define GPIO_PIN_CNF(pin) EK_REGISTER(0x50000700u + 4u * (pin))
#define GPIO_PIN_OUTPUT 3u
#define GPIO_PIN_INPUT_PULLUP (3u << 2)

#define UART_STARTRX EK_REGISTER(EK_UART_ADDRESS + 0x000u)
#define UART_STARTTX EK_REGISTER(EK_UART_ADDRESS + 0x008u)
#define UART_RXDRDY EK_REGISTER(EK_UART_ADDRESS + 0x108u)
#define UART_TXDRDY EK_REGISTER(EK_UART_ADDRESS + 0x11Cu)
#define UART_INTENSET EK_REGISTER(EK_UART_ADDRESS + 0x304u)
#define UART_ENABLE EK_REGISTER(EK_UART_ADDRESS + 0x500u)
#define UART_PSELTXD EK_REGISTER(EK_UART_ADDRESS + 0x50Cu)
#define UART_PSELRXD EK_REGISTER(EK_UART_ADDRESS + 0x514u)
#define UART_RXD EK_REGISTER(EK_UART_ADDRESS + 0x518u)
#define UART_TXD EK_REGISTER(EK_UART_ADDRESS + 0x51Cu)
#define UART_BAUDRATE EK_REGISTER(EK_UART_ADDRESS + 0x524u)
#define UART_INT_RXDRDY (1u << 2)
#define UART_ENABLED 4u

#define TIMER_START EK_REGISTER(EK_TIMER_ADDRESS + 0x000u)
#define TIMER_CAPTURE0 EK_REGISTER(EK_TIMER_ADDRESS + 0x040u)
#define TIMER_COMPARE1 EK_REGISTER(EK_TIMER_ADDRESS + 0x144u)
#define TIMER_INTENSET EK_REGISTER(EK_TIMER_ADDRESS + 0x304u)
#define TIMER_BITMODE EK_REGISTER(EK_TIMER_ADDRESS + 0x508u)
#define TIMER_PRESCALER EK_REGISTER(EK_TIMER_ADDRESS + 0x510u)
#define TIMER_CC0 EK_REGISTER(EK_TIMER_ADDRESS + 0x540u)
#define TIMER_CC1 EK_REGISTER(EK_TIMER_ADDRESS + 0x544u)
#define TIMER_INT_COMPARE1 (1u << 17)
#define TIMER_32_BITS 3u

#define POLLS 100000u /* some 30 ms; the crystal takes less than 1 */
#define PRESCALER 3u
#define TICKS_PER_US 2u

#if EK_TIMER_CLOCK_HZ != 16000000u || EK_UART_CLOCK_HZ != 16000000u
#error "the clock of nRF5's peripherals is 16 MHz"
#endif

/* The baud rate in 2^-32 of the clock; the lowest 12 bits are not there. */
static const uint32_t baud_code =
    (uint32_t)((((uint64_t)EK_UART_BAUD << 32) / EK_UART_CLOCK_HZ + 0x800u) & 0xFFFFF000u);

static struct ek_ticks ticks;

static void start_clock(void)
{
    CLOCK_HFCLKSTARTED = 0;
    CLOCK_HFCLKSTART = 1u;
    for (uint32_t i = 0; i < POLLS && CLOCK_HFCLKSTARTED == 0u; ++i) {
    }
#ifdef EK_NVMC_ICACHECNF
    EK_REGISTER(EK_NVMC_ICACHECNF) = 1u;
#endif
#ifdef EK_APPROTECT_DISABLE
    /* Newer chips lock the debugger out unless the firmware agrees with what flash says. */
    EK_REGISTER(EK_APPROTECT_DISABLE) = EK_REGISTER(EK_UICR_APPROTECT);
#endif
}

static void start_uart(void)
{
    GPIO_OUTSET = 1u << EK_UART_TX_PIN;
    GPIO_PIN_CNF(EK_UART_TX_PIN) = GPIO_PIN_OUTPUT;
    GPIO_PIN_CNF(EK_UART_RX_PIN) = GPIO_PIN_INPUT_PULLUP;
    UART_PSELTXD = EK_UART_TX_PIN;
    UART_PSELRXD = EK_UART_RX_PIN;
    UART_BAUDRATE = baud_code;
    UART_ENABLE = UART_ENABLED;
    UART_RXDRDY = 0;
    UART_TXDRDY = 0;
    UART_INTENSET = UART_INT_RXDRDY;
    UART_STARTTX = 1u;
    UART_STARTRX = 1u;
}

static void start_timer(void)
{
    TIMER_BITMODE = TIMER_32_BITS;
    TIMER_PRESCALER = PRESCALER;
    TIMER_CC1 = 0; /* an interrupt at each wrap */
    TIMER_INTENSET = TIMER_INT_COMPARE1;
    TIMER_START = 1u;
}

void ek_port_init(void)
{
    start_clock();
    start_uart();
    start_timer();
}

struct ek_time ek_port_now(void)
{
    TIMER_CAPTURE0 = 1u;
    return ek_ticks_update(&ticks, TIMER_CC0, TICKS_PER_US);
}

/* The event is cleared before the byte is taken: a byte that waits behind it raises it again. */
uint8_t ek_port_get(void)
{
    while (UART_RXDRDY == 0u) {
        ek_sleep_until_interrupt(EK_UART_INTERRUPT, EK_TIMER_INTERRUPT);
        (void)ek_port_now(); /* the timer wakes the core before its counter wraps again */
        TIMER_COMPARE1 = 0;
        EK_NVIC_ICPR(EK_TIMER_INTERRUPT) = EK_NVIC_BIT(EK_TIMER_INTERRUPT);
        EK_NVIC_ICPR(EK_UART_INTERRUPT) = EK_NVIC_BIT(EK_UART_INTERRUPT);
    }
    UART_RXDRDY = 0;
    return (uint8_t)UART_RXD;
}

void ek_port_put(uint8_t byte)
{
    UART_TXDRDY = 0;
    UART_TXD = byte;
    while (UART_TXDRDY == 0u) {
    }
}
