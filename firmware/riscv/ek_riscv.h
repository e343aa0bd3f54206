/* What start-up and drivers use of a RISC-V core and of SiFive's interrupt controllers (the
 * privileged architecture, 3.1 and 3.2; FE310-G000 manual, chapters 8 to 10). */
#ifndef EK_RISCV_H
#define EK_RISCV_H

#include <stdint.h>

#define EK_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* The extension's name is not in -march: older and newer compilers disagree on it. */
#define EK_CSR_WRITE(name, value)                                                               \
    __asm__ volatile(".option push\n.option arch, +zicsr\ncsrw " #name ", %0\n.option pop" \
                     :                                                                          \
                     : "r"(value)                                                               \
                     : "memory")
#define EK_CSR_READ(name, value)                                                                 \
    __asm__ volatile(".option push\n.option arch, +zicsr\ncsrr %0, " #name "\n.option pop" \
                     : "=r"(value)::"memory")

#define EK_MIE_TIMER (1u << 7)
#define EK_MIE_EXTERNAL (1u << 11)

#define EK_CLINT_MTIMECMP_LOW EK_REGISTER(0x02004000u)
#define EK_CLINT_MTIMECMP_HIGH EK_REGISTER(0x02004004u)
#define EK_CLINT_MTIME_LOW EK_REGISTER(0x0200BFF8u)
#define EK_CLINT_MTIME_HIGH EK_REGISTER(0x0200BFFCu)

#define EK_PLIC_PRIORITY(interrupt) EK_REGISTER(0x0C000000u + 4u * (interrupt))
#define EK_PLIC_ENABLE(interrupt) EK_REGISTER(0x0C002000u + 4u * ((interrupt) / 32u))
#define EK_PLIC_THRESHOLD EK_REGISTER(0x0C200000u)
#define EK_PLIC_CLAIM EK_REGISTER(0x0C200004u)

/* Lets one interrupt of a device end a wfi, and no other. */
static inline void ek_listen_to(uint32_t interrupt)
{
    EK_PLIC_PRIORITY(interrupt) = 1u;
    EK_PLIC_THRESHOLD = 0;
    EK_PLIC_ENABLE(interrupt) = 1u << (interrupt % 32u);
}

/* Sleeps until that interrupt, or for so many ticks of mtime. None is ever taken: mstatus
 * leaves them disabled. */
static inline void ek_sleep_until_interrupt(uint32_t ticks)
{
    const uint32_t low = EK_CLINT_MTIME_LOW;
    const uint32_t high = EK_CLINT_MTIME_HIGH;
    EK_CLINT_MTIMECMP_HIGH = 0xFFFFFFFFu; /* not in the past while only half is written */
    EK_CLINT_MTIMECMP_LOW = low + ticks;
    EK_CLINT_MTIMECMP_HIGH = high + (low + ticks < low ? 1u : 0u);
    EK_CSR_WRITE(mie, EK_MIE_TIMER | EK_MIE_EXTERNAL);
    __asm__ volatile("wfi" ::: "memory");
    EK_CSR_WRITE(mie, 0u);
    const uint32_t interrupt = EK_PLIC_CLAIM;
    if (interrupt != 0u) {
        EK_PLIC_CLAIM = interrupt; /* done with it */
    }
}

#endif
