/* TRANSPOSE_CONV, int8: any filter, stride and padding.
 *
 * input    int8 [batches, input_height, input_width, input_channels], zero point -input_offset
 * filter   int8 [output_channels, filter_height, filter_width, input_channels], zero point 0
 * bias     int32 [output_channels]
 * output   int8 [batches, output_height, output_width, output_channels]
 * Input pixel (y, x) adds to the output's window at (y * stride_height - pad_top,
 * x * stride_width - pad_left). Each output gathers what all pixels add to it.
 * Rounding: ek_scale, per channel or with one multiplier for all (per_channel 0).
 * Order: output pixels in memory order.
 */
#ifndef EK_TRANSPOSE_CONV_S8_H
#define EK_TRANSPOSE_CONV_S8_H

#include "ek_common.h"

typedef struct {
    int32_t batches;
    int32_t input_height;
    int32_t input_width;
    int32_t input_channels;
    int32_t filter_height;
    int32_t filter_width;
    int32_t output_height;
    int32_t output_width;
    int32_t output_channels;
    int32_t stride_height;
    int32_t stride_width;
    int32_t pad_top;
    int32_t pad_left;
    int32_t input_offset;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    int32_t per_channel;
    int32_t shifts_left;
    const EK_FLASH int8_t *filter;
    const EK_FLASH int32_t *bias;
    const EK_FLASH int32_t *multiplier;
    const EK_FLASH int8_t *shift;
} ek_transpose_conv_s8_params;

static EK_INLINE void ek_transpose_conv_s8(const ek_transpose_conv_s8_params *p,
                                            const int8_t *input, int8_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            const int32_t y = out_y + p->pad_top;
            const int32_t first_y = ek_first_cover(y, p->filter_height, p->stride_height);
            const int32_t last_y = ek_min_s32(p->input_height - 1, y / p->stride_height);
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const int32_t x_at = out_x + p->pad_left;
                const int32_t first_x = ek_first_cover(x_at, p->filter_width, p->stride_width);
                const int32_t last_x = ek_min_s32(p->input_width - 1, x_at / p->stride_width);
                for (int32_t channel = 0; channel < p->output_channels; ++channel) {
                    const int32_t table = p->per_channel ? channel : 0;
                    int32_t acc = p->bias[channel];
                    for (int32_t in_y = first_y; in_y <= last_y; ++in_y) {
                        const int32_t tap_y = y - in_y * p->stride_height;
                        for (int32_t in_x = first_x; in_x <= last_x; ++in_x) {
                            const int32_t tap_x = x_at - in_x * p->stride_width;
                            const int8_t *x =
                                input + (in_y * p->input_width + in_x) * p->input_channels;
                            const EK_FLASH int8_t *w =
                                p->filter
                                + ((channel * p->filter_height + tap_y) * p->filter_width + tap_x)
                                      * p->input_channels;
                            acc = ek_dot_offset_s8(x, w, p->input_channels, p->input_offset, acc);
                        }
                    }
                    *output++ = ek_requantize_s8(acc, p->multiplier[table], p->shift[table],
                                                 p->shifts_left, p->output_zero_point,
                                                 p->activation_min, p->activation_max);
                }
            }
        }
        input += p->input_height * p->input_width * p->input_channels;
    }
}

#endif
