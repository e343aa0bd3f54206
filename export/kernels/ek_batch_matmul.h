/* BATCH_MATMUL, int8, int16 and float32.
 *
 * input_1  left operand, element (row, k) at row * row_step + k * left_step
 * input_2  right operand, element (k, column) at column * column_step + k * right_step
 * output   [batches_0, batches_1, batches_2, rows, columns]
 * A batch step of 0 repeats an operand's matrix.
 * int8: zero points -left_offset, -right_offset and output_zero_point; rounding ek_scale.
 * int16: zero points 0, 64-bit sums, rounding ek_requantize_s16 with scales_wide.
 * float32: sums in the order of k, rounded after each operation.
 * Order: outputs in memory order.
 */
#ifndef EK_BATCH_MATMUL_H
#define EK_BATCH_MATMUL_H

#include "ek_accumulator_s16.h"

#define EK_BATCH_MATMUL_PARAMS                                                                 \
    int32_t rows;                                                                              \
    int32_t columns;                                                                           \
    int32_t depth;                                                                             \
    int32_t row_step;                                                                          \
    int32_t left_step;                                                                         \
    int32_t column_step;                                                                       \
    int32_t right_step;                                                                        \
    int32_t batches_0;                                                                         \
    int32_t left_batch_step_0;                                                                 \
    int32_t right_batch_step_0;                                                                \
    int32_t batches_1;                                                                         \
    int32_t left_batch_step_1;                                                                 \
    int32_t right_batch_step_1;                                                                \
    int32_t batches_2;                                                                         \
    int32_t left_batch_step_2;                                                                 \
    int32_t right_batch_step_2;

typedef struct {
    EK_BATCH_MATMUL_PARAMS
    int32_t multiplier;
    int32_t shift;
    int32_t left_offset;
    int32_t right_offset;
    int32_t output_zero_point;
} ek_batch_matmul_s8_params;

typedef struct {
    EK_BATCH_MATMUL_PARAMS
    int32_t multiplier;
    int32_t shift;
} ek_batch_matmul_s16_params;

typedef struct {
    EK_BATCH_MATMUL_PARAMS
} ek_batch_matmul_f32_params;

static EK_INLINE int8_t ek_dot_product_s8(const ek_batch_matmul_s8_params *p, const int8_t *x,
                                          const int8_t *w)
{
    int32_t acc = 0;
    for (int32_t k = 0; k < p->depth; ++k) {
        acc += ((int32_t)x[k * p->left_step] + p->left_offset)
               * ((int32_t)w[k * p->right_step] + p->right_offset);
    }
    return ek_clamp_s8(ek_scale(acc, p->multiplier, p->shift) + p->output_zero_point, -128, 127);
}

static EK_INLINE int16_t ek_dot_product_s16(const ek_batch_matmul_s16_params *p,
                                            const int16_t *x, const int16_t *w)
{
    int64_t acc = 0;
    for (int32_t k = 0; k < p->depth; ++k) {
        acc += (int32_t)x[k * p->left_step] * w[k * p->right_step];
    }
    return ek_requantize_s16(acc, p->multiplier, p->shift, 1, -32768, 32767);
}

static EK_INLINE float ek_dot_product_f32(const ek_batch_matmul_f32_params *p, const float *x,
                                          const float *w)
{
    float acc = 0.0f;
    for (int32_t k = 0; k < p->depth; ++k) {
        acc += x[k * p->left_step] * w[k * p->right_step];
    }
    return acc;
}

#define EK_DEFINE_BATCH_MATMUL(suffix, type)                                                   \
    static EK_INLINE void ek_batch_matmul_##suffix(const ek_batch_matmul_##suffix##_params *p, \
                                                   const type *input_1, const type *input_2,   \
                                                   type *output)                               \
    {                                                                                          \
        for (int32_t i = 0; i < p->batches_0 * p->batches_1 * p->batches_2; ++i) {             \
            const int32_t b0 = i / (p->batches_1 * p->batches_2);                              \
            const int32_t b1 = i / p->batches_2 % p->batches_1;                                \
            const int32_t b2 = i % p->batches_2;                                               \
            const type *x = input_1 + b0 * p->left_batch_step_0 + b1 * p->left_batch_step_1    \
                            + b2 * p->left_batch_step_2;                                       \
            const type *w = input_2 + b0 * p->right_batch_step_0 + b1 * p->right_batch_step_1  \
                            + b2 * p->right_batch_step_2;                                      \
            for (int32_t row = 0; row < p->rows; ++row) {                                      \
                for (int32_t column = 0; column < p->columns; ++column) {                      \
                    *output++ = ek_dot_product_##suffix(p, x + row * p->row_step,              \
                                                        w + column * p->column_step);          \
                }                                                                              \
            }                                                                                  \
        }                                                                                      \
    }

EK_DEFINE_BATCH_MATMUL(s8, int8_t)
EK_DEFINE_BATCH_MATMUL(s16, int16_t)
EK_DEFINE_BATCH_MATMUL(f32, float)

#endif
