/* RESIZE_NEAREST_NEIGHBOR, any type.
 *
 * input    bytes [batches, input_height, input_width, pixel_bytes]
 * row      uint16 [output_height], the input's row for each of the output's
 * column   uint16 [output_width], the same for columns
 * output   bytes [batches, output_height, output_width, pixel_bytes]
 */
#ifndef EK_RESIZE_NEAREST_H
#define EK_RESIZE_NEAREST_H

#include "ek_common.h"

typedef struct {
    int32_t batches;
    int32_t input_height;
    int32_t input_width;
    int32_t output_height;
    int32_t output_width;
    int32_t pixel_bytes;
    const EK_FLASH uint16_t *row;
    const EK_FLASH uint16_t *column;
} ek_resize_nearest_params;

static EK_INLINE void ek_resize_nearest(const ek_resize_nearest_params *p, const int8_t *input,
                                        int8_t *output)
{
    const int32_t row_bytes = p->input_width * p->pixel_bytes;
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t y = 0; y < p->output_height; ++y) {
            const int8_t *from = input + p->row[y] * row_bytes;
            for (int32_t x = 0; x < p->output_width; ++x) {
                memcpy(output, from + p->column[x] * p->pixel_bytes, (size_t)p->pixel_bytes);
                output += p->pixel_bytes;
            }
        }
        input += p->input_height * row_bytes;
    }
}

#endif
