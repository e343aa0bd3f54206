/* FULLY_CONNECTED, float32, and CONV_2D with a 1x1 filter at stride 1.
 *
 * input    float32 [rows, input_channels]
 * filter   float32 [output_channels, input_channels]
 * bias     float32 [output_channels]
 * output   float32 [rows, output_channels]
 * Rounding: after each product and sum, in the order of the inputs; the bias comes last.
 * Order: rows in memory order, or from the last to the first (reverse 1); a row's outputs are
 * written in memory order while its inputs are still read.
 */
#ifndef EK_FULLY_CONNECTED_F32_H
#define EK_FULLY_CONNECTED_F32_H

#include "ek_accumulator_f32.h"

typedef struct {
    int32_t reverse;
    int32_t rows;
    int32_t input_channels;
    int32_t output_channels;
    float activation_min;
    float activation_max;
    const EK_FLASH float *filter;
    const EK_FLASH float *bias;
} ek_fully_connected_f32_params;

static EK_INLINE void ek_fully_connected_f32(const ek_fully_connected_f32_params *p,
                                             const float *input, float *output)
{
    for (int32_t i = 0; i < p->rows; ++i) {
        const int32_t row = p->reverse ? p->rows - 1 - i : i;
        const float *x = input + row * p->input_channels;
        const EK_FLASH float *w = p->filter;
        float *y = output + row * p->output_channels;
        for (int32_t channel = 0; channel < p->output_channels; ++channel) {
            const float acc = ek_dot_f32(x, w, p->input_channels, 0.0f);
            *y++ = ek_activate_f32(acc + p->bias[channel], p->activation_min,
                                   p->activation_max);
            w += p->input_channels;
        }
    }
}

#endif
