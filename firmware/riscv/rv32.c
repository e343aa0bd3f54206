/* Start-up, faults and stack measurement of a 32-bit RISC-V core in machine mode.
 *
 * The stack lies at the bottom of RAM and grows towards its start, so that an overflow leaves
 * RAM and faults where nothing lies below. No interrupt is ever taken: drivers use them to end
 * a wfi.
 */
#include <stdint.h>

#include "ek_port.h"
#include "ek_riscv.h"
#include "ek_startup.h"

void ek_reset(void);
void ek_fault(void);
void ek_start(void);
void ek_fault_in_c(const uint32_t *stack);

/* Where the core starts: first in the image. The whole stack is painted while it is empty. */
__attribute__((naked, noreturn, used, section(".vectors"))) void ek_reset(void)
{
    __asm__ volatile("la a0, ek_stack_bottom\n"
                     "la sp, ek_stack_top\n"
                     "li a1, %0\n"
                     "0:\n"
                     "sw a1, 0(a0)\n"
                     "addi a0, a0, 4\n"
                     "bltu a0, sp, 0b\n"
                     "j ek_start\n"
                     :
                     : "i"(EK_STACK_PATTERN));
}

__attribute__((used, noreturn)) void ek_start(void)
{
    EK_CSR_WRITE(mie, 0u);
    EK_CSR_WRITE(mtvec, (uint32_t)(uintptr_t)ek_fault);
    ek_init_variables();
    (void)main();
    for (;;) {
    }
}

/* The stack pointer may be anywhere: keep it as the argument, and start a fresh stack. Aligned
 * as mtvec wants it. */
__attribute__((naked, aligned(4))) void ek_fault(void)
{
    __asm__ volatile("mv a0, sp\n"
                     "la sp, ek_stack_top\n"
                     "j ek_fault_in_c\n");
}

/* Reports on the UART and stops. */
__attribute__((used, noreturn)) void ek_fault_in_c(const uint32_t *stack)
{
    uint32_t pc;
    uint32_t cause;
    EK_CSR_READ(mepc, pc);
    EK_CSR_READ(mcause, cause);
    ek_report_fault(stack < ek_stack_bottom ? "Stack overflow" : "Fault", pc, cause);
    for (;;) {
        __asm__ volatile("wfi");
    }
}

uint32_t ek_port_stack_peak(void)
{
    return ek_measure_stack();
}
