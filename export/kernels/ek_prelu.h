/* PRELU: a factor for negative numbers, from a tensor that is broadcast.
 *
 * input, output   int8, int16 or float [size_0, size_1, size_2, size_3]
 * alpha           int8 (for int8 and int16) or float, broadcast; the output may be the input,
 *                 or an alpha of its size and type
 * Rounding: ek_scale. Sums wrap around, which only scales that make no sense lead to.
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_PRELU_H
#define EK_PRELU_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
    int32_t input_offset;
    int32_t alpha_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t alpha_multiplier;
    int32_t alpha_shift;
    int32_t output_zero_point;
} ek_prelu_params;

typedef ek_prelu_params ek_prelu_s8_params;
typedef ek_prelu_params ek_prelu_s16_params;

typedef struct {
    EK_PAIR_FIELDS
} ek_prelu_f32_params;

static EK_INLINE int32_t ek_prelu_one(const ek_prelu_params *p, int32_t input, int32_t alpha)
{
    const int32_t x = input + p->input_offset;
    const int32_t scaled = x >= 0 ? ek_scale(x, p->multiplier, p->shift)
                                  : ek_scale(x * (alpha + p->alpha_offset), p->alpha_multiplier,
                                             p->alpha_shift);
    return ek_wrapping_add(scaled, p->output_zero_point);
}

static EK_INLINE void ek_prelu_s8(const ek_prelu_params *p, const int8_t *input,
                                  const int8_t *alpha, int8_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = ek_clamp_s8(ek_prelu_one(p, input[i], alpha[j]), INT8_MIN, INT8_MAX);
    }
}

static EK_INLINE void ek_prelu_s16(const ek_prelu_params *p, const int16_t *input,
                                   const int8_t *alpha, int16_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = ek_clamp_s16(ek_prelu_one(p, input[i], alpha[j]), INT16_MIN, INT16_MAX);
    }
}

static EK_INLINE void ek_prelu_f32(const ek_prelu_f32_params *p, const float *input,
                                   const float *alpha, float *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = input[i] >= 0.0f ? input[i] : input[i] * alpha[j];
    }
}

#endif
