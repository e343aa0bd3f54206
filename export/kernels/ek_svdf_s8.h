/* SVDF, int8, with a state and a time filter of int8 (ek_svdf_s8_s8) or int16 (ek_svdf_s8_s16).
 *
 * input    int8 [batches, inputs]
 * feature  int8 [units * rank, inputs], zero point 0
 * feature_bias  int32 [units * rank], less input_zero_point * sum(feature) of the filter
 * time     state_t [units * rank, memory], zero point 0
 * bias     int32 [units]
 * output   int8 [batches, units]
 * state    state_t [batches, units * rank, memory], the newest value last
 * Rounding: ek_scale, of the products with the features (then clamped, then the state's zero
 * point is added in the state's type) and of the sums.
 * Order: units in memory order; each is written after the input was read for it. The state of
 * a filter moves by one place before its newest value is written.
 */
#ifndef EK_SVDF_S8_H
#define EK_SVDF_S8_H

#include "ek_common.h"

#define EK_DEFINE_SVDF_S8(suffix, state_t)                                                     \
    typedef struct {                                                                           \
        int32_t batches;                                                                       \
        int32_t inputs;                                                                        \
        int32_t units;                                                                         \
        int32_t rank;                                                                          \
        int32_t memory;                                                                        \
        int32_t state_zero_point;                                                              \
        int32_t state_min;                                                                     \
        int32_t state_max;                                                                     \
        int32_t state_multiplier;                                                              \
        int32_t state_shift;                                                                   \
        int32_t output_multiplier;                                                             \
        int32_t output_shift;                                                                  \
        int32_t output_zero_point;                                                             \
        const EK_FLASH int8_t *feature;                                                        \
        const EK_FLASH int32_t *feature_bias;                                                  \
        const EK_FLASH state_t *time;                                                          \
        const EK_FLASH int32_t *bias;                                                          \
    } ek_svdf_s8_##suffix##_params;                                                            \
                                                                                               \
    static EK_INLINE void ek_svdf_s8_##suffix(const ek_svdf_s8_##suffix##_params *p,           \
                                              const int8_t *input, int8_t *output,             \
                                              state_t *state)                                  \
    {                                                                                          \
        for (int32_t batch = 0; batch < p->batches; ++batch) {                                 \
            const EK_FLASH int8_t *feature = p->feature;                                       \
            const EK_FLASH int32_t *feature_bias = p->feature_bias;                            \
            const EK_FLASH state_t *time = p->time;                                            \
            for (int32_t unit = 0; unit < p->units; ++unit) {                                  \
                int32_t acc = p->bias[unit];                                                   \
                for (int32_t factor = 0; factor < p->rank; ++factor) {                         \
                    const int32_t newest =                                                     \
                        ek_scale(ek_dot_s8(input, feature, p->inputs, *feature_bias++),        \
                                 p->state_multiplier, p->state_shift);                         \
                    const int32_t kept =                                                       \
                        ek_min_s32(ek_max_s32(newest, p->state_min), p->state_max);            \
                    for (int32_t step = 1; step < p->memory; ++step) {                         \
                        state[step - 1] = state[step];                                         \
                        acc += ((int32_t)state[step] - p->state_zero_point) * time[step - 1];  \
                    }                                                                          \
                    state[p->memory - 1] = (state_t)(kept + p->state_zero_point);              \
                    acc += ((int32_t)state[p->memory - 1] - p->state_zero_point)               \
                           * time[p->memory - 1];                                              \
                    feature += p->inputs;                                                      \
                    time += p->memory;                                                         \
                    state += p->memory;                                                        \
                }                                                                              \
                *output++ = ek_clamp_s8(                                                       \
                    ek_scale(acc, p->output_multiplier, p->output_shift)                       \
                        + p->output_zero_point,                                                \
                    -128, 127);                                                                \
            }                                                                                  \
            input += p->inputs;                                                                \
        }                                                                                      \
    }

EK_DEFINE_SVDF_S8(s8, int8_t)
EK_DEFINE_SVDF_S8(s16, int16_t)

#endif
