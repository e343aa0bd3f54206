/* AVERAGE_POOL_2D and MAX_POOL_2D, float32.
 *
 * input    float32 [batches, input_height, input_width, channels]
 * output   float32 [batches, output_height, output_width, channels]
 * Only taps inside of the input count. Sums run in memory order.
 * Order: outputs in memory order; each is written after its whole window was read.
 */
#ifndef EK_POOL_2D_F32_H
#define EK_POOL_2D_F32_H

#include <float.h>

#include "ek_accumulator_f32.h"

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
    float activation_min;
    float activation_max;
} ek_average_pool_2d_f32_params;

typedef ek_average_pool_2d_f32_params ek_max_pool_2d_f32_params;

static EK_INLINE void ek_average_pool_2d_f32(const ek_average_pool_2d_f32_params *p,
                                             const float *input, float *output)
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
                const float count = (float)((last_y - first_y) * (last_x - first_x));
                for (int32_t channel = 0; channel < p->channels; ++channel) {
                    float sum = 0.0f;
                    for (int32_t y = first_y; y < last_y; ++y) {
                        for (int32_t x = first_x; x < last_x; ++x) {
                            sum += input[(y * p->input_width + x) * p->channels + channel];
                        }
                    }
                    *output++ = ek_activate_f32(sum / count, p->activation_min, p->activation_max);
                }
            }
        }
        input += p->input_height * p->input_width * p->channels;
    }
}

static EK_INLINE void ek_max_pool_2d_f32(const ek_max_pool_2d_f32_params *p, const float *input,
                                         float *output)
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
                    float largest = -FLT_MAX;
                    for (int32_t y = first_y; y < last_y; ++y) {
                        for (int32_t x = first_x; x < last_x; ++x) {
                            const float value =
                                input[(y * p->input_width + x) * p->channels + channel];
                            largest = value > largest ? value : largest;
                        }
                    }
                    *output++ = ek_activate_f32(largest, p->activation_min, p->activation_max);
                }
            }
        }
        input += p->input_height * p->input_width * p->channels;
    }
}

#endif
