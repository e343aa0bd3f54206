/* SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND, any type.
 *
 * SPACE_TO_BATCH_ND spreads pixels over batches: the output's batch (y, x, n), for y and x below
 * the block, holds every block-th pixel of the input's batch n.
 * input    bytes [batches, input_height, input_width, pixel_bytes]
 * output   bytes [block_height, block_width, batches, output_height, output_width, pixel_bytes]
 * value    the byte that all elements outside of the input consist of
 *
 * BATCH_TO_SPACE_ND is the way back.
 * input    bytes [block_height, block_width, batches, input_height, input_width, pixel_bytes]
 * output   bytes [batches, output_height, output_width, pixel_bytes]
 *
 * top, left   rows and columns of the wide image before the output's (cropped) or before the
 *             input's (padded)
 * Order: memory order of the output.
 */
#ifndef EK_SPACE_TO_BATCH_H
#define EK_SPACE_TO_BATCH_H

#include "ek_common.h"

typedef struct {
    int32_t batches;
    int32_t block_height;
    int32_t block_width;
    int32_t input_height;
    int32_t input_width;
    int32_t output_height;
    int32_t output_width;
    int32_t pixel_bytes;
    int32_t top;
    int32_t left;
    int32_t value;
} ek_space_to_batch_params;

typedef struct {
    int32_t batches;
    int32_t block_height;
    int32_t block_width;
    int32_t input_height;
    int32_t input_width;
    int32_t output_height;
    int32_t output_width;
    int32_t pixel_bytes;
    int32_t top;
    int32_t left;
} ek_batch_to_space_params;

static EK_INLINE void ek_space_to_batch(const ek_space_to_batch_params *p, const int8_t *input,
                                        int8_t *output)
{
    const int32_t out_batches = p->batches * p->block_height * p->block_width;
    for (int32_t out_batch = 0; out_batch < out_batches; ++out_batch) {
        const int32_t batch = out_batch % p->batches;
        const int32_t first_x = out_batch / p->batches % p->block_width - p->left;
        const int32_t first_y = out_batch / p->batches / p->block_width - p->top;
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            const int32_t y = out_y * p->block_height + first_y;
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const int32_t x = out_x * p->block_width + first_x;
                if (y >= 0 && y < p->input_height && x >= 0 && x < p->input_width) {
                    const int32_t pixel = (batch * p->input_height + y) * p->input_width + x;
                    memcpy(output, input + pixel * p->pixel_bytes, (size_t)p->pixel_bytes);
                } else {
                    memset(output, (int)p->value, (size_t)p->pixel_bytes);
                }
                output += p->pixel_bytes;
            }
        }
    }
}

static EK_INLINE void ek_batch_to_space(const ek_batch_to_space_params *p, const int8_t *input,
                                        int8_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            const int32_t y = out_y + p->top;
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const int32_t x = out_x + p->left;
                const int32_t block =
                    y % p->block_height * p->block_width + x % p->block_width;
                const int32_t row =
                    (block * p->batches + batch) * p->input_height + y / p->block_height;
                const int32_t pixel = row * p->input_width + x / p->block_width;
                memcpy(output, input + pixel * p->pixel_bytes, (size_t)p->pixel_bytes);
                output += p->pixel_bytes;
            }
        }
    }
}

#endif
