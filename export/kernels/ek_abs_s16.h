/* ABS, int16, with another scale.
 *
 * input    int16 [length], zero point 0
 * output   int16 [length], zero point 0; may be the input
 * Rounding: ek_scale.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_ABS_S16_H
#define EK_ABS_S16_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t multiplier;
    int32_t shift;
} ek_abs_s16_params;

static EK_INLINE void ek_abs_s16(const ek_abs_s16_params *p, const int16_t *input,
                                 int16_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        const int32_t size = input[i] < 0 ? -(int32_t)input[i] : input[i];
        output[i] = ek_clamp_s16(ek_scale(size, p->multiplier, p->shift), INT16_MIN, INT16_MAX);
    }
}

#endif
