/* MEAN and SUM, int16, over one or two groups of neighbouring dimensions.
 *
 * input    int16 [outer, reduced_0, middle, reduced_1, inner]
 * output   int16 [outer, middle, inner]
 * sum_offset is -reduced_0 * reduced_1 * input_zero_point. The sum and the offset are scaled
 * with ek_scale; the division of MEAN is part of the multiplier. The sum fits 32 bits, which is
 * the caller's to prove.
 * Order: outputs in memory order; each is written after the inputs it depends on were read.
 */
#ifndef EK_SUM_S16_H
#define EK_SUM_S16_H

#include "ek_common.h"

typedef struct {
    int32_t outer;
    int32_t reduced_0;
    int32_t middle;
    int32_t reduced_1;
    int32_t inner;
    int32_t sum_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t output_zero_point;
} ek_sum_s16_params;

static EK_INLINE void ek_sum_s16(const ek_sum_s16_params *p, const int16_t *input, int16_t *output)
{
    const int32_t row = p->reduced_1 * p->inner;
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t middle = 0; middle < p->middle; ++middle) {
            for (int32_t inner = 0; inner < p->inner; ++inner) {
                const int16_t *from = input + middle * row + inner;
                int32_t sum = p->sum_offset;
                for (int32_t i = 0; i < p->reduced_0; ++i) {
                    for (int32_t j = 0; j < p->reduced_1; ++j) {
                        sum += from[i * p->middle * row + j * p->inner];
                    }
                }
                *output++ =
                    ek_clamp_s16(ek_scale(sum, p->multiplier, p->shift) + p->output_zero_point,
                                 INT16_MIN, INT16_MAX);
            }
        }
        input += p->reduced_0 * p->middle * row;
    }
}

#endif
