/* UNIDIRECTIONAL_SEQUENCE_LSTM, int8 (ek_lstm_s8) and int16 activations (ek_lstm_s16).
 *
 * input          act_t [batches, steps, inputs] (row of batch b and step t: b * batch_step +
 *                t * time_step)
 * input_filter   int8 [4, units, inputs], gates in the order forget, input, cell, output
 * hidden_filter  int8 [4, units, units]
 * input_bias, hidden_bias   bias_t [4, units], less zero_point * sum(filter)
 * output         act_t, rows of units, as the input
 * hidden         act_t [batches, units], state, zero point hidden_zero_point
 * cell           int16 [batches, units], state, scale a power of two, zero point 0
 * sigmoid        the table of ek_sigmoid_s16.h
 * Rounding: both sums of a gate to int16 by themselves, with ek_scale (int8) or
 * ek_requantize_s16 (int16), then added and clamped; products with ek_scale.
 * Order: batch by batch, step by step. All units of a step are computed from the hidden state
 * before it; they are written to the output, and from there copied to the hidden state.
 */
#ifndef EK_LSTM_H
#define EK_LSTM_H

#include "ek_accumulator_s16.h"
#include "ek_sigmoid_s16.h"

static EK_INLINE int32_t ek_clamp_lstm(int32_t value)
{
    return ek_min_s32(ek_max_s32(value, -32768), 32767);
}

/* One sum of a gate, as int16. */
static EK_INLINE int32_t ek_lstm_sum_s8(const int8_t *x, const EK_FLASH int8_t *w,
                                        int32_t length, int32_t bias, int32_t multiplier,
                                        int32_t shift)
{
    return ek_clamp_lstm(ek_scale(ek_dot_s8(x, w, length, bias), multiplier, shift));
}

static EK_INLINE int32_t ek_lstm_sum_s16(const int16_t *x, const EK_FLASH int8_t *w,
                                         int32_t length, int64_t bias, int32_t multiplier,
                                         int32_t shift)
{
    return ek_requantize_s16(ek_dot_s16(x, w, length, 1, bias), multiplier, shift, 1, -32768,
                             32767);
}

