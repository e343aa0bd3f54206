/* SOFTMAX, float32, over the last dimension.
 *
 * input    float [rows, depth]
 * output   float [rows, depth]
 * Order: rows in memory order; a row is read once for its largest element; then element i is
 * read and its exponential written, and read and written again: may be in place.
 */
#ifndef EK_SOFTMAX_F32_H
#define EK_SOFTMAX_F32_H

#include "ek_math_f32.h"

typedef struct {
    int32_t rows;
    int32_t depth;
    float beta;
} ek_softmax_f32_params;

static EK_INLINE void ek_softmax_f32(const ek_softmax_f32_params *p, const float *input,
                                     float *output)
{
    for (int32_t row = 0; row < p->rows; ++row) {
        float largest = input[0];
        float sum = 0.0f;
        for (int32_t i = 1; i < p->depth; ++i) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < p->depth; ++i) {
            const float power = ek_exp_of_f32((input[i] - largest) * p->beta);
            output[i] = power;
            sum += power;
        }
        for (int32_t i = 0; i < p->depth; ++i) {
            output[i] = output[i] / sum;
        }
        input += p->depth;
        output += p->depth;
    }
}

#endif
