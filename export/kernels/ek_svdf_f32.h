/* SVDF, float32.
 *
 * input    float32 [batches, inputs]
 * feature  float32 [units * rank, inputs]
 * time     float32 [units * rank, memory]
 * bias     float32 [units]
 * output   float32 [batches, units]
 * state    float32 [batches, units * rank, memory], the newest value last
 * Rounding: after each operation; sums in the order of their terms, the bias first in a unit's.
 * Order: as in ek_svdf_s8.
 */
#ifndef EK_SVDF_F32_H
#define EK_SVDF_F32_H

#include "ek_accumulator_f32.h"

typedef struct {
    int32_t batches;
    int32_t inputs;
    int32_t units;
    int32_t rank;
    int32_t memory;
    float activation_min;
    float activation_max;
    const EK_FLASH float *feature;
    const EK_FLASH float *time;
    const EK_FLASH float *bias;
} ek_svdf_f32_params;

static EK_INLINE void ek_svdf_f32(const ek_svdf_f32_params *p, const float *input, float *output,
                                  float *state)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        const float *feature = p->feature;
        const float *time = p->time;
        for (int32_t unit = 0; unit < p->units; ++unit) {
            float acc = p->bias[unit];
            for (int32_t factor = 0; factor < p->rank; ++factor) {
                for (int32_t step = 1; step < p->memory; ++step) {
                    state[step - 1] = state[step];
                }
                state[p->memory - 1] = ek_dot_f32(feature, input, p->inputs, 0.0f);
                acc += ek_dot_f32(time, state, p->memory, 0.0f);
                feature += p->inputs;
                time += p->memory;
                state += p->memory;
            }
            *output++ = ek_activate_f32(acc, p->activation_min, p->activation_max);
        }
        input += p->inputs;
    }
}

#endif
