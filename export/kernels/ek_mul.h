/* MUL, int8 and int16, with broadcasting.
 *
 * input_1, input_2   int8 or int16, broadcast to the output's shape
 * output             of that type [size_0, size_1, size_2, size_3]; may be an input of its size
 * Rounding: ek_scale. Sums wrap around, which only scales that make no sense lead to.
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_MUL_H
#define EK_MUL_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
    int32_t input_1_offset;
    int32_t input_2_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
} ek_mul_params;

typedef ek_mul_params ek_mul_s8_params;
typedef ek_mul_params ek_mul_s16_params;

/* Both factors are of at most 16 bits, so the product fits. */
static EK_INLINE int32_t ek_mul_one(const ek_mul_params *p, int32_t a, int32_t b)
{
    const int32_t product = (a + p->input_1_offset) * (b + p->input_2_offset);
    return ek_wrapping_add(ek_scale(product, p->multiplier, p->shift), p->output_zero_point);
}

static EK_INLINE void ek_mul_s8(const ek_mul_params *p, const int8_t *input_1,
                                const int8_t *input_2, int8_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = ek_clamp_s8(ek_mul_one(p, input_1[i], input_2[j]), p->activation_min,
                                p->activation_max);
    }
}

static EK_INLINE void ek_mul_s16(const ek_mul_params *p, const int16_t *input_1,
                                 const int16_t *input_2, int16_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = ek_clamp_s16(ek_mul_one(p, input_1[i], input_2[j]), p->activation_min,
                                 p->activation_max);
    }
}

#endif
