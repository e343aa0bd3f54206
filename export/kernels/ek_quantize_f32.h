/* QUANTIZE, float32 to int8, uint8 or int16.
 *
 * input    float [length]
 * output   y [length]
 * Rounding: the quotient to the nearest, halves away from zero. Whatever lies beyond the
 * output's range, infinities too, becomes its end; NaN becomes its lower end.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_QUANTIZE_F32_H
#define EK_QUANTIZE_F32_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t zero_point;
    int32_t low;
    int32_t high;
    float scale;
} ek_quantize_f32_params;

static EK_INLINE int32_t ek_quantize_one(const ek_quantize_f32_params *p, float value)
{
    /* Bounds are integers of at most 17 bits: exact, as is the fraction below. */
    const float low = (float)(p->low - p->zero_point);
    const float high = (float)(p->high - p->zero_point);
    const float quotient = value / p->scale;
    const float bounded = quotient > low ? (quotient < high ? quotient : high) : low;
    const int32_t whole = (int32_t)bounded;
    const float fraction = bounded - (float)whole;
    const int32_t away = fraction >= 0.5f ? 1 : (fraction <= -0.5f ? -1 : 0);
    return whole + away + p->zero_point;
}

#define EK_DEFINE_QUANTIZE_F32(type, y)                                                        \
    typedef ek_quantize_f32_params ek_quantize_f32_##type##_params;                            \
    static EK_INLINE void ek_quantize_f32_##type(const ek_quantize_f32_params *p,              \
                                                 const float *input, y *output)                \
    {                                                                                          \
        for (int32_t i = 0; i < p->length; ++i) {                                              \
            output[i] = (y)ek_quantize_one(p, input[i]);                                       \
        }                                                                                      \
    }

EK_DEFINE_QUANTIZE_F32(s8, int8_t)
EK_DEFINE_QUANTIZE_F32(u8, uint8_t)
EK_DEFINE_QUANTIZE_F32(s16, int16_t)

#endif
