/* ADD and SUB, int16, with broadcasting.
 *
 * input_1, input_2   int16, broadcast to the output's shape
 * output             int16 [size_0, size_1, size_2, size_3]; may be an input of its size
 * Each input is raised by 15 bits, scaled to twice the larger input scale, added or (sign -1)
 * subtracted, and scaled to the output: all three with ek_scale_down.
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_ADD_SUB_S16_H
#define EK_ADD_SUB_S16_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
    int32_t sign;
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
} ek_add_sub_s16_params;

static EK_INLINE void ek_add_sub_s16(const ek_add_sub_s16_params *p, const int16_t *input_1,
                                    const int16_t *input_2, int16_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        const int32_t a = ek_scale_down((input_1[i] + p->input_1_offset) * ((int32_t)1 << 15),
                                        p->input_1_multiplier, p->input_1_shift);
        const int32_t b = ek_scale_down((input_2[j] + p->input_2_offset) * ((int32_t)1 << 15),
                                        p->input_2_multiplier, p->input_2_shift);
        const int32_t sum = ek_scale_down(a + p->sign * b, p->output_multiplier, p->output_shift);
        output[k] =
            ek_clamp_s16(sum + p->output_zero_point, p->activation_min, p->activation_max);
    }
}

#endif
