/* CONV_2D with a 1x1 filter at stride 1, and FULLY_CONNECTED, int8, with NEON.
 *
 * input       int8 [rows, inputs]
 * filter      see ek_matmul_neon.h; depth is inputs rounded up to a multiple of 8 or,
 *             with SDOT, 4
 * bias        int32 [channels], less input_zero_point * sum(filter) of the channel
 * shift       int32 [channels], positive to the left (shifts_left: whether any is,
 *             shifts_right: whether all are negative)
 * output      int8 [rows, channels]
 * scratch     the rows of a group: depth bytes each, rounded up to a multiple of 16
 * Rounding: ek_scale.
 * Order: groups of two rows (with SDOT four) in memory order, or from the last to the first
 * (reverse 1); a group is read whole before an output of it is written.
 */
#ifndef EK_MATRIX_NEON_S8_H
#define EK_MATRIX_NEON_S8_H

#include "ek_matmul_neon.h"

typedef struct {
    int32_t reverse;
    int32_t rows;
    int32_t inputs;
    int32_t depth;
    int32_t channels;
    int32_t dot;
    int32_t pairs_fit;
    int32_t shifts_left;
    int32_t shifts_right;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    const int8_t *filter;
    const int32_t *bias;
    const int32_t *multiplier;
    const int32_t *shift;
} ek_matrix_neon_s8_params;

static EK_INLINE void ek_matrix_neon_s8(const ek_matrix_neon_s8_params *p, const int8_t *input,
                                        int8_t *output, int8_t *scratch)
{
    const int32_t group = ek_rows_neon(p->dot);
    const int32_t stride = (p->depth + 15) / 16 * 16;
    const ek_matmul_neon m = {
        p->dot,
        p->pairs_fit,
        p->depth,
        stride,
        p->channels,
        p->filter,
        {p->bias, p->multiplier, p->shift, p->shifts_left, p->shifts_right,
         p->output_zero_point, p->activation_min, p->activation_max},
    };
    const int32_t groups = (p->rows + group - 1) / group;
    if (stride != p->inputs) {
        (void)ek_fill_neon(scratch, 0, ek_min_s32(p->rows, group) * stride);
    }
    for (int32_t i = 0; i < groups; ++i) {
        const int32_t row = group * (p->reverse ? groups - 1 - i : i);
        const int32_t count = ek_min_s32(p->rows - row, group);
        const int8_t *x = input + row * p->inputs;
        if (stride == p->inputs) {
            (void)ek_copy_neon(scratch, x, count * p->inputs);
        } else {
            for (int32_t j = 0; j < count; ++j) {
                (void)ek_copy_neon(scratch + j * stride, x + j * p->inputs, p->inputs);
            }
        }
        ek_multiply_rows_neon(&m, scratch, count, output + row * p->channels);
    }
}

#endif
