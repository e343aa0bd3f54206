/* DEQUANTIZE, int8, uint8 or int16 to float32.
 *
 * input    x [length]
 * output   float [length]; may lie over the input
 * Rounding: one, of the exact product of the scale and a difference of at most 17 bits.
 * Order: memory order, or with reverse 1 the opposite one; element i is written after element
 * i was read. Forwards the input may lie at the output's end, backwards at its beginning.
 */
#ifndef EK_DEQUANTIZE_H
#define EK_DEQUANTIZE_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t zero_point;
    int32_t reverse;
    float scale;
} ek_dequantize_params;

#define EK_DEFINE_DEQUANTIZE(type, x)                                                          \
    typedef ek_dequantize_params ek_dequantize_##type##_params;                                \
    static EK_INLINE void ek_dequantize_##type(const ek_dequantize_params *p, const x *input,  \
                                               float *output)                                  \
    {                                                                                          \
        for (int32_t n = 0; n < p->length; ++n) {                                              \
            const int32_t i = p->reverse ? p->length - 1 - n : n;                              \
            output[i] = p->scale * (float)(input[i] - p->zero_point);                          \
        }                                                                                      \
    }

EK_DEFINE_DEQUANTIZE(s8, int8_t)
EK_DEFINE_DEQUANTIZE(u8, uint8_t)
EK_DEFINE_DEQUANTIZE(s16, int16_t)

#endif
