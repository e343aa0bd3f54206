/* CONV_2D, int8: any filter, stride and padding; no dilation along the width, one group.
 *
 * input    int8 [batches, input_height, input_width, input_channels], zero point -input_offset
 * filter   int8 [output_channels, filter_height, filter_width, input_channels], zero point 0
 * bias     int32 [output_channels]. Where no window reaches over the border the caller may
 *          subtract input_zero_point * sum(filter) from it and pass input_offset 0.
 * output   int8 [batches, output_height, output_width, output_channels]
 * Taps outside of the input add nothing. Rounding: ek_scale, per channel or with one
 * multiplier for all (per_channel 0).
 * Order: output pixels in memory order; each is written after its whole window was read.
 */
#ifndef EK_CONV_2D_S8_H
#define EK_CONV_2D_S8_H

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
    int32_t dilation_height;
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
} ek_conv_2d_s8_params;

static EK_INLINE void ek_conv_2d_s8(const ek_conv_2d_s8_params *p, const int8_t *input,
                                    int8_t *output)
{
    const int32_t input_row = p->input_width * p->input_channels;
    const int32_t filter_row = p->filter_width * p->input_channels;
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            const int32_t in_y = out_y * p->stride_height - p->pad_top;
            const int32_t first_y = ek_first_tap(in_y, p->dilation_height);
            const int32_t last_y =
                ek_last_tap(in_y, p->dilation_height, p->filter_height, p->input_height);
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const int32_t in_x = out_x * p->stride_width - p->pad_left;
                const int32_t first_x = ek_max_s32(0, -in_x);
                const int32_t last_x = ek_min_s32(p->filter_width, p->input_width - in_x);
                const int32_t run = (last_x - first_x) * p->input_channels;
                for (int32_t channel = 0; channel < p->output_channels; ++channel) {
                    const int32_t table = p->per_channel ? channel : 0;
                    int32_t acc = p->bias[channel];
                    for (int32_t tap_y = first_y; tap_y < last_y; ++tap_y) {
                        acc = ek_dot_offset_s8(
                            input + (in_y + tap_y * p->dilation_height) * input_row
                                + (in_x + first_x) * p->input_channels,
                            p->filter + (channel * p->filter_height + tap_y) * filter_row
                                + first_x * p->input_channels,
                            run, p->input_offset, acc);
                    }
                    *output++ = ek_requantize_s8(acc, p->multiplier[table], p->shift[table],
                                                 p->shifts_left, p->output_zero_point,
                                                 p->activation_min, p->activation_max);
                }
            }
        }
        input += p->input_height * input_row;
    }
}

#endif
