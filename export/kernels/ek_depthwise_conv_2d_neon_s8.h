/* DEPTHWISE_CONV_2D, int8, with NEON: sixteen channels at a time, then eight; any filter,
 * stride, dilation and padding; one batch, depth multiplier 1.
 *
 * input       int8 [input_height, input_width, channels]
 * filter      int8: for every 16 channels, then for every 8, [filter_height, filter_width, 16
 *             or 8], with zeros up to a multiple of 8 channels
 * bias        int32 [channels], less input_zero_point * sum(filter) of the channel
 * shift       int32 [channels], positive to the left (shifts_left: whether any is,
 *             shifts_right: whether all are negative)
 * output      int8 [output_height, output_width, channels]
 * scratch     one window, filter_height * filter_width * channels bytes, where padded is 1
 * Taps outside of the input read its zero point. Two products share a sum of 16 bits where the
 * weights allow it (pairs_fit): no channel has -128 twice. Rounding: ek_scale.
 * Order: output pixels in memory order, channels in blocks; a block is written after its
 * window was read.
 */
#ifndef EK_DEPTHWISE_CONV_2D_NEON_S8_H
#define EK_DEPTHWISE_CONV_2D_NEON_S8_H

#include "ek_neon.h"

typedef struct {
    int32_t input_height;
    int32_t input_width;
    int32_t channels;
    int32_t input_zero_point;
    int32_t filter_height;
    int32_t filter_width;
    int32_t output_height;
    int32_t output_width;
    int32_t stride_height;
    int32_t stride_width;
    int32_t dilation_height;
    int32_t dilation_width;
    int32_t pad_top;
    int32_t pad_left;
    int32_t padded;
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
} ek_depthwise_conv_2d_neon_s8_params;

/* Sums of sixteen channels. */
typedef struct {
    int32x4_t a;
    int32x4_t b;
    int32x4_t c;
    int32x4_t d;
} ek_sums_16_neon;

static EK_INLINE ek_sums_16_neon ek_add_16_neon(ek_sums_16_neon s, int16x8_t low, int16x8_t high)
{
    s.a = vaddw_s16(s.a, vget_low_s16(low));
    s.b = vaddw_high_s16(s.b, low);
    s.c = vaddw_s16(s.c, vget_low_s16(high));
    s.d = vaddw_high_s16(s.d, high);
    return s;
}

/* Adds the products of one tap. */
static EK_INLINE ek_sums_16_neon ek_add_tap_neon(ek_sums_16_neon s, const int8_t *x,
                                                 const int8_t *w)
{
    const int8x16_t x_0 = vld1q_s8(x);
    const int8x16_t w_0 = vld1q_s8(w);
    return ek_add_16_neon(s, vmull_s8(vget_low_s8(x_0), vget_low_s8(w_0)),
                          vmull_high_s8(x_0, w_0));
}

/* Adds the products of two taps. */
static EK_INLINE ek_sums_16_neon ek_add_taps_neon(ek_sums_16_neon s, int32_t pairs_fit,
                                                  const int8_t *x, const int8_t *y,
                                                  const int8_t *w)
{
    if (pairs_fit) {
        const int8x16_t x_0 = vld1q_s8(x);
        const int8x16_t x_1 = vld1q_s8(y);
        const int8x16_t w_0 = vld1q_s8(w);
        const int8x16_t w_1 = vld1q_s8(w + 16);
        const int16x8_t low = vmull_s8(vget_low_s8(x_0), vget_low_s8(w_0));
        const int16x8_t high = vmull_high_s8(x_0, w_0);
        return ek_add_16_neon(s, vmlal_s8(low, vget_low_s8(x_1), vget_low_s8(w_1)),
                              vmlal_high_s8(high, x_1, w_1));
    }
    return ek_add_tap_neon(ek_add_tap_neon(s, x, w), y, w + 16);
}

