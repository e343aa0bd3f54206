/* REDUCE_MAX and REDUCE_MIN, float32, over one or two groups of neighbouring dimensions.
 *
 * input    float32 [outer, reduced_0, middle, reduced_1, inner]
 * output   float32 [outer, middle, inner]
 * minimum  1 for the smallest element, 0 for the largest; NaN is passed over
 * Order: outputs in memory order; each is written after the inputs it depends on were read.
 */
#ifndef EK_REDUCE_MAX_F32_H
#define EK_REDUCE_MAX_F32_H

#include <float.h>

#include "ek_common.h"

typedef struct {
    int32_t outer;
    int32_t reduced_0;
    int32_t middle;
    int32_t reduced_1;
    int32_t inner;
    int32_t minimum;
} ek_reduce_max_f32_params;

static EK_INLINE void ek_reduce_max_f32(const ek_reduce_max_f32_params *p, const float *input,
                                        float *output)
{
    const int32_t row = p->reduced_1 * p->inner;
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t middle = 0; middle < p->middle; ++middle) {
            for (int32_t inner = 0; inner < p->inner; ++inner) {
                const float *from = input + middle * row + inner;
                float best = p->minimum ? FLT_MAX : -FLT_MAX;
                for (int32_t i = 0; i < p->reduced_0; ++i) {
                    for (int32_t j = 0; j < p->reduced_1; ++j) {
                        const float value = from[i * p->middle * row + j * p->inner];
                        const int32_t better = p->minimum ? value < best : value > best;
                        best = better ? value : best;
                    }
                }
                *output++ = best;
            }
        }
        input += p->reduced_0 * p->middle * row;
    }
}

#endif
