/* QUANTIZE between integers, and RELU: another scale and zero point, and a clamp.
 *
 * ek_rescale_<x>_<y> for an input of type x and an output of type y; ek_rescale_<x> where both
 * are the same.
 * input    x [length]
 * output   y [length]; may be the input where both elements are of one size
 * Rounding: ek_scale. Sums wrap around, which only scales that make no sense lead to.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_RESCALE_H
#define EK_RESCALE_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t input_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
} ek_rescale_params;

static EK_INLINE int32_t ek_rescale_one(const ek_rescale_params *p, int32_t value)
{
    const int32_t centred = ek_wrapping_add(value, p->input_offset);
    const int32_t scaled = ek_scale(centred, p->multiplier, p->shift);
    const int32_t moved = ek_wrapping_add(scaled, p->output_zero_point);
    return ek_min_s32(ek_max_s32(moved, p->activation_min), p->activation_max);
}

#define EK_DEFINE_RESCALE(types, x, y)                                                     \
    typedef ek_rescale_params ek_rescale_##types##_params;                                 \
    static EK_INLINE void ek_rescale_##types(const ek_rescale_params *p, const x *input,   \
                                             y *output)                                    \
    {                                                                                      \
        for (int32_t i = 0; i < p->length; ++i) {                                          \
            output[i] = (y)ek_rescale_one(p, input[i]);                                    \
        }                                                                                  \
    }

EK_DEFINE_RESCALE(s8, int8_t, int8_t)
EK_DEFINE_RESCALE(s8_u8, int8_t, uint8_t)
EK_DEFINE_RESCALE(s8_s16, int8_t, int16_t)
EK_DEFINE_RESCALE(s8_s32, int8_t, int32_t)
EK_DEFINE_RESCALE(u8_s8, uint8_t, int8_t)
EK_DEFINE_RESCALE(s16_s8, int16_t, int8_t)
EK_DEFINE_RESCALE(s16, int16_t, int16_t)
EK_DEFINE_RESCALE(s16_s32, int16_t, int32_t)
EK_DEFINE_RESCALE(s32_s8, int32_t, int8_t)
EK_DEFINE_RESCALE(s32_s16, int32_t, int16_t)

#endif
