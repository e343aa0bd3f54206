/* Accumulators of int16 activations times int8 weights: sums, and their way to an int16.
 *
 * Zero points are 0. Sums have 64 bits; where the caller has proved that the products of every
 * channel add up within 32 bits (sums_wide 0), they are added there.
 */
#ifndef EK_ACCUMULATOR_S16_H
#define EK_ACCUMULATOR_S16_H

#include "ek_common.h"

/* acc + sum of x[i] * w[i]. */
static EK_INLINE int64_t ek_dot_s16(const int16_t *x, const EK_FLASH int8_t *w, int32_t length,
                                    int32_t sums_wide, int64_t acc)
{
    if (sums_wide) {
        for (int32_t i = 0; i < length; ++i) {
            acc += (int32_t)x[i] * w[i];
        }
        return acc;
    }
    int32_t sum = 0;
    for (int32_t i = 0; i < length; ++i) {
        sum += (int32_t)x[i] * w[i];
    }
    return acc + sum;
}

/* Scales and clamps. With scales_wide the multiplier has 15 bits, shift is the whole right
 * shift, in [8, 46], and the result is rounded once, halves up (TensorFlow Lite's
 * MultiplyByQuantizedMultiplier of a 64-bit value); without, it is ek_scale. */
static EK_INLINE int16_t ek_requantize_s16(int64_t acc, int32_t multiplier, int32_t shift,
                                           int32_t scales_wide, int32_t low, int32_t high)
{
    int32_t scaled;
    if (scales_wide) {
        scaled = (int32_t)((acc * multiplier + ((int64_t)1 << (shift - 1))) >> shift);
    } else {
        scaled = ek_scale((int32_t)acc, multiplier, shift);
    }
    return (int16_t)ek_min_s32(ek_max_s32(scaled, low), high);
}

#endif
