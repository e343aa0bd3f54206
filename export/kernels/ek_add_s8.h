/* ADD, int8, of two tensors of the same size.
 *
 * input_1, input_2   int8 [length]
 * output             int8 [length]; may be either input
 * Each input is raised by 20 bits, scaled to twice the larger input scale, added, and scaled
 * to the output: all three with ek_scale_down.
 * Order: memory order; element i is written after element i of both inputs was read.
 */
#ifndef EK_ADD_S8_H
#define EK_ADD_S8_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t input_1_offset;
    int32_t input_1_multiplier;
    int32_t input_1_shift;
    int32_t input_2_offset;
    int32_t input_2_multiplier;
    int32_t input_2_shift;
    int32_t output_multiplier;
    int32_t output_shift;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
} ek_add_s8_params;

static EK_INLINE void ek_add_s8(const ek_add_s8_params *p, const int8_t *input_1,
                                const int8_t *input_2, int8_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        const int32_t a = ek_scale_down((input_1[i] + p->input_1_offset) * ((int32_t)1 << 20),
                                        p->input_1_multiplier, p->input_1_shift);
        const int32_t b = ek_scale_down((input_2[i] + p->input_2_offset) * ((int32_t)1 << 20),
                                        p->input_2_multiplier, p->input_2_shift);
        const int32_t sum = ek_scale_down(a + b, p->output_multiplier, p->output_shift);
        output[i] =
            ek_clamp_s8(sum + p->output_zero_point, p->activation_min, p->activation_max);
    }
}

#endif
