/* CONV_2D, int8, with pruned weights: any filter, stride and padding; no dilation along the
 * width, one group, one batch.
 *
 * input    int8 [input_height, input_width, input_channels]
 * entries, groups, bias, multiplier, shift: the weights and scales, see ek_sparse_s8.h; inputs
 *          are those of a window, [filter_height, filter_width, input_channels]
 * output   int8 [output_height, output_width, channels]
 * scratch  one window
 * Taps outside of the input read its zero point.
 * Order: output pixels in memory order; each window is read whole before an output of its
 * pixel is written.
 */
#ifndef EK_CONV_2D_SPARSE_S8_H
#define EK_CONV_2D_SPARSE_S8_H

#include "ek_gather_s8.h"
#include "ek_sparse_s8.h"

typedef struct {
    int32_t input_height;
    int32_t input_width;
    int32_t input_channels;
    int32_t input_zero_point;
    int32_t filter_height;
    int32_t filter_width;
    int32_t output_height;
    int32_t output_width;
    int32_t stride_height;
    int32_t stride_width;
    int32_t dilation_height;
    int32_t pad_top;
    int32_t pad_left;
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
} ek_conv_2d_sparse_s8_params;

static EK_INLINE void ek_conv_2d_sparse_s8(const ek_conv_2d_sparse_s8_params *p,
                                           const int8_t *input, int8_t *output, int8_t *scratch)
{
    const ek_gather_s8 gather = {p->input_height,     p->input_width,   p->input_channels,
                                 p->input_zero_point, p->filter_height, p->filter_width,
                                 p->dilation_height};
    const ek_sparse_s8 weights = {
        p->channels,       p->block,          p->dsp,         p->output_zero_point,
        p->activation_min, p->activation_max, p->per_channel, p->shifts_left,
        p->entries,        p->groups,         p->bias,        p->multiplier,
        p->shift};
    for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
        for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
            ek_gather_window_s8(&gather, input, out_y * p->stride_height - p->pad_top,
                                out_x * p->stride_width - p->pad_left, scratch);
            ek_sparse_write_s8(&weights, scratch, output);
            output += p->channels;
        }
    }
}

#endif
