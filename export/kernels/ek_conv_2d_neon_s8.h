/* CONV_2D, int8, with NEON: any filter, stride, dilation and padding; one group, one batch.
 *
 * input       int8 [input_height, input_width, input_channels]
 * filter      see ek_matmul_neon.h; a window of filter_height * filter_width * input_channels
 *             inputs, with zeros up to depth, a multiple of 8 or, with SDOT, 4
 * bias        int32 [channels], less input_zero_point * sum(filter) of the channel
 * shift       int32 [channels], positive to the left (shifts_left: whether any is,
 *             shifts_right: whether all are negative)
 * output      int8 [output_height, output_width, channels]
 * scratch     the windows of a group: depth bytes each, rounded up to a multiple of 16
 * Taps outside of the input read its zero point. Rounding: ek_scale.
 * Order: groups of two output pixels (with SDOT four) in memory order; their windows are read
 * whole before an output of theirs is written.
 */
#ifndef EK_CONV_2D_NEON_S8_H
#define EK_CONV_2D_NEON_S8_H

#include "ek_matmul_neon.h"

typedef struct {
    int32_t input_height;
    int32_t input_width;
    int32_t input_channels;
    int32_t input_zero_point;
    int32_t filter_height;
    int32_t filter_width;
    int32_t depth;
    int32_t output_height;
    int32_t output_width;
    int32_t channels;
    int32_t stride_height;
    int32_t stride_width;
    int32_t dilation_height;
    int32_t dilation_width;
    int32_t pad_top;
    int32_t pad_left;
    int32_t dot;
    int32_t pairs_fit;
    int32_t shifts_left;
    int32_t shifts_right;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    const int8_t *filter;
    const int32_t *bias;
    const int32_t *multiplier;
    const int32_t *shift;
} ek_conv_2d_neon_s8_params;

/* Gathers one row of taps, which lies at height y of the input; returns where `to` goes on. */
static EK_INLINE int8_t *ek_gather_row_neon(const ek_conv_2d_neon_s8_params *p,
                                            const int8_t *input, int32_t y, int32_t in_x,
                                            int8_t *to)
{
    const int32_t size = p->input_channels;
    const int8_t *row = input + y * p->input_width * size;
    const int32_t extent = (p->filter_width - 1) * p->dilation_width + 1;
    if (p->dilation_width == 1 && in_x >= 0 && in_x + extent <= p->input_width) {
        return ek_copy_neon(to, row + in_x * size, p->filter_width * size);
    }
    for (int32_t tap = 0; tap < p->filter_width; ++tap) {
        const int32_t x = in_x + tap * p->dilation_width;
        if (x < 0 || x >= p->input_width) {
            to = ek_fill_neon(to, p->input_zero_point, size);
        } else {
            to = ek_copy_neon(to, row + x * size, size);
        }
    }
    return to;
}

/* Gathers one window. */
static EK_INLINE void ek_gather_neon(const ek_conv_2d_neon_s8_params *p, const int8_t *input,
                                     int32_t in_y, int32_t in_x, int8_t *to)
{
    const int32_t size = p->input_channels;
    const int32_t run = p->filter_width * size;
    const int32_t height = (p->filter_height - 1) * p->dilation_height + 1;
    if (p->dilation_width == 1 && in_y >= 0 && in_y + height <= p->input_height && in_x >= 0
        && in_x + p->filter_width <= p->input_width) {
        const int8_t *from = input + (in_y * p->input_width + in_x) * size;
        for (int32_t tap = 0; tap < p->filter_height; ++tap) {
            to = ek_copy_neon(to, from, run);
            from += p->dilation_height * p->input_width * size;
        }
        return;
    }
    for (int32_t tap = 0; tap < p->filter_height; ++tap) {
        const int32_t y = in_y + tap * p->dilation_height;
        if (y < 0 || y >= p->input_height) {
            to = ek_fill_neon(to, p->input_zero_point, run);
        } else {
            to = ek_gather_row_neon(p, input, y, in_x, to);
        }
    }
}

static EK_INLINE void ek_conv_2d_neon_s8(const ek_conv_2d_neon_s8_params *p, const int8_t *input,
                                         int8_t *output, int8_t *scratch)
{
    const int32_t group = ek_rows_neon(p->dot);
    const int32_t stride = (p->depth + 15) / 16 * 16;
    const ek_matmul_neon m = {
        p->dot,
        p->pairs_fit,
        p->depth,
        stride,
        p->channels,
        p->filter,
        {p->bias, p->multiplier, p->shift, p->shifts_left, p->shifts_right,
         p->output_zero_point, p->activation_min, p->activation_max},
    };
    const int32_t pixels = p->output_height * p->output_width;
    int32_t out_y = 0;
    int32_t out_x = 0;
    if (stride != p->filter_height * p->filter_width * p->input_channels) {
        (void)ek_fill_neon(scratch, 0, ek_min_s32(pixels, group) * stride);
    }
    for (int32_t pixel = 0; pixel < pixels; pixel += group) {
        const int32_t count = ek_min_s32(pixels - pixel, group);
        for (int32_t i = 0; i < count; ++i) {
            ek_gather_neon(p, input, out_y * p->stride_height - p->pad_top,
                           out_x * p->stride_width - p->pad_left, scratch + i * stride);
            if (++out_x == p->output_width) {
                out_x = 0;
                ++out_y;
            }
        }
        ek_multiply_rows_neon(&m, scratch, count, output);
        output += count * p->channels;
    }
}

#endif
