/* CAST: numbers of another type, whatever their scales.
 *
 * ek_cast_<x>_<y> for an input of type x and an output of type y.
 * input    x [length]; bool counts as 0 or 1
 * output   y [length]; may be the input where both are of one type
 * Integers lose their upper bits. Real numbers lose their fraction; those that y cannot hold
 * become its nearest end, NaN its lower end.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_CAST_H
#define EK_CAST_H

#include "ek_common.h"

typedef struct {
    int32_t length;
} ek_cast_params;

/* The bounds are powers of two and exact: low itself, and the first number above the type. */
static EK_INLINE int32_t ek_whole_of_f32(float x, int32_t low, int32_t high)
{
    if (!(x >= (float)low)) {
        return low;
    }
    return x < -(float)low ? (int32_t)x : high;
}

#define EK_DEFINE_CAST(x, in, y, out, result)                                                  \
    typedef ek_cast_params ek_cast_##x##_##y##_params;                                         \
    static EK_INLINE void ek_cast_##x##_##y(const ek_cast_params *p, const in *input,          \
                                            out *output)                                       \
    {                                                                                          \
        for (int32_t i = 0; i < p->length; ++i) {                                              \
            output[i] = (out)(result);                                                         \
        }                                                                                      \
    }

#define EK_DEFINE_CASTS(x, in)                                                                 \
    EK_DEFINE_CAST(x, in, s8, int8_t, input[i])                                                \
    EK_DEFINE_CAST(x, in, s16, int16_t, input[i])                                              \
    EK_DEFINE_CAST(x, in, s32, int32_t, input[i])                                              \
    EK_DEFINE_CAST(x, in, f32, float, input[i])

EK_DEFINE_CASTS(s8, int8_t)
EK_DEFINE_CASTS(s16, int16_t)
EK_DEFINE_CASTS(s32, int32_t)
EK_DEFINE_CAST(bool, uint8_t, s8, int8_t, input[i] != 0)
EK_DEFINE_CAST(bool, uint8_t, s16, int16_t, input[i] != 0)
EK_DEFINE_CAST(bool, uint8_t, s32, int32_t, input[i] != 0)
EK_DEFINE_CAST(bool, uint8_t, f32, float, input[i] != 0)
EK_DEFINE_CAST(f32, float, s8, int8_t, ek_whole_of_f32(input[i], INT8_MIN, INT8_MAX))
EK_DEFINE_CAST(f32, float, s16, int16_t, ek_whole_of_f32(input[i], INT16_MIN, INT16_MAX))
EK_DEFINE_CAST(f32, float, s32, int32_t, ek_whole_of_f32(input[i], INT32_MIN, INT32_MAX))
EK_DEFINE_CAST(f32, float, f32, float, input[i])

#endif
