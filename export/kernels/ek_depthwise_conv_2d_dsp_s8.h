/* DEPTHWISE_CONV_2D, int8, for cores with the DSP extension: four channels at a time; any
 * filter, stride, dilation and padding; one batch, depth multiplier 1.
 *
 * input        int8 [input_height, input_width, channels], channels a multiple of 4
 * filter       int8 [filter_height, filter_width, channels]
 * bias         int32 [channels]
 * right_shift  int8 [channels], in [1, 22]; with unshifted 1, in [0, 22]
 * output       int8 [output_height, output_width, channels]
 * The taps add (x + input_offset) * w; those outside of the input add nothing. Rounding:
 * ek_requantize_dsp.
 * Order: outputs in memory order, four channels at a time; they are written after their
 * windows were read.
 */
#ifndef EK_DEPTHWISE_CONV_2D_DSP_S8_H
#define EK_DEPTHWISE_CONV_2D_DSP_S8_H

#include "ek_dsp.h"

typedef struct {
    int32_t input_height;
    int32_t input_width;
    int32_t channels;
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
    int32_t input_offset;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    int32_t unshifted;
    const int8_t *filter;
    const int32_t *bias;
    const int32_t *multiplier;
    const int8_t *right_shift;
} ek_depthwise_conv_2d_dsp_s8_params;

static EK_INLINE int8_t ek_depthwise_output_dsp(const ek_depthwise_conv_2d_dsp_s8_params *p,
                                                int32_t acc, int32_t multiplier, int32_t right)
{
    if (p->unshifted && right == 0) {
        return ek_clamp_s8(ek_high_mul(acc * 2, multiplier) + p->output_zero_point,
                           p->activation_min, p->activation_max);
    }
    return ek_requantize_dsp(acc, multiplier, right, p->output_zero_point, p->activation_min,
                             p->activation_max);
}

/* Adds one tap of four channels. */
#define EK_DEPTHWISE_DSP_TAP(x, w)                                                               \
    do {                                                                                         \
        const uint32_t ek_x = ek_load_word(x);                                                   \
        const uint32_t ek_w = ek_load_word(w);                                                   \
        const uint32_t ek_x_even = ek_add_bytes_even(offset, ek_x);                              \
        const uint32_t ek_x_odd = ek_add_bytes_odd(offset, ek_x);                                \
        const uint32_t ek_w_even = ek_even_bytes(ek_w);                                          \
        const uint32_t ek_w_odd = ek_odd_bytes(ek_w);                                            \
        acc_0 = ek_smlabb(ek_x_even, ek_w_even, acc_0);                                          \
        acc_1 = ek_smlabb(ek_x_odd, ek_w_odd, acc_1);                                            \
        acc_2 = ek_smlatt(ek_x_even, ek_w_even, acc_2);                                          \
        acc_3 = ek_smlatt(ek_x_odd, ek_w_odd, acc_3);                                            \
    } while (0)

static EK_INLINE void ek_depthwise_conv_2d_dsp_s8(const ek_depthwise_conv_2d_dsp_s8_params *p,
                                                  const int8_t *input, int8_t *output)
{
    const uint32_t half = (uint32_t)p->input_offset & 0xFFFFu;
    const uint32_t offset = half | (half << 16);
    const int32_t x_step = p->dilation_width * p->channels;
    const int32_t x_row = p->dilation_height * p->input_width * p->channels;
    for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
        const int32_t in_y = out_y * p->stride_height - p->pad_top;
        const int32_t first_y = ek_first_tap(in_y, p->dilation_height);
        const int32_t rows =
            ek_last_tap(in_y, p->dilation_height, p->filter_height, p->input_height) - first_y;
        for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
            const int32_t in_x = out_x * p->stride_width - p->pad_left;
            const int32_t first_x = ek_first_tap(in_x, p->dilation_width);
            const int32_t taps =
                ek_last_tap(in_x, p->dilation_width, p->filter_width, p->input_width) - first_x;
            const int8_t *x_base = input
                                   + ((in_y + first_y * p->dilation_height) * p->input_width
                                      + in_x + first_x * p->dilation_width)
                                         * p->channels;
            const int8_t *w_base = p->filter + (first_y * p->filter_width + first_x) * p->channels;
            for (int32_t c = 0; c < p->channels; c += 4) {
                const int8_t *x = x_base + c;
                const int8_t *w = w_base + c;
                int32_t acc_0 = p->bias[c];
                int32_t acc_1 = p->bias[c + 1];
                int32_t acc_2 = p->bias[c + 2];
                int32_t acc_3 = p->bias[c + 3];
                for (int32_t row = rows; row > 0; --row) {
                    if (p->filter_width == 3 && taps == 3) {
                        EK_DEPTHWISE_DSP_TAP(x, w);
                        EK_DEPTHWISE_DSP_TAP(x + x_step, w + p->channels);
                        EK_DEPTHWISE_DSP_TAP(x + 2 * x_step, w + 2 * p->channels);
                    } else {
                        const int8_t *x_tap = x;
                        const int8_t *w_tap = w;
                        for (int32_t tap = taps; tap > 0; --tap) {
                            EK_DEPTHWISE_DSP_TAP(x_tap, w_tap);
                            x_tap += x_step;
                            w_tap += p->channels;
                        }
                    }
                    x += x_row;
                    w += p->filter_width * p->channels;
                }
                {
                    /* Read before the stores, which might change them for all C knows. */
                    const int32_t m_1 = p->multiplier[c + 1];
                    const int32_t m_2 = p->multiplier[c + 2];
                    const int32_t m_3 = p->multiplier[c + 3];
                    const int32_t r_1 = p->right_shift[c + 1];
                    const int32_t r_2 = p->right_shift[c + 2];
                    const int32_t r_3 = p->right_shift[c + 3];
                    output[0] = ek_depthwise_output_dsp(p, acc_0, p->multiplier[c],
                                                        p->right_shift[c]);
                    output[1] = ek_depthwise_output_dsp(p, acc_1, m_1, r_1);
                    output[2] = ek_depthwise_output_dsp(p, acc_2, m_2, r_2);
                    output[3] = ek_depthwise_output_dsp(p, acc_3, m_3, r_3);
                }
                output += 4;
            }
        }
    }
}

#endif
