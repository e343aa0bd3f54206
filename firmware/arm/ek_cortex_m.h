/* The registers of a Cortex-M that start-up and drivers use (Armv7-M reference manual, B3). */
#ifndef EK_CORTEX_M_H
#define EK_CORTEX_M_H

#include <stdint.h>

#define EK_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

#define EK_SCB_VTOR EK_REGISTER(0xE000ED08u)
#define EK_SCB_CFSR EK_REGISTER(0xE000ED28u)
#define EK_SCB_CPACR EK_REGISTER(0xE000ED88u)
#define EK_NVIC_ISER(interrupt) EK_REGISTER(0xE000E100u + 4u * ((interrupt) / 32u))
#define EK_NVIC_ICPR(interrupt) EK_REGISTER(0xE000E280u + 4u * ((interrupt) / 32u))
#define EK_NVIC_BIT(interrupt) (1u << ((interrupt) % 32u))

#endif
