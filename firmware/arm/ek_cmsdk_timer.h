/* The APB timer of Arm's Cortex-M System Design Kit (DDI 0479, 4.1), which counts down. */
#ifndef EK_CMSDK_TIMER_H
#define EK_CMSDK_TIMER_H

#include "ek_board.h"
#include "ek_cortex_m.h"

#define EK_TIMER_CTRL EK_REGISTER(EK_TIMER_ADDRESS + 0x00u)
#define EK_TIMER_VALUE EK_REGISTER(EK_TIMER_ADDRESS + 0x04u)
#define EK_TIMER_RELOAD EK_REGISTER(EK_TIMER_ADDRESS + 0x08u)
#define EK_TIMER_INTCLEAR EK_REGISTER(EK_TIMER_ADDRESS + 0x0Cu)
#define EK_TIMER_CTRL_ON_IRQ 9u

/* Starts it, with an interrupt at each wrap. */
static inline void ek_timer_start(void)
{
    EK_TIMER_RELOAD = 0xFFFFFFFFu;
    EK_TIMER_VALUE = 0xFFFFFFFFu;
    EK_TIMER_CTRL = EK_TIMER_CTRL_ON_IRQ;
}

/* The ticks since then, as a counter that runs up and wraps. */
static inline uint32_t ek_timer_read(void)
{
    return 0xFFFFFFFFu - EK_TIMER_VALUE;
}

/* Ends the interrupt. */
static inline void ek_timer_acknowledge(void)
{
    EK_TIMER_INTCLEAR = 1u;
}

#endif
