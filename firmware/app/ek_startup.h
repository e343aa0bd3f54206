/* What start-up code of all architectures does alike. The names come from the linker scripts. */
#ifndef EK_STARTUP_H
#define EK_STARTUP_H

#include <stdint.h>

/* What the empty stack is painted with: what differs later has been used. */
#define EK_STACK_PATTERN 0xEDED57ACu

extern uint32_t ek_stack_bottom[], ek_stack_top[];
extern uint32_t ek_data_start[], ek_data_end[], ek_bss_start[], ek_bss_end[];
extern const uint32_t ek_data_image[];

/* Gives all variables their first values. */
static inline void ek_init_variables(void)
{
    const uint32_t *from = ek_data_image;
    for (uint32_t *to = ek_data_start; to < ek_data_end; ++to) {
        *to = *from++;
    }
    for (uint32_t *to = ek_bss_start; to < ek_bss_end; ++to) {
        *to = 0;
    }
}

/* The deepest that the stack has been, in bytes. */
static inline uint32_t ek_measure_stack(void)
{
    const volatile uint32_t *untouched = ek_stack_bottom;
    while (untouched < ek_stack_top && *untouched == EK_STACK_PATTERN) {
        ++untouched;
    }
    return (uint32_t)((uintptr_t)ek_stack_top - (uintptr_t)untouched);
}

#endif
