/* LEAKY_RELU, int16: another scale and zero point, and a factor for negative numbers.
 *
 * input    int16 [length]
 * output   int16 [length]; may be the input
 * alpha_multiplier and alpha_shift are the factor's size, alpha_sign (1 or -1) is its sign.
 * Rounding: ek_scale. Sums wrap around, which only scales that make no sense lead to.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_LEAKY_RELU_S16_H
#define EK_LEAKY_RELU_S16_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t input_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t alpha_sign;
    int32_t alpha_multiplier;
    int32_t alpha_shift;
    int32_t output_zero_point;
} ek_leaky_relu_s16_params;

static EK_INLINE void ek_leaky_relu_s16(const ek_leaky_relu_s16_params *p, const int16_t *input,
                                        int16_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        const int32_t x = input[i] + p->input_offset;
        const int32_t scaled =
            x >= 0 ? ek_scale(x, p->multiplier, p->shift)
                   : ek_wrapping_mul(ek_scale(x, p->alpha_multiplier, p->alpha_shift),
                                     p->alpha_sign);
        output[i] = ek_clamp_s16(ek_wrapping_add(scaled, p->output_zero_point), INT16_MIN,
                                 INT16_MAX);
    }
}

#endif
