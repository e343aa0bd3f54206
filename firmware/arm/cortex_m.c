/* Start-up, faults and stack measurement of a Cortex-M.
 *
 * The stack lies at the bottom of RAM and grows towards its start, so that an overflow leaves
 * RAM and faults at once instead of overwriting variables. (QEMU's MPS2 ignores such a write;
 * there a stack that was used up tells, see ek_port_stack_peak.)
 *
 * No interrupt is ever taken: drivers use them to end a wfi, with interrupts masked around it.
 * Elsewhere they are not masked, as that would turn a BusFault, which an overflow can be
 * reported from, into a HardFault, whose own stacking must not fail.
 */
#include <stdint.h>

#include "ek_board.h"
#include "ek_cortex_m.h"
#include "ek_port.h"
#include "ek_startup.h"

void ek_reset(void);
void ek_fault(void);
void ek_fault_in_c(const uint32_t *frame);

typedef void (*handler)(void);

/* The 16 exceptions of the architecture: reset, NMI, HardFault, MemManage, BusFault and
 * UsageFault, and others which are not used. */
__attribute__((section(".vectors"), used)) static const handler vectors[16] = {
    (handler)(uintptr_t)ek_stack_top, ek_reset, ek_fault, ek_fault, ek_fault, ek_fault, ek_fault,
};

/* Starts without a stack frame of its own: the whole stack is painted while it is empty. */
__attribute__((naked, noreturn)) void ek_reset(void)
{
    __asm__ volatile(".syntax unified\n"
                     "ldr r0, =ek_stack_bottom\n"
                     "ldr r1, =ek_stack_top\n"
                     "mov sp, r1\n"
                     "ldr r2, =%c0\n"
                     "0:\n"
                     "str r2, [r0]\n"
                     "adds r0, #4\n"
                     "cmp r0, r1\n"
                     "blo 0b\n"
                     "bl ek_start\n"
                     ".ltorg\n"
                     :
                     : "i"(EK_STACK_PATTERN));
}

#ifdef EK_HAS_CACHES
/* Invalidates and enables the caches that are there (Armv7-M reference manual, B2.2.7). Nothing
 * but the core moves data here, so there is no more to do about them. */
static void ek_enable_caches(void)
{
    const uint32_t levels = EK_SCB_CLIDR;
    __asm__ volatile("dsb\nisb" ::: "memory");
    if ((levels & 1u) != 0u) {
        EK_SCB_ICIALLU = 0;
        __asm__ volatile("dsb\nisb" ::: "memory");
        EK_SCB_CCR |= EK_SCB_CCR_ICACHE;
    }
    if ((levels & 6u) != 0u) {
        EK_SCB_CSSELR = 0; /* the data cache of level 1 */
        __asm__ volatile("dsb" ::: "memory");
        const uint32_t geometry = EK_SCB_CCSIDR;
        const uint32_t last_set = (geometry >> 13) & 0x7FFFu;
        const uint32_t last_way = (geometry >> 3) & 0x3FFu;
        for (uint32_t set = 0; set <= last_set; ++set) {
            for (uint32_t way = 0; way <= last_way; ++way) {
                EK_SCB_DCISW = (way << 30) | (set << 5); /* four ways, lines of 32 bytes */
            }
        }
        __asm__ volatile("dsb" ::: "memory");
        EK_SCB_CCR |= EK_SCB_CCR_DCACHE;
    }
    __asm__ volatile("dsb\nisb" ::: "memory");
}
#endif

void ek_start(void);

__attribute__((used, noreturn)) void ek_start(void)
{
#if __ARM_ARCH >= 7
    EK_SCB_VTOR = (uint32_t)(uintptr_t)vectors;
    EK_SCB_SHCSR = 7u << 16; /* enables MemManage, BusFault and UsageFault */
#endif
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    EK_SCB_CPACR |= 0xFu << 20; /* full access to CP10 and CP11 */
    __asm__ volatile("dsb\nisb");
#endif
#ifdef EK_HAS_CACHES
    ek_enable_caches();
#endif
    ek_init_variables();
    (void)main();
    for (;;) {
    }
}

/* The stack pointer may be anywhere: keep it as the argument, and start a fresh stack. */
__attribute__((naked)) void ek_fault(void)
{
    __asm__ volatile("mov r0, sp\n"
                     "ldr r1, =ek_stack_top\n"
                     "mov sp, r1\n"
                     "bl ek_fault_in_c\n"
                     ".ltorg\n");
}

/* Reports on the UART and stops. The eighth-last register that the hardware stacked is where
 * it happened. */
__attribute__((used, noreturn)) void ek_fault_in_c(const uint32_t *frame)
{
    const int overflow = frame < ek_stack_bottom || frame + 8 > ek_stack_top;
#if __ARM_ARCH >= 7
    const uint32_t status = EK_SCB_CFSR;
#else
    const uint32_t status = 0;
#endif
    ek_report_fault(overflow ? EK_TEXT("Stack overflow") : EK_TEXT("Fault"), overflow ? 0u : frame[6], status);
    for (;;) {
        __asm__ volatile("wfi");
    }
}

uint32_t ek_port_stack_peak(void)
{
    return ek_measure_stack();
}
