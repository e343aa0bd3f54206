/* ADD, SUB, MUL, DIV, SQUARED_DIFFERENCE, MAXIMUM and MINIMUM, float32, with broadcasting.
 *
 * input_1, input_2   float, broadcast to the output's shape
 * output             float [size_0, size_1, size_2, size_3]; may be an input of its size
 * All but the last three clamp to [low, high], which are finite; NaN stays.
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_ARITHMETIC_F32_H
#define EK_ARITHMETIC_F32_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
    float low;
    float high;
} ek_clamped_pair_f32_params;

typedef struct {
    EK_PAIR_FIELDS
} ek_pair_f32_params;

static EK_INLINE float ek_clamp_f32(float value, float low, float high)
{
    const float raised = value < low ? low : value;
    return raised > high ? high : raised;
}

static EK_INLINE float ek_square_of_f32(float value)
{
    return value * value;
}

#define EK_DEFINE_PAIR_F32(name, params, result)                                               \
    typedef params ek_##name##_f32_params;                                                     \
    static EK_INLINE void ek_##name##_f32(const params *p, const float *input_1,               \
                                          const float *input_2, float *output)                 \
    {                                                                                          \
        EK_FOR_EACH_PAIR(p, i, j, k)                                                           \
        {                                                                                      \
            const float a = input_1[i];                                                        \
            const float b = input_2[j];                                                        \
            output[k] = result;                                                                \
        }                                                                                      \
    }

EK_DEFINE_PAIR_F32(add, ek_clamped_pair_f32_params, ek_clamp_f32(a + b, p->low, p->high))
EK_DEFINE_PAIR_F32(sub, ek_clamped_pair_f32_params, ek_clamp_f32(a - b, p->low, p->high))
EK_DEFINE_PAIR_F32(mul, ek_clamped_pair_f32_params, ek_clamp_f32(a * b, p->low, p->high))
EK_DEFINE_PAIR_F32(div, ek_clamped_pair_f32_params, ek_clamp_f32(a / b, p->low, p->high))
EK_DEFINE_PAIR_F32(squared_difference, ek_pair_f32_params, ek_square_of_f32(a - b))
EK_DEFINE_PAIR_F32(maximum, ek_pair_f32_params, a > b ? a : b)
EK_DEFINE_PAIR_F32(minimum, ek_pair_f32_params, a < b ? a : b)

#endif
