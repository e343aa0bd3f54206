/* UART and timer of QEMU's machine "virt", which stands for no real board: a 16550 and mtime. */
#include <stdint.h>

#include "ek_board.h"
#include "ek_port.h"
#include "ek_riscv.h"
#include "ek_ticks.h"

#define UART(offset) (*(volatile uint8_t *)(uintptr_t)(EK_UART_ADDRESS + (offset)))
#define UART_DATA UART(0u)
#define UART_DIVISOR_LOW UART(0u)
#define UART_DIVISOR_HIGH UART(1u)
#define UART_IER UART(1u)
#define UART_FCR UART(2u)
#define UART_LCR UART(3u)
#define UART_LSR UART(5u)
#define UART_DIVISOR (EK_UART_CLOCK_HZ / (16u * EK_UART_BAUD))
#define UART_LCR_DIVISOR 0x80u
#define UART_LCR_8N1 3u
#define UART_LSR_RX 1u
#define UART_LSR_TX_EMPTY 0x20u

#define WAKE_TICKS (60u * EK_TIMER_CLOCK_HZ)

#if EK_TIMER_CLOCK_HZ % 1000000u != 0u || EK_TIMER_CLOCK_HZ == 0u
#error "the timer's clock has to be a multiple of 1 MHz"
#endif

static struct ek_ticks ticks;

void ek_port_init(void)
{
    UART_LCR = UART_LCR_DIVISOR;
    UART_DIVISOR_LOW = UART_DIVISOR & 0xFFu;
    UART_DIVISOR_HIGH = UART_DIVISOR >> 8;
    UART_LCR = UART_LCR_8N1;
    UART_FCR = 1u;
    UART_IER = 1u; /* an interrupt when a byte has come */
    ek_listen_to(EK_UART_INTERRUPT);
}

struct ek_time ek_port_now(void)
{
    return ek_ticks_update(&ticks, EK_CLINT_MTIME_LOW, EK_TIMER_CLOCK_HZ / 1000000u);
}

uint8_t ek_port_get(void)
{
    while ((UART_LSR & UART_LSR_RX) == 0u) {
        ek_sleep_until_interrupt(WAKE_TICKS);
        (void)ek_port_now(); /* so that the counter does not wrap unseen */
    }
    return UART_DATA;
}

void ek_port_put(uint8_t byte)
{
    while ((UART_LSR & UART_LSR_TX_EMPTY) == 0u) {
    }
    UART_DATA = byte;
}
