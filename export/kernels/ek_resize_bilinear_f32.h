/* RESIZE_BILINEAR, float32.
 *
 * input             float32 [batches, input_height, input_width, channels]
 * row_low, row_high        uint16 [output_height], the rows that a row of the output lies between
 * row_fraction             float32 [output_height], how far from the first of them
 * column_low, column_high  uint16 [output_width], the same for columns
 * column_fraction          float32 [output_width]
 * output            float32 [batches, output_height, output_width, channels]
 */
#ifndef EK_RESIZE_BILINEAR_F32_H
#define EK_RESIZE_BILINEAR_F32_H

#include "ek_common.h"

typedef struct {
    int32_t batches;
    int32_t input_height;
    int32_t input_width;
    int32_t channels;
    int32_t output_height;
    int32_t output_width;
    const EK_FLASH uint16_t *row_low;
    const EK_FLASH uint16_t *row_high;
    const EK_FLASH float *row_fraction;
    const EK_FLASH uint16_t *column_low;
    const EK_FLASH uint16_t *column_high;
    const EK_FLASH float *column_fraction;
} ek_resize_bilinear_f32_params;

static EK_INLINE void ek_resize_bilinear_f32(const ek_resize_bilinear_f32_params *p,
                                             const float *input, float *output)
{
    const int32_t row = p->input_width * p->channels;
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t i = 0; i < p->output_height; ++i) {
            const float *low = input + p->row_low[i] * row;
            const float *high = input + p->row_high[i] * row;
            const float y = p->row_fraction[i];
            for (int32_t j = 0; j < p->output_width; ++j) {
                const int32_t left = p->column_low[j] * p->channels;
                const int32_t right = p->column_high[j] * p->channels;
                const float x = p->column_fraction[j];
                for (int32_t k = 0; k < p->channels; ++k) {
                    *output++ = low[left + k] * (1.0f - y) * (1.0f - x) +
                                high[left + k] * y * (1.0f - x) +
                                low[right + k] * (1.0f - y) * x + high[right + k] * y * x;
                }
            }
        }
        input += p->input_height * row;
    }
}

#endif
