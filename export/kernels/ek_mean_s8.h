/* MEAN, int8, over one run of neighbouring dimensions.
 *
 * input    int8 [outer, reduced, inner]
 * output   int8 [outer, inner]
 * The sum less reduced * input_zero_point is scaled with ek_scale; 1 / reduced is part of the
 * multiplier.
 * Order: outputs in memory order; each is written after the inputs it depends on were read.
 */
#ifndef EK_MEAN_S8_H
#define EK_MEAN_S8_H

#include "ek_common.h"

typedef struct {
    int32_t outer;
    int32_t reduced;
    int32_t inner;
    int32_t sum_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t output_zero_point;
} ek_mean_s8_params;

static EK_INLINE void ek_mean_s8(const ek_mean_s8_params *p, const int8_t *input, int8_t *output)
{
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t inner = 0; inner < p->inner; ++inner) {
            int32_t sum = p->sum_offset;
            for (int32_t i = 0; i < p->reduced; ++i) {
                sum += input[i * p->inner + inner];
            }
            *output++ =
                ek_clamp_s8(ek_scale(sum, p->multiplier, p->shift) + p->output_zero_point,
                            INT8_MIN, INT8_MAX);
        }
        input += p->reduced * p->inner;
    }
}

#endif
