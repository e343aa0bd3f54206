/* CONV_2D with a 1x1 filter at stride 1, and FULLY_CONNECTED of several rows, int8, for cores
 * with the DSP extension.
 *
 * input        int8 [rows, depth], depth a multiple of 4
 * filter       two channels to a half or, with weight_bits 4, to a byte, see ek_matmul_dsp.h
 * twice_bias   int32 [channels], twice: the bias less input_zero_point * sum(filter)
 * right_shift  int8 [channels], in [1, 22]
 * output       int8 [rows, channels]
 * scratch      two widened rows: 4 * depth bytes
 * Rounding: ek_requantize_dsp, the same integers as ek_requantize_s8.
 * Order: pairs of rows in memory order, or from the last to the first (reverse 1); both rows
 * of a pair are read whole before an output of theirs is written.
 */
#ifndef EK_MATRIX_DSP_S8_H
#define EK_MATRIX_DSP_S8_H

#include "ek_matmul_dsp.h"

typedef struct {
    int32_t reverse;
    int32_t rows;
    int32_t depth;
    int32_t channels;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    int32_t weight_bits;
    const uint32_t *filter;
    const int32_t *twice_bias;
    const int32_t *multiplier;
    const int8_t *right_shift;
} ek_matrix_dsp_s8_params;

static EK_INLINE void ek_matrix_dsp_s8(const ek_matrix_dsp_s8_params *p, const int8_t *input,
                                       int8_t *output, uint32_t *scratch)
{
    const int32_t pairs = (p->rows + 1) / 2;
    for (int32_t i = 0; i < pairs; ++i) {
        const int32_t row = 2 * (p->reverse ? pairs - 1 - i : i);
        const int32_t second = row + 1 < p->rows ? 1 : 0;
        const int8_t *x = input + row * p->depth;
        (void)ek_widen_row(scratch, x, p->depth);
        (void)ek_widen_row(scratch + 2, x + second * p->depth, p->depth);
        if (p->weight_bits == 4) {
            ek_matmul_dsp_write_s4(scratch, p->depth, p->channels, p->filter, p->twice_bias, p->multiplier,
                                   p->right_shift, p->output_zero_point, p->activation_min,
                                   p->activation_max, output + row * p->channels, second);
        } else {
            ek_matmul_dsp_write(scratch, p->depth, p->channels, p->filter, p->twice_bias, p->multiplier,
                                p->right_shift, p->output_zero_point, p->activation_min,
                                p->activation_max, output + row * p->channels, second);
        }
    }
}

#endif
