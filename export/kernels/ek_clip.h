/* RELU6, int8 and int16: a clamp of the codes, without a change of scale.
 *
 * input    int8 or int16 [length]
 * output   of the same type [length]; may be the input
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_CLIP_H
#define EK_CLIP_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t low;
    int32_t high;
} ek_clip_params;

typedef ek_clip_params ek_clip_s8_params;
typedef ek_clip_params ek_clip_s16_params;

static EK_INLINE void ek_clip_s8(const ek_clip_params *p, const int8_t *input, int8_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        output[i] = ek_clamp_s8(input[i], p->low, p->high);
    }
}

static EK_INLINE void ek_clip_s16(const ek_clip_params *p, const int16_t *input, int16_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        output[i] = ek_clamp_s16(input[i], p->low, p->high);
    }
}

#endif
