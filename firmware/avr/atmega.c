/* USART0 and Timer 1 of the ATmega328P and ATmega2560 (datasheets DS40002061 and DS40002211).
 *
 * Nothing interrupts: bytes are polled for, and the timer's overflow flag counts its turns.
 */
#include <avr/io.h>
#include <stdint.h>

#include "ek_board.h"
#include "ek_port.h"
#include "ek_stack.h"

/* With U2X the USART divides its clock by 8. */
#define UART_DIVIDER ((EK_UART_CLOCK_HZ / 8u + EK_UART_BAUD / 2u) / EK_UART_BAUD)
#define UART_SPEED (EK_UART_CLOCK_HZ / 8u / UART_DIVIDER)

#if UART_DIVIDER < 1 || UART_DIVIDER > 4096
#error "the baud rate cannot be made from the clock"
#endif
#if UART_SPEED * 1000u < EK_UART_BAUD * 975u || UART_SPEED * 1000u > EK_UART_BAUD * 1025u
#error "the baud rate is off by more than 2.5 %"
#endif

/* The timer counts every 1024th clock cycle, so that a turn takes seconds. */
#define TICK_CYCLES 1024u
#define TICK_US (TICK_CYCLES * 1000000u / EK_TIMER_CLOCK_HZ)

#if TICK_CYCLES * 1000000u % EK_TIMER_CLOCK_HZ != 0u
#error "a tick has to be a whole number of microseconds"
#endif

/* Bytes that come in while one is sent: the USART holds two. A power of two. */
#define KEPT_BYTES 16u

static struct {
    uint8_t bytes[KEPT_BYTES];
    uint8_t first;
    uint8_t count;
} kept;

static struct ek_time time;
static uint16_t last_ticks;

void ek_port_init(void)
{
    UBRR0 = (uint16_t)(UART_DIVIDER - 1u);
    UCSR0A = (uint8_t)(1u << U2X0);
    UCSR0C = (uint8_t)(1u << UCSZ01 | 1u << UCSZ00);
    UCSR0B = (uint8_t)(1u << TXEN0 | 1u << RXEN0);
    TCCR1A = 0;
    TCCR1B = (uint8_t)(1u << CS12 | 1u << CS10);
    TIFR1 = (uint8_t)(1u << TOV1);
}

static void keep_received(void)
{
    if ((UCSR0A & (1u << RXC0)) != 0u) {
        const uint8_t byte = UDR0;
        if (kept.count < KEPT_BYTES) {
            kept.bytes[(uint8_t)(kept.first + kept.count) % KEPT_BYTES] = byte;
            ++kept.count;
        }
    }
}

/* The time is brought up to date while the application waits, and by it after every inference:
 * of two turns of the timer, eight seconds, one would be lost. */
uint8_t ek_port_get(void)
{
    while (kept.count == 0u) {
        keep_received();
        (void)ek_port_now();
    }
    const uint8_t byte = kept.bytes[kept.first];
    kept.first = (uint8_t)((kept.first + 1u) % KEPT_BYTES);
    --kept.count;
    return byte;
}

void ek_port_put(uint8_t byte)
{
    while ((UCSR0A & (1u << UDRE0)) == 0u) {
        keep_received();
    }
    UDR0 = byte;
}

/* The flag tells a whole turn from none. A turn that ends between the two reads shows in the
 * counter, and is then not to be seen again. This is also where an overflow of the stack is
 * found: right after the inference. */
struct ek_time ek_port_now(void)
{
    const uint8_t turned = (uint8_t)(TIFR1 & (1u << TOV1));
    const uint16_t ticks = TCNT1;
    uint32_t passed = (uint16_t)(ticks - last_ticks);
    if (turned != 0u && ticks >= last_ticks) {
        passed += 0x10000u;
    }
    if (turned != 0u || ticks < last_ticks) {
        TIFR1 = (uint8_t)(1u << TOV1);
    }
    ek_check_stack();
    last_ticks = ticks;
    time.microseconds += passed * TICK_US;
    while (time.microseconds >= 1000000u) {
        time.microseconds -= 1000000u;
        time.seconds += 1u;
    }
    return time;
}
