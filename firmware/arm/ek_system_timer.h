/* The system counter and system timer 0 of Arm's SSE-300 (its technical reference manual, Arm 101773). */
#ifndef EK_SYSTEM_TIMER_H
#define EK_SYSTEM_TIMER_H

#include "ek_board.h"
#include "ek_cortex_m.h"

#define EK_COUNTER_CNTCR EK_REGISTER(EK_COUNTER_ADDRESS + 0x00u)
#define EK_TIMER_CNTPCT_LOW EK_REGISTER(EK_TIMER_ADDRESS + 0x00u)
#define EK_TIMER_CNTPCT_HIGH EK_REGISTER(EK_TIMER_ADDRESS + 0x04u)
#define EK_TIMER_CVAL_LOW EK_REGISTER(EK_TIMER_ADDRESS + 0x20u)
#define EK_TIMER_CVAL_HIGH EK_REGISTER(EK_TIMER_ADDRESS + 0x24u)
#define EK_TIMER_CTL EK_REGISTER(EK_TIMER_ADDRESS + 0x2Cu)

/* Moves the next interrupt away, to half a turn of the counter's low word from now. */
static inline void ek_timer_acknowledge(void)
{
    const uint32_t low = EK_TIMER_CNTPCT_LOW;
    const uint32_t high = EK_TIMER_CNTPCT_HIGH;
    EK_TIMER_CTL = 0;
    EK_TIMER_CVAL_LOW = low + 0x80000000u;
    EK_TIMER_CVAL_HIGH = high + (low >= 0x80000000u ? 1u : 0u);
    EK_TIMER_CTL = 1u;
}

/* Starts it, with an interrupt before each wrap of what is read. */
static inline void ek_timer_start(void)
{
    EK_COUNTER_CNTCR = 1u;
    ek_timer_acknowledge();
}

/* The ticks since then, as a counter that runs up and wraps. */
static inline uint32_t ek_timer_read(void)
{
    return EK_TIMER_CNTPCT_LOW;
}

#endif
