/* LOG_SOFTMAX, float32, over the last dimension.
 *
 * input    float [rows, depth]
 * output   float [rows, depth]
 * Order: rows in memory order; a row is read twice before its first output is written, and
 * once more while it is written (element i is written after it was read): may be in place.
 */
#ifndef EK_LOG_SOFTMAX_F32_H
#define EK_LOG_SOFTMAX_F32_H

#include "ek_math_f32.h"

typedef struct {
    int32_t rows;
    int32_t depth;
} ek_log_softmax_f32_params;

static EK_INLINE void ek_log_softmax_f32(const ek_log_softmax_f32_params *p, const float *input,
                                         float *output)
{
    for (int32_t row = 0; row < p->rows; ++row) {
        float largest = input[0];
        float sum = 0.0f;
        for (int32_t i = 1; i < p->depth; ++i) {
            largest = input[i] > largest ? input[i] : largest;
        }
        for (int32_t i = 0; i < p->depth; ++i) {
            sum += ek_exp_of_f32(input[i] - largest);
        }
        {
            const float log_sum = ek_log_of_f32(sum);
            for (int32_t i = 0; i < p->depth; ++i) {
                output[i] = input[i] - largest - log_sum;
            }
        }
        input += p->depth;
        output += p->depth;
    }
}

#endif
