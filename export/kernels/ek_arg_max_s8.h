/* ARG_MAX and ARG_MIN, int8.
 *
 * input    int8 [outer, axis_size, inner]
 * output   int32 or int64 [outer, inner], the first index of the largest (smallest) element
 * minimum  1 for the smallest, 0 for the largest
 * Order: outputs in memory order.
 */
#ifndef EK_ARG_MAX_S8_H
#define EK_ARG_MAX_S8_H

#include "ek_common.h"

typedef struct {
    int32_t outer;
    int32_t axis_size;
    int32_t inner;
    int32_t minimum;
} ek_arg_max_s8_s32_params;

typedef ek_arg_max_s8_s32_params ek_arg_max_s8_s64_params;

/* The index of the largest (smallest) of length elements that lie step apart. */
static EK_INLINE int32_t ek_arg_max_of_s8(const int8_t *input, int32_t length, int32_t step,
                                          int32_t minimum)
{
    int8_t best = input[0];
    int32_t index = 0;
    for (int32_t i = 1; i < length; ++i) {
        const int8_t value = input[i * step];
        if (minimum ? value < best : value > best) {
            best = value;
            index = i;
        }
    }
    return index;
}

static EK_INLINE void ek_arg_max_s8_s32(const ek_arg_max_s8_s32_params *p,
                                        const int8_t *input, int32_t *output)
{
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t inner = 0; inner < p->inner; ++inner) {
            *output++ =
                ek_arg_max_of_s8(input + inner, p->axis_size, p->inner, p->minimum);
        }
        input += p->axis_size * p->inner;
    }
}

static EK_INLINE void ek_arg_max_s8_s64(const ek_arg_max_s8_s64_params *p,
                                        const int8_t *input, int64_t *output)
{
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t inner = 0; inner < p->inner; ++inner) {
            *output++ =
                ek_arg_max_of_s8(input + inner, p->axis_size, p->inner, p->minimum);
        }
        input += p->axis_size * p->inner;
    }
}

#endif
