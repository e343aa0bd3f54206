/* QUANTIZE and RELU, int8 to int8: another scale and zero point, and a clamp.
 *
 * input    int8 [length]
 * output   int8 [length]; may be the input
 * Rounding: ek_scale.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_RESCALE_S8_H
#define EK_RESCALE_S8_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t input_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
} ek_rescale_s8_params;

static EK_INLINE void ek_rescale_s8(const ek_rescale_s8_params *p, const int8_t *input,
                                    int8_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        const int32_t scaled = ek_scale(input[i] + p->input_offset, p->multiplier, p->shift);
        output[i] =
            ek_clamp_s8(scaled + p->output_zero_point, p->activation_min, p->activation_max);
    }
}

#endif
