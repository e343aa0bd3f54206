/* Start-up and stack measurement of an AVR.
 *
 * The stack grows from the end of RAM towards the variables; nothing stops it there. What
 * start-up painted tells how deep it has been, and whether it met them.
 */
#include <avr/io.h>
#include <stdint.h>

#include "ek_board.h"
#include "ek_port.h"
#include "ek_stack.h"

#define STACK_PATTERN 0xE5u
#define GUARD_BYTES 16u /* at the bottom of the stack; a frame may leave some as they were */

/* From the linker script. */
extern uint8_t ek_stack_bottom[], ek_stack_top[];

void ek_vectors(void);
void ek_start(void);
void ek_enter(void);

/* The only vector: no interrupt is ever enabled. Start-up follows it (see avr.ld). */
__attribute__((naked, used, section(".vectors"))) void ek_vectors(void)
{
    __asm__ volatile("clr __zero_reg__\n"
                     "out __SREG__, __zero_reg__\n");
#if defined(EIND)
    __asm__ volatile("out %[eind], __zero_reg__\n" : : [eind] "I"(_SFR_IO_ADDR(EIND)));
#endif
}

/* Sets the stack up, paints it while it is empty, and stops the watchdog: a boot loader that
 * ends by a watchdog reset leaves it running. The library's pieces copy .data and clear .bss
 * after it. */
__attribute__((naked, used, section(".init2"))) void ek_start(void)
{
    __asm__ volatile("ldi r28, lo8(ek_stack_top - 1)\n"
                     "ldi r29, hi8(ek_stack_top - 1)\n"
                     "out __SP_H__, r29\n"
                     "out __SP_L__, r28\n"
                     "ldi r26, lo8(ek_stack_bottom)\n"
                     "ldi r27, hi8(ek_stack_bottom)\n"
                     "ldi r24, %[pattern]\n"
                     "0:\n"
                     "st X+, r24\n"
                     "cp r28, r26\n"
                     "cpc r29, r27\n"
                     "brsh 0b\n"
                     "wdr\n"
                     "out %[mcusr], __zero_reg__\n"
                     "ldi r24, %[change]\n"
                     "sts %[wdtcsr], r24\n"
                     "sts %[wdtcsr], __zero_reg__\n"
                     :
                     : [pattern] "M"(STACK_PATTERN), [mcusr] "I"(_SFR_IO_ADDR(MCUSR)),
                       [wdtcsr] "n"(_SFR_MEM_ADDR(WDTCSR)), [change] "M"(1 << WDCE | 1 << WDE));
}

__attribute__((naked, used, section(".init9"))) void ek_enter(void)
{
    __asm__ volatile("jmp main");
}

uint32_t ek_port_stack_peak(void)
{
    const volatile uint8_t *untouched = ek_stack_bottom;
    while (untouched < ek_stack_top && *untouched == STACK_PATTERN) {
        ++untouched;
    }
    return (uint32_t)(uint16_t)((uintptr_t)ek_stack_top - (uintptr_t)untouched);
}

void ek_check_stack(void)
{
    const volatile uint8_t *bottom = ek_stack_bottom;
    uint8_t untouched = 0;
    while (untouched < GUARD_BYTES && bottom[untouched] == STACK_PATTERN) {
        ++untouched;
    }
    if (untouched == GUARD_BYTES) {
        return;
    }
    ek_report_fault(EK_TEXT("Stack overflow"), 0u, 0u);
    for (;;) {
    }
}
