/* FULLY_CONNECTED, int16 activations and int8 weights, and CONV_2D with a 1x1 filter at stride 1.
 *
 * input    int16 [rows, input_channels], zero point 0
 * filter   int8 [output_channels, input_channels], zero point 0
 * bias     int64 [output_channels]
 * output   int16 [rows, output_channels]
 * Rounding: ek_requantize_s16, per channel or with one multiplier for all (per_channel 0).
 * Order: rows in memory order, or from the last to the first (reverse 1); a row's outputs are
 * written in memory order while its inputs are still read.
 */
#ifndef EK_FULLY_CONNECTED_S16_H
#define EK_FULLY_CONNECTED_S16_H

#include "ek_accumulator_s16.h"

typedef struct {
    int32_t reverse;
    int32_t rows;
    int32_t input_channels;
    int32_t output_channels;
    int32_t activation_min;
    int32_t activation_max;
    int32_t per_channel;
    int32_t scales_wide;
    int32_t sums_wide;
    const EK_FLASH int8_t *filter;
    const EK_FLASH int64_t *bias;
    const EK_FLASH int32_t *multiplier;
    const EK_FLASH int8_t *shift;
} ek_fully_connected_s16_params;

static EK_INLINE void ek_fully_connected_s16(const ek_fully_connected_s16_params *p,
                                             const int16_t *input, int16_t *output)
{
    for (int32_t i = 0; i < p->rows; ++i) {
        const int32_t row = p->reverse ? p->rows - 1 - i : i;
        const int16_t *x = input + row * p->input_channels;
        const EK_FLASH int8_t *w = p->filter;
        int16_t *y = output + row * p->output_channels;
        for (int32_t channel = 0; channel < p->output_channels; ++channel) {
            const int32_t table = p->per_channel ? channel : 0;
            const int64_t acc =
                ek_dot_s16(x, w, p->input_channels, p->sums_wide, p->bias[channel]);
            *y++ = ek_requantize_s16(acc, p->multiplier[table], p->shift[table],
                                     p->scales_wide, p->activation_min, p->activation_max);
            w += p->input_channels;
        }
    }
}

#endif
