/* ADD, int8, of two tensors of the same size, for cores with the DSP extension.
 *
 * larger, smaller    int8 [length]: the input with the larger scale, whose multiplier is one half,
 *                    and the other one
 * output             int8 [length]; may be either input
 * larger_offset      less the larger input's zero point, times 2^19
 * smaller_offset     less the smaller input's zero point, times 2^21
 * smaller_right      in [0, 22], output_right in [1, 22]: bits to shift to the right
 * Both inputs are raised by 20 bits and scaled to twice the larger input scale: the larger one
 * exactly, as that halves it. The sum of both is below 2^29. The same integers as ek_add_s8.
 * Order: memory order; element i is written after element i of both inputs was read.
 */
#ifndef EK_ADD_DSP_S8_H
#define EK_ADD_DSP_S8_H

#include "ek_dsp.h"

typedef struct {
    int32_t length;
    int32_t larger_offset;
    int32_t smaller_offset;
    int32_t smaller_multiplier;
    int32_t smaller_right;
    int32_t output_multiplier;
    int32_t output_right;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
} ek_add_dsp_s8_params;

static EK_INLINE void ek_add_dsp_s8(const ek_add_dsp_s8_params *p, const int8_t *larger,
                                    const int8_t *smaller, int8_t *output)
{
    const int32_t right = p->smaller_right;
    const int32_t half = right > 0 ? ek_shift_left(1, right - 1) : 0;
    for (int32_t i = 0; i < p->length; ++i) {
        const int32_t a = p->larger_offset + larger[i] * (1 << 19);
        const int32_t b =
            ek_high_mul(p->smaller_offset + smaller[i] * (1 << 21), p->smaller_multiplier);
        const int32_t away = right > 0 ? b >> 31 : 0;
        output[i] = ek_requantize_dsp(a + ((b + away + half) >> right), p->output_multiplier,
                                      p->output_right, p->output_zero_point, p->activation_min,
                                      p->activation_max);
    }
}

#endif
