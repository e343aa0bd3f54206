/* FULLY_CONNECTED, and CONV_2D with a 1x1 filter at stride 1 (a row is a pixel), int8, with
 * pruned weights.
 *
 * input    int8 [rows, depth]
 * entries, groups, bias, multiplier, shift: the weights and scales, see ek_sparse_s8.h
 * output   int8 [rows, channels]
 * Order: rows in memory order, or from the last to the first (reverse 1); a row's outputs are
 * written in memory order while its inputs are still read.
 */
#ifndef EK_MATRIX_SPARSE_S8_H
#define EK_MATRIX_SPARSE_S8_H

#include "ek_sparse_s8.h"

typedef struct {
    int32_t reverse;
    int32_t rows;
    int32_t depth;
    int32_t channels;
    int32_t block;
    int32_t dsp;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    int32_t per_channel;
    int32_t shifts_left;
    const EK_FLASH int8_t *entries;
    const EK_FLASH uint16_t *groups;
    const EK_FLASH int32_t *bias;
    const EK_FLASH int32_t *multiplier;
    const EK_FLASH int8_t *shift;
} ek_matrix_sparse_s8_params;

static EK_INLINE void ek_matrix_sparse_s8(const ek_matrix_sparse_s8_params *p, const int8_t *input,
                                          int8_t *output)
{
    const ek_sparse_s8 weights = {
        p->channels,       p->block,          p->dsp,         p->output_zero_point,
        p->activation_min, p->activation_max, p->per_channel, p->shifts_left,
        p->entries,        p->groups,         p->bias,        p->multiplier,
        p->shift};
    for (int32_t i = 0; i < p->rows; ++i) {
        const int32_t row = p->reverse ? p->rows - 1 - i : i;
        ek_sparse_write_s8(&weights, input + row * p->depth, output + row * p->channels);
    }
}

#endif
