/* CONV_2D with a 1x1 filter at stride 1, and FULLY_CONNECTED, int8, for Armv6-M.
 *
 * input        int8 [rows, depth]
 * filter       in blocks of channels, each weight 128 more than it is, see ek_matmul_m0.h
 * scales       int32 [channels, 3]: the bias less input_zero_point * sum(filter) of the channel,
 *              the multiplier, the right shift in [1, 22]
 * output       int8 [rows, channels]
 * Rounding: ek_requantize_m0, the same integers as ek_requantize_s8.
 * Order: rows in memory order, or from the last to the first (reverse 1); a row's outputs are
 * written in memory order, eight at a time, the last of them after all inputs were read.
 */
#ifndef EK_MATRIX_M0_S8_H
#define EK_MATRIX_M0_S8_H

#include "ek_matmul_m0.h"

typedef struct {
    int32_t reverse;
    int32_t rows;
    int32_t depth;
    int32_t channels;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    const uint8_t *filter;
    const int32_t *scales;
} ek_matrix_m0_s8_params;

static EK_INLINE void ek_matrix_m0_s8(const ek_matrix_m0_s8_params *p, const int8_t *input,
                                      int8_t *output)
{
    const ek_matmul_m0 matmul = {
        p->depth, p->channels, p->filter, (const ek_scale_m0 *)p->scales,
        ek_make_range_m0(p->output_zero_point, p->activation_min, p->activation_max)};
    for (int32_t i = 0; i < p->rows; ++i) {
        const int32_t row = p->reverse ? p->rows - 1 - i : i;
        ek_matmul_m0_write(&matmul, input + row * p->depth, output + row * p->channels);
    }
}

#endif
