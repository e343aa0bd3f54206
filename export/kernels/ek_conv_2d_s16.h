/* CONV_2D, int16 activations and int8 weights: any filter, stride, dilation, padding
 * and groups.
 *
 * input    int16 [batches, input_height, input_width, input_channels], zero point 0
 * filter   int8 [output_channels, filter_height, filter_width, filter_channels], zero point 0
 * bias     int64 [output_channels]
 * output   int16 [batches, output_height, output_width, output_channels]
 * The output channels of one group (filters_per_group of them) see filter_channels consecutive
 * input channels. Taps outside of the input add nothing.
 * Rounding: ek_requantize_s16, per channel or with one multiplier for all (per_channel 0).
 * Order: output pixels in memory order; each is written after its whole window was read.
 */
#ifndef EK_CONV_2D_S16_H
#define EK_CONV_2D_S16_H

#include "ek_accumulator_s16.h"

typedef struct {
    int32_t batches;
    int32_t input_height;
    int32_t input_width;
    int32_t input_channels;
    int32_t filter_height;
    int32_t filter_width;
    int32_t filter_channels;
    int32_t filters_per_group;
    int32_t output_channels;
    int32_t output_height;
    int32_t output_width;
    int32_t stride_height;
    int32_t stride_width;
    int32_t dilation_height;
    int32_t dilation_width;
    int32_t pad_top;
    int32_t pad_left;
    int32_t activation_min;
    int32_t activation_max;
    int32_t per_channel;
    int32_t scales_wide;
    int32_t sums_wide;
    const EK_FLASH int8_t *filter;
    const EK_FLASH int64_t *bias;
    const EK_FLASH int32_t *multiplier;
    const EK_FLASH int8_t *shift;
} ek_conv_2d_s16_params;

static EK_INLINE void ek_conv_2d_s16(const ek_conv_2d_s16_params *p, const int16_t *input,
                                     int16_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            const int32_t in_y = out_y * p->stride_height - p->pad_top;
            const int32_t first_y = ek_first_tap(in_y, p->dilation_height);
            const int32_t last_y =
                ek_last_tap(in_y, p->dilation_height, p->filter_height, p->input_height);
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const int32_t in_x = out_x * p->stride_width - p->pad_left;
                const int32_t first_x = ek_first_tap(in_x, p->dilation_width);
                const int32_t last_x =
                    ek_last_tap(in_x, p->dilation_width, p->filter_width, p->input_width);
                for (int32_t channel = 0; channel < p->output_channels; ++channel) {
                    const int32_t group = channel / p->filters_per_group;
                    const int32_t table = p->per_channel ? channel : 0;
                    int64_t acc = p->bias[channel];
                    for (int32_t tap_y = first_y; tap_y < last_y; ++tap_y) {
                        for (int32_t tap_x = first_x; tap_x < last_x; ++tap_x) {
                            const int32_t pixel =
                                (in_y + tap_y * p->dilation_height) * p->input_width + in_x
                                + tap_x * p->dilation_width;
                            const int32_t tap =
                                (channel * p->filter_height + tap_y) * p->filter_width + tap_x;
                            acc = ek_dot_s16(
                                input + pixel * p->input_channels + group * p->filter_channels,
                                p->filter + tap * p->filter_channels, p->filter_channels,
                                p->sums_wide, acc);
                        }
                    }
                    *output++ =
                        ek_requantize_s16(acc, p->multiplier[table], p->shift[table],
                                          p->scales_wide, p->activation_min, p->activation_max);
                }
            }
        }
        input += p->input_height * p->input_width * p->input_channels;
    }
}

#endif
