/* FULLY_CONNECTED of one row, int8, for cores with the DSP extension: four channels at a time.
 *
 * As ek_vector_dsp_s8, for a multiple of four channels; filter holds, for each four channels
 * and each four inputs, the two words of the first pair of channels and those of the second.
 * Order: outputs in memory order, four by four, while the input is still read.
 */
#ifndef EK_VECTOR_QUAD_DSP_S8_H
#define EK_VECTOR_QUAD_DSP_S8_H

#include "ek_dsp.h"

typedef struct {
    int32_t depth;
    int32_t channels;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    const uint32_t *filter;
    const int32_t *bias;
    const int32_t *multiplier;
    const int8_t *right_shift;
} ek_vector_quad_dsp_s8_params;

#if EK_HAS_DSP
/* 16 instructions for 16 products. */
#define EK_VECTOR_QUAD_DSP_STEP                                                                  \
    "ldr r4, [%[x]], #4\n\t"                                                                     \
    "ldmia %[w]!, {r6, r8, r9, r10}\n\t"                                                         \
    "sxtb16 r5, r4, ror #8\n\t"                                                                  \
    "sxtb16 r4, r4\n\t"                                                                          \
    "smlad %[b0], r4, r6, %[b0]\n\t"                                                             \
    "smlad %[b1], r4, r9, %[b1]\n\t"                                                             \
    "sxtb16 r6, r6\n\t"                                                                          \
    "sxtb16 r9, r9\n\t"                                                                          \
    "smlad %[b0], r5, r8, %[b0]\n\t"                                                             \
    "smlad %[b1], r5, r10, %[b1]\n\t"                                                            \
    "sxtb16 r8, r8\n\t"                                                                          \
    "sxtb16 r10, r10\n\t"                                                                        \
    "smlad %[l0], r4, r6, %[l0]\n\t"                                                             \
    "smlad %[l1], r4, r9, %[l1]\n\t"                                                             \
    "smlad %[l0], r5, r8, %[l0]\n\t"                                                             \
    "smlad %[l1], r5, r10, %[l1]\n\t"
#endif

static EK_INLINE void ek_vector_quad_dsp_s8(const ek_vector_quad_dsp_s8_params *p,
                                            const int8_t *input, int8_t *output)
{
    const uint32_t *w = p->filter;
    for (int32_t c = 0; c < p->channels; c += 4) {
        const int8_t *x = input;
        int32_t both_0 = 0;
        int32_t both_1 = 0;
        int32_t low_0 = 0;
        int32_t low_1 = 0;
        int32_t sums[4];
#if EK_HAS_DSP
        int32_t steps = p->depth / 4 + 1; /* two at a time: an odd number begins in the middle */
        __asm__("lsrs %[n], %[n], #1\n\t"
                "bcc 2f\n"
                "1:\n\t" EK_VECTOR_QUAD_DSP_STEP "2:\n\t" EK_VECTOR_QUAD_DSP_STEP
                "subs %[n], %[n], #1\n\t"
                "bne 1b\n\t"
                : [x] "+r"(x), [w] "+r"(w), [b0] "+r"(both_0), [b1] "+r"(both_1),
                  [l0] "+r"(low_0), [l1] "+r"(low_1), [n] "+r"(steps)
                :
                : "r4", "r5", "r6", "r8", "r9", "r10", "cc", "memory");
#else
        for (int32_t i = 0; i < p->depth; i += 4) {
            const uint32_t word = ek_load_word(x);
            const uint32_t even = ek_even_bytes(word);
            const uint32_t odd = ek_odd_bytes(word);
            both_0 = ek_smlad(odd, w[1], ek_smlad(even, w[0], both_0));
            both_1 = ek_smlad(odd, w[3], ek_smlad(even, w[2], both_1));
            low_0 = ek_smlad(odd, ek_even_bytes(w[1]),
                             ek_smlad(even, ek_even_bytes(w[0]), low_0));
            low_1 = ek_smlad(odd, ek_even_bytes(w[3]),
                             ek_smlad(even, ek_even_bytes(w[2]), low_1));
            x += 4;
            w += 4;
        }
#endif
        sums[0] = low_0;
        sums[1] = (both_0 - low_0) >> 8;
        sums[2] = low_1;
        sums[3] = (both_1 - low_1) >> 8;
        for (int32_t i = 0; i < 4; ++i) {
            output[c + i] = ek_requantize_dsp(sums[i] + p->bias[c + i], p->multiplier[c + i],
                                              p->right_shift[c + i], p->output_zero_point,
                                              p->activation_min, p->activation_max);
        }
    }
}

#endif
