/* What the kernels for Armv6-M (Cortex-M0, M0+, M1) have in common: outputs from accumulators.
 *
 * These cores multiply 32 by 32 bits into 32 bits, so the upper half of a product has to be put
 * together, and have eight registers that every instruction takes, with which compilers do
 * badly: hence the assembly. Elsewhere the same functions in plain C, so that the kernels can be
 * tested on any machine.
 */
#ifndef EK_M0_H
#define EK_M0_H

#include "ek_common.h"

#if defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)
#define EK_HAS_M0 1
#else
#define EK_HAS_M0 0
#endif

/* What becomes of a channel's accumulator. */
typedef struct {
    int32_t bias;
    int32_t multiplier;
    int32_t right_shift; /* in [1, 22] */
} ek_scale_m0;

/* What all outputs have in common. */
typedef struct {
    int32_t twice_zero_point; /* and one more */
    int32_t low;
    int32_t high;
} ek_range_m0;

static EK_INLINE ek_range_m0 ek_make_range_m0(int32_t zero_point, int32_t low, int32_t high)
{
    const ek_range_m0 range = {2 * zero_point + 1, low, high};
    return range;
}

/* Writes the outputs from their sums, 1 to 8 of them. The same integers as ek_requantize_s8
 * where a sum with its bias is below 2^30: the product's upper half comes from four products of
 * halves, the sum's lower half taken with its sign so that all fits 32 bits, and the halves away
 * from zero and the zero point go into one shift. */
#if EK_HAS_M0
__attribute__((naked)) static EK_NOINLINE void ek_requantize_m0(
    __attribute__((unused)) const int32_t *sums, __attribute__((unused)) const ek_scale_m0 *scales,
    __attribute__((unused)) const ek_range_m0 *range, __attribute__((unused)) int8_t *output,
    __attribute__((unused)) int32_t count)
{
    __asm__ volatile(".syntax unified\n\t"
                     "push {r4, r5, r6, r7, lr}\n\t"
                     "mov r4, r8\n\tmov r5, r9\n\tmov r6, r10\n\tmov r7, r11\n\t"
                     "push {r4, r5, r6, r7}\n\t"
                     "ldmia r2!, {r5, r6, r7}\n\t"
                     "mov r9, r5\n\tmov r10, r6\n\tmov r11, r7\n\t"
                     "ldr r4, [sp, #36]\n\tadds r4, r4, r3\n\tmov r12, r4\n\t"
                     "movs r2, r3\n\t"
                     "movs r3, #1\n\tlsls r3, r3, #14\n\tmov lr, r3\n"
                     "1:\n\t"
                     "ldmia r0!, {r3}\n\t"
                     "ldmia r1!, {r4, r5, r6}\n\t"
                     "adds r3, r3, r4\n\t"
                     "mov r8, r6\n\t"
                     "sxth r4, r3\n\tsubs r3, r3, r4\n\tasrs r3, r3, #16\n\t"
                     "uxth r7, r5\n\tlsrs r5, r5, #16\n\t"
                     "movs r6, r4\n\tmuls r6, r7\n\tasrs r6, r6, #16\n\t"
                     "muls r7, r3\n\tadds r6, r6, r7\n\t"
                     "muls r4, r5\n\tadds r6, r6, r4\n\t"
                     "add r6, lr\n\tasrs r6, r6, #15\n\t"
                     "muls r3, r5\n\tlsls r3, r3, #1\n\tadds r3, r3, r6\n\t"
                     "asrs r4, r3, #31\n\tadds r3, r3, r4\n\t"
                     "mov r5, r8\n\tmov r4, r9\n\tlsls r4, r5\n\tasrs r4, r4, #1\n\t"
                     "adds r3, r3, r4\n\tasrs r3, r5\n\t"
                     "cmp r3, r10\n\tbge 2f\n\tmov r3, r10\n"
                     "2:\n\t"
                     "cmp r3, r11\n\tble 3f\n\tmov r3, r11\n"
                     "3:\n\t"
                     "strb r3, [r2]\n\tadds r2, #1\n\t"
                     "cmp r2, r12\n\t"
                     "bne 1b\n\t"
                     "pop {r4, r5, r6, r7}\n\t"
                     "mov r8, r4\n\tmov r9, r5\n\tmov r10, r6\n\tmov r11, r7\n\t"
                     "pop {r4, r5, r6, r7, pc}\n\t");
}
#else
static EK_INLINE void ek_requantize_m0(const int32_t *sums, const ek_scale_m0 *scales,
                                       const ek_range_m0 *range, int8_t *output, int32_t count)
{
    for (int32_t i = 0; i < count; ++i) {
        const int32_t acc = ek_wrapping_add(sums[i], scales[i].bias);
        const int32_t right = scales[i].right_shift;
        const int32_t acc_low = (int16_t)(uint16_t)((uint32_t)acc & 0xFFFFu);
        const int32_t acc_high = (acc - acc_low) >> 16;
        const int32_t by_low = scales[i].multiplier & 0xFFFF;
        const int32_t by_high = scales[i].multiplier >> 16;
        const int32_t middle =
            acc_high * by_low + acc_low * by_high + ((acc_low * by_low) >> 16) + 0x4000;
        const int32_t scaled = acc_high * by_high * 2 + (middle >> 15);
        const int32_t offset = ek_shift_left(range->twice_zero_point, right) >> 1;
        output[i] =
            ek_clamp_s8((scaled + (scaled >> 31) + offset) >> right, range->low, range->high);
    }
}
#endif

#endif
