/* ADD, SUB, MUL, SQUARED_DIFFERENCE, MAXIMUM and MINIMUM, int32, with broadcasting.
 *
 * input_1, input_2   int32, broadcast to the output's shape
 * output             int32 [size_0, size_1, size_2, size_3]; may be an input of its size
 * Results wrap around. The first three are then clamped.
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_ARITHMETIC_S32_H
#define EK_ARITHMETIC_S32_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
    int32_t activation_min;
    int32_t activation_max;
} ek_clamped_pair_s32_params;

typedef struct {
    EK_PAIR_FIELDS
} ek_pair_s32_params;

static EK_INLINE int32_t ek_clamp_pair_s32(const ek_clamped_pair_s32_params *p, int32_t value)
{
    return ek_min_s32(ek_max_s32(value, p->activation_min), p->activation_max);
}

static EK_INLINE int32_t ek_square_s32(int32_t value)
{
    return ek_wrapping_mul(value, value);
}

#define EK_DEFINE_PAIR_S32(name, params, result)                                               \
    typedef params ek_##name##_s32_params;                                                     \
    static EK_INLINE void ek_##name##_s32(const params *p, const int32_t *input_1,             \
                                          const int32_t *input_2, int32_t *output)             \
    {                                                                                          \
        EK_FOR_EACH_PAIR(p, i, j, k)                                                           \
        {                                                                                      \
            const int32_t a = input_1[i];                                                      \
            const int32_t b = input_2[j];                                                      \
            output[k] = result;                                                                \
        }                                                                                      \
    }

EK_DEFINE_PAIR_S32(add, ek_clamped_pair_s32_params, ek_clamp_pair_s32(p, ek_wrapping_add(a, b)))
EK_DEFINE_PAIR_S32(sub, ek_clamped_pair_s32_params, ek_clamp_pair_s32(p, ek_wrapping_sub(a, b)))
EK_DEFINE_PAIR_S32(mul, ek_clamped_pair_s32_params, ek_clamp_pair_s32(p, ek_wrapping_mul(a, b)))
EK_DEFINE_PAIR_S32(squared_difference, ek_pair_s32_params, ek_square_s32(ek_wrapping_sub(a, b)))
EK_DEFINE_PAIR_S32(maximum, ek_pair_s32_params, ek_max_s32(a, b))
EK_DEFINE_PAIR_S32(minimum, ek_pair_s32_params, ek_min_s32(a, b))

#endif
