/* SQUARED_DIFFERENCE, int8 and int16, with broadcasting.
 *
 * input_1, input_2   int8 or int16, broadcast to the output's shape
 * output             of that type [size_0, size_1, size_2, size_3]; may be an input of its size
 * Each input is raised by some bits and scaled to twice the larger input scale; the square of
 * the difference is scaled to the output. Rounding: ek_scale. What overflows wraps around.
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_SQUARED_DIFFERENCE_H
#define EK_SQUARED_DIFFERENCE_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
    int32_t raised_bits;
    int32_t input_1_offset;
    int32_t input_1_multiplier;
    int32_t input_1_shift;
    int32_t input_2_offset;
    int32_t input_2_multiplier;
    int32_t input_2_shift;
    int32_t output_multiplier;
    int32_t output_shift;
    int32_t output_zero_point;
} ek_squared_difference_params;

typedef ek_squared_difference_params ek_squared_difference_s8_params;
typedef ek_squared_difference_params ek_squared_difference_s16_params;

static EK_INLINE int32_t ek_squared_difference_one(const ek_squared_difference_params *p,
                                                   int32_t input_1, int32_t input_2)
{
    const int32_t a = ek_scale_down(ek_shift_left(input_1 + p->input_1_offset, p->raised_bits),
                                    p->input_1_multiplier, p->input_1_shift);
    const int32_t b = ek_scale_down(ek_shift_left(input_2 + p->input_2_offset, p->raised_bits),
                                    p->input_2_multiplier, p->input_2_shift);
    const int32_t square = ek_wrapping_mul(a - b, a - b);
    return ek_wrapping_add(ek_scale(square, p->output_multiplier, p->output_shift),
                           p->output_zero_point);
}

static EK_INLINE void ek_squared_difference_s8(const ek_squared_difference_params *p,
                                               const int8_t *input_1, const int8_t *input_2,
                                               int8_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = ek_clamp_s8(ek_squared_difference_one(p, input_1[i], input_2[j]), INT8_MIN,
                                INT8_MAX);
    }
}

static EK_INLINE void ek_squared_difference_s16(const ek_squared_difference_params *p,
                                                const int16_t *input_1, const int16_t *input_2,
                                                int16_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = ek_clamp_s16(ek_squared_difference_one(p, input_1[i], input_2[j]), INT16_MIN,
                                 INT16_MAX);
    }
}

#endif
