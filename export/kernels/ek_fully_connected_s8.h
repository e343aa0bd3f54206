/* FULLY_CONNECTED, int8, and CONV_2D with a 1x1 filter at stride 1 (a row is a pixel).
 *
 * input    int8 [rows, input_channels]
 * filter   int8 [output_channels, input_channels], zero point 0
 * bias     int32 [output_channels], less input_zero_point * sum(filter) of the channel
 * output   int8 [rows, output_channels]
 * Rounding: ek_scale, per channel or with one multiplier for all (per_channel 0).
 * Order: rows in memory order, or from the last to the first (reverse 1); a row's outputs are
 * written in memory order while its inputs are still read.
 */
#ifndef EK_FULLY_CONNECTED_S8_H
#define EK_FULLY_CONNECTED_S8_H

#include "ek_common.h"

typedef struct {
    int32_t reverse;
    int32_t rows;
    int32_t input_channels;
    int32_t output_channels;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    int32_t per_channel;
    int32_t shifts_left;
    const EK_FLASH int8_t *filter;
    const EK_FLASH int32_t *bias;
    const EK_FLASH int32_t *multiplier;
    const EK_FLASH int8_t *shift;
} ek_fully_connected_s8_params;

static EK_INLINE void ek_fully_connected_s8(const ek_fully_connected_s8_params *p,
                                            const int8_t *input, int8_t *output)
{
    for (int32_t i = 0; i < p->rows; ++i) {
        const int32_t row = p->reverse ? p->rows - 1 - i : i;
        const int8_t *x = input + row * p->input_channels;
        const EK_FLASH int8_t *w = p->filter;
        int8_t *y = output + row * p->output_channels;
        for (int32_t channel = 0; channel < p->output_channels; ++channel) {
            const int32_t table = p->per_channel ? channel : 0;
            const int32_t acc = ek_dot_s8(x, w, p->input_channels, p->bias[channel]);
            *y++ = ek_requantize_s8(acc, p->multiplier[table], p->shift[table], p->shifts_left,
                                    p->output_zero_point, p->activation_min, p->activation_max);
            w += p->input_channels;
        }
    }
}

#endif
