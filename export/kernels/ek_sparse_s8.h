/* The inner product of the kernels for pruned weights: zeros are neither stored nor multiplied.
 *
 * The weights of a channel are groups of `block` (1 or 4) inputs that follow each other. A group
 * is a byte, the gap, and its weights: so many blocks lie between the beginning of the group
 * before (or of the inputs) and that of this one. A longer gap passes through groups of zeros.
 * With blocks of 1 every channel has an even number of groups, so that two are a word.
 *
 * entries      bytes: the groups of all channels
 * groups       uint16 [channels]
 * bias         int32 [channels], less input_zero_point * sum(weights) of the channel
 * multiplier   int32 [channels], or one for all (per_channel 0)
 * shift        int8, as many
 * Rounding: ek_scale; with dsp 1 ek_requantize_dsp, for shifts in [-22, -1] and sums below 2^30.
 */
#ifndef EK_SPARSE_S8_H
#define EK_SPARSE_S8_H

#include "ek_dsp.h"

typedef struct {
    int32_t channels;
    int32_t block;
    int32_t dsp;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    int32_t per_channel;
    int32_t shifts_left;
    const EK_FLASH int8_t *entries;
    const EK_FLASH uint16_t *groups;
    const EK_FLASH int32_t *bias;
    const EK_FLASH int32_t *multiplier;
    const EK_FLASH int8_t *shift;
} ek_sparse_s8;

#if EK_HAS_DSP
/* Two groups of one weight: 8 instructions. */
#define EK_SPARSE_PAIR                                                                           \
    "ldr r4, [%[e]], #4\n\t"                                                                     \
    "uxtab %[x], %[x], r4\n\t"                                                                   \
    "ldrsb r5, [%[x]]\n\t"                                                                       \
    "uxtab %[x], %[x], r4, ror #16\n\t"                                                          \
    "ldrsb r6, [%[x]]\n\t"                                                                       \
    "sxtb16 r4, r4, ror #8\n\t"                                                                  \
    "smlabb %[acc], r4, r5, %[acc]\n\t"                                                          \
    "smlatb %[acc], r4, r6, %[acc]\n\t"
/* One group of four weights: 10 instructions. */
#define EK_SPARSE_BLOCK                                                                          \
    "ldrb r4, [%[e]], #1\n\t"                                                                    \
    "ldr r5, [%[e]], #4\n\t"                                                                     \
    "add %[x], %[x], r4, lsl #2\n\t"                                                             \
    "ldr r4, [%[x]]\n\t"                                                                         \
    "sxtb16 r6, r5\n\t"                                                                          \
    "sxtb16 r8, r4\n\t"                                                                          \
    "sxtb16 r5, r5, ror #8\n\t"                                                                  \
    "sxtb16 r4, r4, ror #8\n\t"                                                                  \
    "smlad %[acc], r6, r8, %[acc]\n\t"                                                           \
    "smlad %[acc], r5, r4, %[acc]\n\t"
/* Two steps at a time; an odd number of them begins in the middle. n: the steps plus 1. */
#define EK_SPARSE_LOOP(step)                                                                     \
    __asm__ volatile("lsrs %[n], %[n], #1\n\t"                                                   \
                     "bcc 2f\n"                                                                  \
                     "1:\n\t" step "2:\n\t" step                                                 \
                     "subs %[n], %[n], #1\n\t"                                                   \
                     "bne 1b\n\t"                                                                \
                     : [x] "+r"(x), [e] "+r"(e), [acc] "+r"(acc), [n] "+r"(n)                    \
                     :                                                                           \
                     : "r4", "r5", "r6", "r8", "cc", "memory")

/* As ek_sparse_dot_s8. */
static EK_INLINE int32_t ek_sparse_dot_dsp_s8(const int8_t *x, const int8_t *e, int32_t groups,
                                              int32_t block, int32_t acc)
{
    int32_t n = (block == 4 ? groups : groups / 2) + 1;
    if (groups == 0) {
        return acc;
    }
    if (block == 4) {
        EK_SPARSE_LOOP(EK_SPARSE_BLOCK);
    } else {
        EK_SPARSE_LOOP(EK_SPARSE_PAIR);
    }
    return acc;
}
#endif

