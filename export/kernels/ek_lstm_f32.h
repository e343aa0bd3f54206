/* UNIDIRECTIONAL_SEQUENCE_LSTM, float32.
 *
 * input          float32 [batches, steps, inputs] (row of batch b and step t: b * batch_step +
 *                t * time_step)
 * input_filter   float32 [4, units, inputs], gates in the order forget, input, cell, output
 * hidden_filter  float32 [4, units, units]
 * bias           float32 [4, units]
 * output         float32, rows of units, as the input
 * hidden, cell   float32 [batches, units], states
 * A cell_clip of 0 is none. Rounding: after each operation; sums in the order of their terms.
 * Order: as in ek_lstm.
 */
#ifndef EK_LSTM_F32_H
#define EK_LSTM_F32_H

#include "ek_accumulator_f32.h"
#include "ek_math_f32.h"

typedef struct {
    int32_t batches;
    int32_t steps;
    int32_t inputs;
    int32_t units;
    int32_t batch_step;
    int32_t time_step;
    float cell_clip;
    const EK_FLASH float *input_filter;
    const EK_FLASH float *hidden_filter;
    const EK_FLASH float *bias;
} ek_lstm_f32_params;

static EK_INLINE float ek_lstm_unit_f32(const ek_lstm_f32_params *p, const float *x,
                                        const float *hidden, int32_t unit, float *cell)
{
    float gates[4];
    for (int32_t gate = 0; gate < 4; ++gate) {
        const int32_t row = gate * p->units + unit;
        const float from_input =
            ek_dot_f32(x, p->input_filter + row * p->inputs, p->inputs, 0.0f) + p->bias[row];
        const float from_hidden =
            ek_dot_f32(hidden, p->hidden_filter + row * p->units, p->units, 0.0f);
        const float argument = from_input + from_hidden;
        gates[gate] = gate == 2 ? ek_tanh_of_f32(argument) : ek_logistic_of_f32(argument);
    }
    const float kept = gates[0] * *cell;
    const float added = gates[1] * gates[2];
    const float sum = kept + added;
    *cell = p->cell_clip > 0.0f ? ek_activate_f32(sum, -p->cell_clip, p->cell_clip) : sum;
    return gates[3] * ek_tanh_of_f32(*cell);
}

static EK_INLINE void ek_lstm_f32(const ek_lstm_f32_params *p, const float *input, float *output,
                                  float *hidden, float *cell)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t step = 0; step < p->steps; ++step) {
            const int32_t row = batch * p->batch_step + step * p->time_step;
            float *y = output + row * p->units;
            for (int32_t unit = 0; unit < p->units; ++unit) {
                y[unit] = ek_lstm_unit_f32(p, input + row * p->inputs, hidden, unit, cell + unit);
            }
            memcpy(hidden, y, (size_t)p->units * sizeof *y);
        }
        hidden += p->units;
        cell += p->units;
    }
}

#endif