#define EK_DEFINE_LSTM(suffix, act_t, bias_t)                                                  \
    typedef struct {                                                                           \
        int32_t batches;                                                                       \
        int32_t steps;                                                                         \
        int32_t inputs;                                                                        \
        int32_t units;                                                                         \
        int32_t batch_step;                                                                    \
        int32_t time_step;                                                                     \
        int32_t forget_multiplier;                                                             \
        int32_t forget_shift;                                                                  \
        int32_t update_multiplier;                                                             \
        int32_t update_shift;                                                                  \
        int32_t result_multiplier;                                                             \
        int32_t result_shift;                                                                  \
        int32_t tanh_multiplier;                                                               \
        int32_t tanh_shift;                                                                    \
        int32_t cell_clip;                                                                     \
        int32_t hidden_zero_point;                                                             \
        int32_t hidden_min;                                                                    \
        int32_t hidden_max;                                                                    \
        const EK_FLASH int8_t *input_filter;                                                   \
        const EK_FLASH bias_t *input_bias;                                                     \
        const EK_FLASH int32_t *input_multiplier;                                              \
        const EK_FLASH int8_t *input_shift;                                                    \
        const EK_FLASH int8_t *hidden_filter;                                                  \
        const EK_FLASH bias_t *hidden_bias;                                                    \
        const EK_FLASH int32_t *hidden_multiplier;                                             \
        const EK_FLASH int8_t *hidden_shift;                                                   \
        const EK_FLASH uint16_t *sigmoid;                                                      \
    } ek_lstm_##suffix##_params;                                                               \
                                                                                               \
    /* A gate before its function, times 3: the argument at the scale of the table. */         \
    static EK_INLINE int32_t ek_lstm_gate_##suffix(const ek_lstm_##suffix##_params *p,         \
                                                   const act_t *x, const act_t *hidden,        \
                                                   int32_t gate, int32_t unit)                 \
    {                                                                                          \
        const int32_t row = gate * p->units + unit;                                            \
        const int32_t from_input = ek_lstm_sum_##suffix(                                       \
            x, p->input_filter + row * p->inputs, p->inputs, p->input_bias[row],               \
            p->input_multiplier[gate], p->input_shift[gate]);                                  \
        const int32_t from_hidden = ek_lstm_sum_##suffix(                                      \
            hidden, p->hidden_filter + row * p->units, p->units, p->hidden_bias[row],          \
            p->hidden_multiplier[gate], p->hidden_shift[gate]);                                \
        return 3 * ek_clamp_lstm(from_input + from_hidden);                                    \
    }                                                                                          \
                                                                                               \
    static EK_INLINE act_t ek_lstm_unit_##suffix(const ek_lstm_##suffix##_params *p,           \
                                                 const act_t *x, const act_t *hidden,          \
                                                 int32_t unit, int16_t *cell)                  \
    {                                                                                          \
        int32_t gates[4];                                                                      \
        for (int32_t gate = 0; gate < 4; ++gate) {                                             \
            const int32_t argument = ek_lstm_gate_##suffix(p, x, hidden, gate, unit);          \
            gates[gate] = gate == 2 ? ek_tanh_of_s16(p->sigmoid, argument)                     \
                                    : ek_logistic_of_s16(p->sigmoid, argument);                \
        }                                                                                      \
        const int32_t kept =                                                                   \
            ek_clamp_lstm(ek_scale(gates[0] * *cell, p->forget_multiplier, p->forget_shift));  \
        const int32_t added = ek_clamp_lstm(                                                   \
            ek_scale(gates[1] * gates[2], p->update_multiplier, p->update_shift));             \
        int32_t sum = ek_clamp_lstm(kept + added);                                             \
        if (p->cell_clip > 0) {                                                                \
            sum = ek_max_s32(ek_min_s32(sum, p->cell_clip), -p->cell_clip);                    \
        }                                                                                      \
        *cell = (int16_t)sum;                                                                  \
        const int32_t rounding = (int32_t)(((uint32_t)1 << p->tanh_shift) >> 1);               \
        const int32_t squashed = ek_tanh_of_s16(                                               \
            p->sigmoid, (sum * p->tanh_multiplier + rounding) >> p->tanh_shift);               \
        const int32_t result =                                                                 \
            ek_scale(squashed * gates[3], p->result_multiplier, p->result_shift)               \
            + p->hidden_zero_point;                                                            \
        return (act_t)ek_min_s32(ek_max_s32(result, p->hidden_min), p->hidden_max);            \
    }                                                                                          \
                                                                                               \
    static EK_INLINE void ek_lstm_##suffix(const ek_lstm_##suffix##_params *p,                 \
                                           const act_t *input, act_t *output, act_t *hidden,   \
                                           int16_t *cell)                                      \
    {                                                                                          \
        for (int32_t batch = 0; batch < p->batches; ++batch) {                                 \
            for (int32_t step = 0; step < p->steps; ++step) {                                  \
                const int32_t row = batch * p->batch_step + step * p->time_step;               \
                act_t *y = output + row * p->units;                                            \
                for (int32_t unit = 0; unit < p->units; ++unit) {                              \
                    y[unit] = ek_lstm_unit_##suffix(p, input + row * p->inputs, hidden, unit,  \
                                                    cell + unit);                              \
                }                                                                              \
                memcpy(hidden, y, (size_t)p->units * sizeof *y);                               \
            }                                                                                  \
            hidden += p->units;                                                                \
            cell += p->units;                                                                  \
        }                                                                                      \
    }

EK_DEFINE_LSTM(s8, int8_t, int32_t)
EK_DEFINE_LSTM(s16, int16_t, int64_t)

#endif
