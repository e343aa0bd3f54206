/* REDUCE_MAX and REDUCE_MIN, int8, over one or two groups of neighbouring dimensions.
 *
 * input    int8 [outer, reduced_0, middle, reduced_1, inner]
 * output   int8 [outer, middle, inner], same scale and zero point
 * minimum  1 for the smallest element, 0 for the largest
 * Order: outputs in memory order; each is written after the inputs it depends on were read.
 */
#ifndef EK_REDUCE_MAX_S8_H
#define EK_REDUCE_MAX_S8_H

#include "ek_common.h"

typedef struct {
    int32_t outer;
    int32_t reduced_0;
    int32_t middle;
    int32_t reduced_1;
    int32_t inner;
    int32_t minimum;
} ek_reduce_max_s8_params;

static EK_INLINE void ek_reduce_max_s8(const ek_reduce_max_s8_params *p, const int8_t *input,
                                       int8_t *output)
{
    const int32_t row = p->reduced_1 * p->inner;
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t middle = 0; middle < p->middle; ++middle) {
            for (int32_t inner = 0; inner < p->inner; ++inner) {
                const int8_t *from = input + middle * row + inner;
                int32_t best = p->minimum ? INT8_MAX : INT8_MIN;
                for (int32_t i = 0; i < p->reduced_0; ++i) {
                    for (int32_t j = 0; j < p->reduced_1; ++j) {
                        const int32_t value = from[i * p->middle * row + j * p->inner];
                        best = p->minimum ? ek_min_s32(best, value) : ek_max_s32(best, value);
                    }
                }
                *output++ = (int8_t)best;
            }
        }
        input += p->reduced_0 * p->middle * row;
    }
}

#endif
