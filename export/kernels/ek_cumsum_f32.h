/* CUMSUM, float32.
 *
 * input    float32 [outer, axis_size, inner]
 * output   float32 [outer, axis_size, inner]; may be the input
 * backwards  1 to sum from the end of the axis
 * exclusive  1 to leave out the element itself
 * Order: along the axis; element i is written after element i was read.
 */
#ifndef EK_CUMSUM_F32_H
#define EK_CUMSUM_F32_H

#include "ek_common.h"

typedef struct {
    int32_t outer;
    int32_t axis_size;
    int32_t inner;
    int32_t backwards;
    int32_t exclusive;
} ek_cumsum_f32_params;

/* The sum of one line of elements that lie step apart. */
static EK_INLINE void ek_cumsum_line_f32(const ek_cumsum_f32_params *p, const float *input,
                                         float *output, int32_t step)
{
    float sum = 0.0f;
    for (int32_t i = 0; i < p->axis_size; ++i) {
        const float next = sum + input[i * step];
        output[i * step] = p->exclusive ? sum : next;
        sum = next;
    }
}

static EK_INLINE void ek_cumsum_f32(const ek_cumsum_f32_params *p, const float *input,
                                    float *output)
{
    const int32_t first = p->backwards ? (p->axis_size - 1) * p->inner : 0;
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t inner = 0; inner < p->inner; ++inner) {
            const int32_t place = outer * p->axis_size * p->inner + inner + first;
            ek_cumsum_line_f32(p, input + place, output + place,
                              p->backwards ? -p->inner : p->inner);
        }
    }
}

#endif
