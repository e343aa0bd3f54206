/* CONV_2D, int8, for Armv6-M: any filter, stride and padding; no dilation along the width, one
 * group, one batch.
 *
 * input        int8 [input_height, input_width, input_channels]
 * filter       in blocks of channels, each weight 128 more than it is, see ek_matmul_m0.h; a
 *              window of filter_height * filter_width * input_channels inputs
 * scales       int32 [channels, 3]: the bias less input_zero_point * sum(filter) of the channel,
 *              the multiplier, the right shift in [1, 22]
 * output       int8 [output_height, output_width, channels]
 * scratch      one window, [filter_height, filter_width, input_channels]
 * Taps outside of the input read its zero point. Rounding: ek_requantize_m0.
 * Order: output pixels in memory order; each window is read whole before an output of its
 * pixel is written.
 */
#ifndef EK_CONV_2D_M0_S8_H
#define EK_CONV_2D_M0_S8_H

#include "ek_gather_s8.h"
#include "ek_matmul_m0.h"

typedef struct {
    int32_t input_height;
    int32_t input_width;
    int32_t input_channels;
    int32_t input_zero_point;
    int32_t filter_height;
    int32_t filter_width;
    int32_t output_height;
    int32_t output_width;
    int32_t channels;
    int32_t stride_height;
    int32_t stride_width;
    int32_t dilation_height;
    int32_t pad_top;
    int32_t pad_left;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    const uint8_t *filter;
    const int32_t *scales;
} ek_conv_2d_m0_s8_params;

static EK_INLINE void ek_conv_2d_m0_s8(const ek_conv_2d_m0_s8_params *p, const int8_t *input,
                                       int8_t *output, int8_t *scratch)
{
    const ek_matmul_m0 matmul = {
        p->filter_height * p->filter_width * p->input_channels, p->channels, p->filter,
        (const ek_scale_m0 *)p->scales,
        ek_make_range_m0(p->output_zero_point, p->activation_min, p->activation_max)};
    const ek_gather_s8 gather = {p->input_height,     p->input_width,   p->input_channels,
                                 p->input_zero_point, p->filter_height, p->filter_width,
                                 p->dilation_height};
    for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
        for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
            ek_gather_window_s8(&gather, input, out_y * p->stride_height - p->pad_top,
                                out_x * p->stride_width - p->pad_left, scratch);
            ek_matmul_m0_write(&matmul, scratch, output);
            output += p->channels;
        }
    }
}

#endif
