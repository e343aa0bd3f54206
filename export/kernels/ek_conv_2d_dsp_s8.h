/* CONV_2D, int8, for cores with the DSP extension: any filter, stride and padding; no
 * dilation along the width, one group, one batch.
 *
 * input        int8 [input_height, input_width, input_channels]
 * filter       two channels to a half or, with weight_bits 4, to a byte, see ek_matmul_dsp.h; a
 *              window of filter_height * filter_width * input_channels inputs, with zeros up to depth
 * twice_bias   int32 [channels], twice: the bias less input_zero_point * sum(filter)
 * right_shift  int8 [channels], in [1, 22]
 * output       int8 [output_height, output_width, channels]
 * scratch_1    two widened windows: 4 * depth bytes
 * scratch_2    one window as bytes, where input_channels is no multiple of 4: depth bytes
 * Taps outside of the input read its zero point. Rounding: ek_requantize_dsp.
 * Order: pairs of output pixels in memory order; both windows are read whole before an output
 * of the pair is written.
 */
#ifndef EK_CONV_2D_DSP_S8_H
#define EK_CONV_2D_DSP_S8_H

#include "ek_matmul_dsp.h"

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
    int32_t pad_top;
    int32_t pad_left;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    int32_t weight_bits;
    const uint32_t *filter;
    const int32_t *twice_bias;
    const int32_t *multiplier;
    const int8_t *right_shift;
} ek_conv_2d_dsp_s8_params;

/* Gathers one window, widened as it is read: input_channels is a multiple of 4. */
static EK_INLINE void ek_gather_words_dsp(const ek_conv_2d_dsp_s8_params *p, const int8_t *input,
                                          int32_t in_y, int32_t in_x, uint32_t *rows)
{
    const uint32_t half = (uint32_t)p->input_zero_point & 0xFFFFu;
    const uint32_t fill = half | (half << 16);
    const int32_t first_x = ek_min_s32(ek_max_s32(0, -in_x), p->filter_width);
    const int32_t last_x = ek_max_s32(ek_min_s32(p->filter_width, p->input_width - in_x), first_x);
    for (int32_t tap_y = 0; tap_y < p->filter_height; ++tap_y) {
        const int32_t y = in_y + tap_y * p->dilation_height;
        if (y < 0 || y >= p->input_height) {
            rows = ek_fill_row(rows, fill, p->filter_width * p->input_channels);
        } else {
            const int8_t *x = input + (y * p->input_width + in_x + first_x) * p->input_channels;
            rows = ek_fill_row(rows, fill, first_x * p->input_channels);
            rows = ek_widen_row(rows, x, (last_x - first_x) * p->input_channels);
            rows = ek_fill_row(rows, fill, (p->filter_width - last_x) * p->input_channels);
        }
    }
}

/* Gathers one window as bytes, then widens it. */
static EK_INLINE void ek_gather_bytes_dsp(const ek_conv_2d_dsp_s8_params *p, const int8_t *input,
                                          int32_t in_y, int32_t in_x, uint32_t *rows,
                                          int8_t *window)
{
    int8_t *to = window;
    for (int32_t tap_y = 0; tap_y < p->filter_height; ++tap_y) {
        const int32_t y = in_y + tap_y * p->dilation_height;
        const int8_t *row = input + y * p->input_width * p->input_channels;
        if (y >= 0 && y < p->input_height && in_x >= 0
            && in_x + p->filter_width <= p->input_width) {
            memcpy(to, row + in_x * p->input_channels,
                   (size_t)(p->filter_width * p->input_channels));
            to += p->filter_width * p->input_channels;
            continue;
        }
        for (int32_t tap_x = 0; tap_x < p->filter_width; ++tap_x) {
            const int32_t x = in_x + tap_x;
            if (y < 0 || y >= p->input_height || x < 0 || x >= p->input_width) {
                for (int32_t i = 0; i < p->input_channels; ++i) {
                    *to++ = (int8_t)p->input_zero_point;
                }
            } else {
                for (int32_t i = 0; i < p->input_channels; ++i) {
                    *to++ = row[x * p->input_channels + i];
                }
            }
        }
    }
    (void)ek_widen_row(rows, window, p->depth);
}

static EK_INLINE void ek_conv_2d_dsp_s8(const ek_conv_2d_dsp_s8_params *p, const int8_t *input,
                                        int8_t *output, uint32_t *scratch_1, int8_t *scratch_2)
{
    const int32_t pixels = p->output_height * p->output_width;
    int32_t out_y = 0;
    int32_t out_x = 0;
    for (int32_t pixel = 0; pixel < pixels; pixel += 2) {
        const int32_t second = pixel + 1 < pixels ? 1 : 0;
        for (int32_t i = 0; i <= second; ++i) {
            const int32_t in_y = out_y * p->stride_height - p->pad_top;
            const int32_t in_x = out_x * p->stride_width - p->pad_left;
            if (p->input_channels % 4 == 0) {
                ek_gather_words_dsp(p, input, in_y, in_x, scratch_1 + 2 * i);
            } else {
                ek_gather_bytes_dsp(p, input, in_y, in_x, scratch_1 + 2 * i, scratch_2);
            }
            if (++out_x == p->output_width) {
                out_x = 0;
                ++out_y;
            }
        }
        if (p->weight_bits == 4) {
            ek_matmul_dsp_write_s4(scratch_1, p->depth, p->channels, p->filter, p->twice_bias, p->multiplier,
                                   p->right_shift, p->output_zero_point, p->activation_min,
                                   p->activation_max, output, second);
        } else {
            ek_matmul_dsp_write(scratch_1, p->depth, p->channels, p->filter, p->twice_bias, p->multiplier,
                                p->right_shift, p->output_zero_point, p->activation_min,
                                p->activation_max, output, second);
        }
        output += (1 + second) * p->channels;
    }
}

#endif
