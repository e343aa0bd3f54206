/* The registers of a Cortex-M that start-up and drivers use (Armv7-M reference manual, B3). */
#ifndef EK_CORTEX_M_H
#define EK_CORTEX_M_H

#include <stdint.h>

#define EK_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

#define EK_SYSTICK_CTRL EK_REGISTER(0xE000E010u)
#define EK_SCB_VTOR EK_REGISTER(0xE000ED08u)
#define EK_SCB_CCR EK_REGISTER(0xE000ED14u)
#define EK_SCB_SHCSR EK_REGISTER(0xE000ED24u)
#define EK_SCB_CFSR EK_REGISTER(0xE000ED28u)
#define EK_SCB_CLIDR EK_REGISTER(0xE000ED78u)
#define EK_SCB_CCSIDR EK_REGISTER(0xE000ED80u)
#define EK_SCB_CSSELR EK_REGISTER(0xE000ED84u)
#define EK_SCB_CPACR EK_REGISTER(0xE000ED88u)
#define EK_SCB_ICIALLU EK_REGISTER(0xE000EF50u)
#define EK_SCB_DCISW EK_REGISTER(0xE000EF60u)
#define EK_SCB_CCR_DCACHE (1u << 16)
#define EK_SCB_CCR_ICACHE (1u << 17)
#define EK_NVIC_ISER(interrupt) EK_REGISTER(0xE000E100u + 4u * ((interrupt) / 32u))
#define EK_NVIC_ICER(interrupt) EK_REGISTER(0xE000E180u + 4u * ((interrupt) / 32u))
#define EK_NVIC_ICPR(interrupt) EK_REGISTER(0xE000E280u + 4u * ((interrupt) / 32u))
#define EK_NVIC_BIT(interrupt) (1u << ((interrupt) % 32u))

/* Undoes what a bootloader may have left: interrupts that are enabled, or masked as a whole. */
static inline void ek_forget_interrupts(void)
{
    EK_SYSTICK_CTRL = 0;
    for (uint32_t first = 0; first < 256u; first += 32u) {
        EK_NVIC_ICER(first) = 0xFFFFFFFFu;
        EK_NVIC_ICPR(first) = 0xFFFFFFFFu;
    }
    __asm__ volatile("dsb\nisb\ncpsie i" ::: "memory");
}

/* Sleeps until one of two interrupts is pending, without taking it. The caller clears its
 * cause, then what is pending. */
static inline void ek_sleep_until_interrupt(uint32_t first, uint32_t second)
{
    __asm__ volatile("cpsid i" ::: "memory");
    EK_NVIC_ISER(first) = EK_NVIC_BIT(first);
    EK_NVIC_ISER(second) = EK_NVIC_BIT(second);
    __asm__ volatile("dsb\nwfi" ::: "memory");
    EK_NVIC_ICER(first) = EK_NVIC_BIT(first);
    EK_NVIC_ICER(second) = EK_NVIC_BIT(second);
    __asm__ volatile("dsb\nisb\ncpsie i" ::: "memory");
}

#endif
