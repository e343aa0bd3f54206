/* Accumulators of float32: sums in the order of their terms, and the clamp of an activation. */
#ifndef EK_ACCUMULATOR_F32_H
#define EK_ACCUMULATOR_F32_H

#include "ek_common.h"

/* acc + x[0] * w[0] + x[1] * w[1] + …, rounded after each operation. */
static EK_INLINE float ek_dot_f32(const float *x, const EK_FLASH float *w, int32_t length,
                                  float acc)
{
    for (int32_t i = 0; i < length; ++i) {
        acc += x[i] * w[i];
    }
    return acc;
}

/* NaN stays NaN. */
static EK_INLINE float ek_activate_f32(float value, float low, float high)
{
    const float raised = value < low ? low : value;
    return high < raised ? high : raised;
}

#endif
