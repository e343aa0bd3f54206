/* UART of Arm's Cortex-M System Design Kit (DDI 0479, 4.3), with the timer that is there.
 *
 * A timer of 32 bits is used and not SysTick: SysTick's 24 bits wrap in well under a second, and
 * the interrupt that would count its wraps would be measured with the model.
 */
#include <stdint.h>

#include "ek_board.h"
#include "ek_cortex_m.h"
#include "ek_port.h"
#include "ek_ticks.h"
#ifdef EK_TIMER_IS_SYSTEM_TIMER
#include "ek_system_timer.h"
#else
#include "ek_cmsdk_timer.h"
#endif

#define UART_DATA EK_REGISTER(EK_UART_ADDRESS + 0x00u)
#define UART_STATE EK_REGISTER(EK_UART_ADDRESS + 0x04u)
#define UART_CTRL EK_REGISTER(EK_UART_ADDRESS + 0x08u)
#define UART_INTCLEAR EK_REGISTER(EK_UART_ADDRESS + 0x0Cu)
#define UART_BAUDDIV EK_REGISTER(EK_UART_ADDRESS + 0x10u)
#define UART_STATE_TX_FULL 1u
#define UART_STATE_RX_FULL 2u
#define UART_CTRL_TX_RX_RXIRQ 11u
#define UART_INT_RX 2u

#if EK_UART_CLOCK_HZ / EK_UART_BAUD < 16u
#error "the UART divides its clock by 16 at least: a lower baud rate is needed"
#endif
#if EK_TIMER_CLOCK_HZ % 1000000u != 0u || EK_TIMER_CLOCK_HZ == 0u
#error "the timer's clock has to be a multiple of 1 MHz"
#endif

static struct ek_ticks ticks;

void ek_port_init(void)
{
    UART_BAUDDIV = EK_UART_CLOCK_HZ / EK_UART_BAUD;
    UART_CTRL = UART_CTRL_TX_RX_RXIRQ;
    (void)UART_DATA; /* whatever came in before; QEMU also looks for input after a read */
    ek_timer_start();
}

struct ek_time ek_port_now(void)
{
    return ek_ticks_update(&ticks, ek_timer_read(), EK_TIMER_CLOCK_HZ / 1000000u);
}

/* Both flags are cleared before the state is looked at again, so no byte is slept through. */
uint8_t ek_port_get(void)
{
    while ((UART_STATE & UART_STATE_RX_FULL) == 0u) {
        ek_sleep_until_interrupt(EK_UART_INTERRUPT, EK_TIMER_INTERRUPT);
        (void)ek_port_now(); /* the timer wakes the core before its counter wraps again */
        ek_timer_acknowledge();
        UART_INTCLEAR = UART_INT_RX;
        EK_NVIC_ICPR(EK_TIMER_INTERRUPT) = EK_NVIC_BIT(EK_TIMER_INTERRUPT);
        EK_NVIC_ICPR(EK_UART_INTERRUPT) = EK_NVIC_BIT(EK_UART_INTERRUPT);
    }
    return (uint8_t)UART_DATA;
}

void ek_port_put(uint8_t byte)
{
    while ((UART_STATE & UART_STATE_TX_FULL) != 0u) {
    }
    UART_DATA = byte;
}
