/* CUMSUM, int8.
 *
 * input    int8 [outer, axis_size, inner]
 * output   int8 [outer, axis_size, inner]; may be the input
 * backwards  1 to sum from the end of the axis
 * exclusive  1 to leave out the element itself
 * Sums of code + input_offset, times 2^19, wrapping at 32 bits, scaled with ek_scale_down. They
 * begin with input_offset, not with 0, as in TensorFlow Lite.
 * Order: along the axis; element i is written after element i was read.
 */
#ifndef EK_CUMSUM_S8_H
#define EK_CUMSUM_S8_H

#include "ek_common.h"

typedef struct {
    int32_t outer;
    int32_t axis_size;
    int32_t inner;
    int32_t backwards;
    int32_t exclusive;
    int32_t input_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t output_zero_point;
} ek_cumsum_s8_params;

/* The sum of one line of elements that lie step apart. */
static EK_INLINE void ek_cumsum_line_s8(const ek_cumsum_s8_params *p, const int8_t *input,
                                        int8_t *output, int32_t step)
{
    int32_t sum = ek_shift_left(p->input_offset, 19);
    for (int32_t i = 0; i < p->axis_size; ++i) {
        const int32_t next =
            ek_wrapping_add(sum, ek_shift_left(input[i * step] + p->input_offset, 19));
        const int32_t scaled =
            ek_scale_down(p->exclusive ? sum : next, p->multiplier, p->shift);
        output[i * step] = ek_clamp_s8(scaled + p->output_zero_point, INT8_MIN, INT8_MAX);
        sum = next;
    }
}

static EK_INLINE void ek_cumsum_s8(const ek_cumsum_s8_params *p, const int8_t *input,
                                   int8_t *output)
{
    const int32_t first = p->backwards ? (p->axis_size - 1) * p->inner : 0;
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t inner = 0; inner < p->inner; ++inner) {
            const int32_t place = outer * p->axis_size * p->inner + inner + first;
            ek_cumsum_line_s8(p, input + place, output + place,
                              p->backwards ? -p->inner : p->inner);
        }
    }
}

#endif
