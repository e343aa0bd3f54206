/* AVERAGE_POOL_2D and MAX_POOL_2D, int8.
 *
 * input    int8 [batches, input_height, input_width, channels]
 * output   int8 [batches, output_height, output_width, channels], same scale and zero point
 * shift    added to the codes before they are averaged: 0, or 128 where halves are to be
 *          rounded up, as on the uint8 codes that a model had
 * Only taps inside of the input count. The average of the shifted codes is rounded to the
 * nearest, halves away from zero.
 * Order: outputs in memory order; each is written after its whole window was read.
 */
#ifndef EK_POOL_2D_S8_H
#define EK_POOL_2D_S8_H

#include "ek_common.h"

typedef struct {
    int32_t batches;
    int32_t input_height;
    int32_t input_width;
    int32_t channels;
    int32_t filter_height;
    int32_t filter_width;
    int32_t output_height;
    int32_t output_width;
    int32_t stride_height;
    int32_t stride_width;
    int32_t pad_top;
    int32_t pad_left;
    int32_t activation_min;
    int32_t activation_max;
    int32_t shift;
} ek_average_pool_2d_s8_params;

typedef ek_average_pool_2d_s8_params ek_max_pool_2d_s8_params;

static EK_INLINE void ek_average_pool_2d_s8(const ek_average_pool_2d_s8_params *p,
                                            const int8_t *input, int8_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            const int32_t in_y = out_y * p->stride_height - p->pad_top;
            const int32_t first_y = ek_max_s32(in_y, 0);
            const int32_t last_y = ek_min_s32(in_y + p->filter_height, p->input_height);
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const int32_t in_x = out_x * p->stride_width - p->pad_left;
                const int32_t first_x = ek_max_s32(in_x, 0);
                const int32_t last_x = ek_min_s32(in_x + p->filter_width, p->input_width);
                const int32_t count = (last_y - first_y) * (last_x - first_x);
                for (int32_t channel = 0; channel < p->channels; ++channel) {
                    int32_t sum = p->shift * count;
                    for (int32_t y = first_y; y < last_y; ++y) {
                        for (int32_t x = first_x; x < last_x; ++x) {
                            sum += input[(y * p->input_width + x) * p->channels + channel];
                        }
                    }
                    sum = sum > 0 ? (sum + count / 2) / count : (sum - count / 2) / count;
                    *output++ =
                        ek_clamp_s8(sum - p->shift, p->activation_min, p->activation_max);
                }
            }
        }
        input += p->input_height * p->input_width * p->channels;
    }
}

static EK_INLINE void ek_max_pool_2d_s8(const ek_max_pool_2d_s8_params *p, const int8_t *input,
                                        int8_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            const int32_t in_y = out_y * p->stride_height - p->pad_top;
            const int32_t first_y = ek_max_s32(in_y, 0);
            const int32_t last_y = ek_min_s32(in_y + p->filter_height, p->input_height);
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const int32_t in_x = out_x * p->stride_width - p->pad_left;
                const int32_t first_x = ek_max_s32(in_x, 0);
                const int32_t last_x = ek_min_s32(in_x + p->filter_width, p->input_width);
                for (int32_t channel = 0; channel < p->channels; ++channel) {
                    int32_t largest = INT8_MIN;
                    for (int32_t y = first_y; y < last_y; ++y) {
                        for (int32_t x = first_x; x < last_x; ++x) {
                            largest = ek_max_s32(
                                largest, input[(y * p->input_width + x) * p->channels + channel]);
                        }
                    }
                    *output++ = ek_clamp_s8(largest, p->activation_min, p->activation_max);
                }
            }
        }
        input += p->input_height * p->input_width * p->channels;
    }
}

#endif