#if defined(EK_AVR_SUM)
/* The product of w and x, of which the sign is left in the carry, is added to the sum. */
#define EK_SPARSE_AVR_ADD                                                                        \
    "muls %[b], %[a]\n"                                                                          \
    "sbc %[b], %[b]\n"                                                                           \
    "add %A[sum], r0\n"                                                                          \
    "adc %B[sum], r1\n"                                                                          \
    "adc %C[sum], %[b]\n"                                                                        \
    "adc %D[sum], %[b]\n"
#define EK_SPARSE_AVR_NEXT "ld %[a], %a[x]+\n lpm %[b], %a[e]+\n" EK_SPARSE_AVR_ADD
/* 21 cycles for a group of one weight. */
#define EK_SPARSE_AVR_ONE                                                                        \
    "lpm %[b], %a[e]+\n"                                                                         \
    "add %A[x], %[b]\n"                                                                          \
    "adc %B[x], %[constant]\n"                                                                   \
    "ld %[a], %a[x]\n"                                                                           \
    "lpm %[b], %a[e]+\n" EK_SPARSE_AVR_ADD
/* 61 cycles for a group of four. */
#define EK_SPARSE_AVR_FOUR                                                                       \
    "lpm %[b], %a[e]+\n"                                                                         \
    "mul %[b], %[constant]\n"                                                                    \
    "add %A[x], r0\n"                                                                            \
    "adc %B[x], r1\n" EK_SPARSE_AVR_NEXT EK_SPARSE_AVR_NEXT EK_SPARSE_AVR_NEXT                   \
        EK_SPARSE_AVR_NEXT "sbiw %[x], 4\n"
#define EK_SPARSE_AVR_LOOP(group, number)                                                        \
    __asm__ volatile("0: " group "sbiw %[left], 1\n"                                             \
                     "brne 0b\n"                                                                 \
                     "clr __zero_reg__\n"                                                        \
                     : [x] "+x"(x), [e] "+z"(e), [left] "+w"(left), [sum] "+r"(acc),             \
                       [a] "=&a"(ek_x), [b] "=&a"(ek_w)                                          \
                     : [constant] "r"((uint8_t)(number))                                         \
                     : "memory")
#endif

static EK_WIDE int32_t ek_sparse_dot_s8(const int8_t *x, const EK_FLASH int8_t *e, int32_t groups,
                                        int32_t block, int32_t acc)
{
#if defined(EK_AVR_SUM)
    uint16_t left = (uint16_t)groups;
    uint8_t ek_x, ek_w;
    if (left == 0u) {
        return acc;
    }
    if (block == 4) {
        EK_SPARSE_AVR_LOOP(EK_SPARSE_AVR_FOUR, 4);
    } else {
        EK_SPARSE_AVR_LOOP(EK_SPARSE_AVR_ONE, 0);
    }
#else
    for (int32_t i = 0; i < groups; ++i) {
        x += (int32_t)(uint8_t)e[0] * block;
        acc += (int32_t)x[0] * e[1];
        if (block == 4) {
            acc += (int32_t)x[1] * e[2];
            acc += (int32_t)x[2] * e[3];
            acc += (int32_t)x[3] * e[4];
        }
        e += 1 + block;
    }
#endif
    return acc;
}

/* The outputs of all channels for one row of inputs, in memory order while the inputs are read. */
static EK_INLINE void ek_sparse_write_s8(const ek_sparse_s8 *p, const int8_t *x, int8_t *output)
{
    const EK_FLASH int8_t *e = p->entries;
    for (int32_t channel = 0; channel < p->channels; ++channel) {
        const int32_t table = p->per_channel ? channel : 0;
        const int32_t groups = p->groups[channel];
        const int32_t bias = p->bias[channel];
        if (p->dsp) {
#if EK_HAS_DSP
            const int32_t acc = ek_sparse_dot_dsp_s8(x, e, groups, p->block, bias);
#else
            const int32_t acc = ek_sparse_dot_s8(x, e, groups, p->block, bias);
#endif
            output[channel] = ek_requantize_dsp(acc, p->multiplier[table], -p->shift[table],
                                                p->output_zero_point, p->activation_min,
                                                p->activation_max);
        } else {
            const int32_t acc = ek_sparse_dot_s8(x, e, groups, p->block, bias);
            output[channel] = ek_requantize_s8(acc, p->multiplier[table], p->shift[table],
                                               p->shifts_left, p->output_zero_point,
                                               p->activation_min, p->activation_max);
        }
        e += groups * (1 + p->block);
    }
}

#endif