/* Sixteen channels of one pixel; rows and taps of the window lie x_row and x_tap bytes apart. */
static EK_INLINE int8x16_t ek_depthwise_16_neon(const ek_depthwise_conv_2d_neon_s8_params *p,
                                                const ek_output_neon *o, int32_t c,
                                                const int8_t *x, int32_t x_row, int32_t x_tap)
{
    const int32_t *bias = p->bias + c;
    const int8_t *w = p->filter + c * p->filter_height * p->filter_width;
    ek_sums_16_neon s;
    s.a = vld1q_s32(bias);
    s.b = vld1q_s32(bias + 4);
    s.c = vld1q_s32(bias + 8);
    s.d = vld1q_s32(bias + 12);
    if (p->filter_height == 3 && p->filter_width == 3) {
        const int8_t *second = x + x_row;
        const int8_t *third = second + x_row;
        s = ek_add_taps_neon(s, p->pairs_fit, x, x + x_tap, w);
        s = ek_add_taps_neon(s, p->pairs_fit, x + 2 * x_tap, second, w + 32);
        s = ek_add_taps_neon(s, p->pairs_fit, second + x_tap, second + 2 * x_tap, w + 64);
        s = ek_add_taps_neon(s, p->pairs_fit, third, third + x_tap, w + 96);
        s = ek_add_tap_neon(s, third + 2 * x_tap, w + 128);
    } else {
        for (int32_t row = 0; row < p->filter_height; ++row) {
            const int8_t *from = x + row * x_row;
            int32_t tap = 0;
            for (; tap + 2 <= p->filter_width; tap += 2) {
                s = ek_add_taps_neon(s, p->pairs_fit, from, from + x_tap, w);
                from += 2 * x_tap;
                w += 32;
            }
            if (tap < p->filter_width) {
                s = ek_add_tap_neon(s, from, w);
                w += 16;
            }
        }
    }
    return ek_narrow_16_neon(
        o, ek_scale_channels_neon(o, c, s.a), ek_scale_channels_neon(o, c + 4, s.b),
        ek_scale_channels_neon(o, c + 8, s.c), ek_scale_channels_neon(o, c + 12, s.d));
}

/* Eight channels of one pixel, or the fewer that are left. */
static EK_INLINE int8x8_t ek_depthwise_8_neon(const ek_depthwise_conv_2d_neon_s8_params *p,
                                              const ek_output_neon *o, int32_t c, const int8_t *x,
                                              int32_t x_row, int32_t x_tap)
{
    const int8_t *w = p->filter + c * p->filter_height * p->filter_width;
    int32x4_t low = vld1q_s32(p->bias + c);
    int32x4_t high = vld1q_s32(p->bias + c + 4);
    for (int32_t row = 0; row < p->filter_height; ++row) {
        const int8_t *from = x + row * x_row;
        for (int32_t tap = 0; tap < p->filter_width; ++tap) {
            const int16x8_t products = vmull_s8(ek_load_8_neon(from, p->channels - c), vld1_s8(w));
            low = vaddw_s16(low, vget_low_s16(products));
            high = vaddw_high_s16(high, products);
            from += x_tap;
            w += 8;
        }
    }
    return ek_narrow_8_neon(o, ek_scale_channels_neon(o, c, low),
                            ek_scale_channels_neon(o, c + 4, high));
}

/* Gathers a window that reaches over the border. */
static EK_INLINE void ek_gather_depthwise_neon(const ek_depthwise_conv_2d_neon_s8_params *p,
                                               const int8_t *input, int32_t in_y, int32_t in_x,
                                               int8_t *to)
{
    for (int32_t row = 0; row < p->filter_height; ++row) {
        const int32_t y = in_y + row * p->dilation_height;
        for (int32_t tap = 0; tap < p->filter_width; ++tap) {
            const int32_t x = in_x + tap * p->dilation_width;
            if (y < 0 || y >= p->input_height || x < 0 || x >= p->input_width) {
                to = ek_fill_neon(to, p->input_zero_point, p->channels);
            } else {
                to = ek_copy_neon(to, input + (y * p->input_width + x) * p->channels,
                                  p->channels);
            }
        }
    }
}

static EK_INLINE void ek_depthwise_conv_2d_neon_s8(const ek_depthwise_conv_2d_neon_s8_params *p,
                                                   const int8_t *input, int8_t *output,
                                                   int8_t *scratch)
{
    const ek_output_neon o = {p->bias,
                              p->multiplier,
                              p->shift,
                              p->shifts_left,
                              p->shifts_right,
                              p->output_zero_point,
                              p->activation_min,
                              p->activation_max};
    const int32_t last_y = p->input_height - (p->filter_height - 1) * p->dilation_height - 1;
    const int32_t last_x = p->input_width - (p->filter_width - 1) * p->dilation_width - 1;
    for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
        const int32_t in_y = out_y * p->stride_height - p->pad_top;
        for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
            const int32_t in_x = out_x * p->stride_width - p->pad_left;
            const int8_t *x = scratch;
            int32_t x_tap = p->channels;
            int32_t x_row = p->filter_width * p->channels;
            int32_t c = 0;
            if (p->padded && (in_y < 0 || in_y > last_y || in_x < 0 || in_x > last_x)) {
                ek_gather_depthwise_neon(p, input, in_y, in_x, scratch);
            } else {
                x = input + (in_y * p->input_width + in_x) * p->channels;
                x_tap = p->dilation_width * p->channels;
                x_row = p->dilation_height * p->input_width * p->channels;
            }
            for (; c + 16 <= p->channels; c += 16) {
                vst1q_s8(output + c, ek_depthwise_16_neon(p, &o, c, x + c, x_row, x_tap));
            }
            for (; c < p->channels; c += 8) {
                ek_store_8_neon(output + c, ek_depthwise_8_neon(p, &o, c, x + c, x_row, x_tap),
                                p->channels - c);
            }
            output += p->channels;
        }
    }
}

#endif
