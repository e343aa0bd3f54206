/* RELU6, int8: a clamp of the codes, without a change of scale.
 *
 * input    int8 [length]
 * output   int8 [length]; may be the input
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_CLIP_S8_H
#define EK_CLIP_S8_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t low;
    int32_t high;
} ek_clip_s8_params;

static EK_INLINE void ek_clip_s8(const ek_clip_s8_params *p, const int8_t *input, int8_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        output[i] = ek_clamp_s8(input[i], p->low, p->high);
    }
}

#endif
