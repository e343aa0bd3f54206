/* The inner product of the DSP kernels: two rows of inputs with two channels of weights.
 *
 * Inputs are widened: for every four of a row, the word of elements 0 and 2 and the word of
 * elements 1 and 3, as halves. Two rows are interleaved: rows[4i .. 4i+3] are the words of
 * row 0 and then of row 1 for the inputs 4i .. 4i+3.
 *
 * Weights of two channels share a half: 256 * w1 + w0, in the order of the inputs. One
 * multiplication by it gives 256 * S1 + S0, one by its low byte alone S0, and the difference
 * S1. The weights take as many bytes as before, and four products one instruction and a half.
 * Whoever packs them proves that 256 * S1 + S0 fits 32 bits for any input.
 */
#ifndef EK_MATMUL_DSP_H
#define EK_MATMUL_DSP_H

#include "ek_dsp.h"

/* Sums of one channel pair with two rows. */
typedef struct {
    int32_t row_0_channel_0;
    int32_t row_0_channel_1;
    int32_t row_1_channel_0;
    int32_t row_1_channel_1;
} ek_matmul_sums;

static EK_INLINE ek_matmul_sums ek_matmul_dsp(const uint32_t *rows, const uint32_t *weights,
                                              int32_t depth)
{
    const uint32_t *const end = weights + depth / 2;
    int32_t both_0 = 0;
    int32_t both_1 = 0;
    int32_t low_0 = 0;
    int32_t low_1 = 0;
    ek_matmul_sums sums;
    do {
        const uint32_t x0_even = rows[0];
        const uint32_t x0_odd = rows[1];
        const uint32_t x1_even = rows[2];
        const uint32_t x1_odd = rows[3];
        uint32_t w_even = weights[0];
        uint32_t w_odd = weights[1];
        rows += 4;
        weights += 2;
        both_0 = ek_smlad(x0_even, w_even, both_0);
        both_1 = ek_smlad(x1_even, w_even, both_1);
        w_even = ek_even_bytes(w_even);
        low_0 = ek_smlad(x0_even, w_even, low_0);
        low_1 = ek_smlad(x1_even, w_even, low_1);
        both_0 = ek_smlad(x0_odd, w_odd, both_0);
        both_1 = ek_smlad(x1_odd, w_odd, both_1);
        w_odd = ek_even_bytes(w_odd);
        low_0 = ek_smlad(x0_odd, w_odd, low_0);
        low_1 = ek_smlad(x1_odd, w_odd, low_1);
    } while (weights != end);
    sums.row_0_channel_0 = low_0;
    sums.row_0_channel_1 = (both_0 - low_0) >> 8;
    sums.row_1_channel_0 = low_1;
    sums.row_1_channel_1 = (both_1 - low_1) >> 8;
    return sums;
}

/* Widens `length` inputs (a multiple of 4) of one row; `rows` points to the row's first word.
 * Returns where the row goes on. */
static EK_INLINE uint32_t *ek_widen_row(uint32_t *rows, const int8_t *input, int32_t length)
{
    const int8_t *const end = input + length;
    while (input != end) {
        const uint32_t word = ek_load_word(input);
        rows[0] = ek_even_bytes(word);
        rows[1] = ek_odd_bytes(word);
        rows += 4;
        input += 4;
    }
    return rows;
}

/* Fills `length` inputs (a multiple of 4) of one row with one value, given twice as halves. */
static EK_INLINE uint32_t *ek_fill_row(uint32_t *rows, uint32_t value, int32_t length)
{
    for (int32_t i = 0; i < length; i += 4) {
        rows[0] = value;
        rows[1] = value;
        rows += 4;
    }
    return rows;
}

/* Multiplies two widened rows with all channels and writes their outputs; the second row's
 * only where `second` is 1. depth counts the inputs of a row (a multiple of 4); filter holds
 * depth / 2 words for each pair of channels. */
static EK_INLINE void ek_matmul_dsp_write(const uint32_t *rows, int32_t depth, int32_t channels,
                                          const uint32_t *filter, const int32_t *bias,
                                          const int32_t *multiplier, const int8_t *right_shift,
                                          int32_t zero_point, int32_t low, int32_t high,
                                          int8_t *output, int32_t second)
{
    int8_t *y0 = output;
    int8_t *y1 = output + (second ? channels : 0);
    for (int32_t c = 0; c < channels; c += 2) {
        const ek_matmul_sums sums = ek_matmul_dsp(rows, filter, depth);
        /* Row 1 first: where there is none, row 0 overwrites what it left. */
        y1[c] = ek_requantize_dsp(sums.row_1_channel_0 + bias[c], multiplier[c], right_shift[c],
                                  zero_point, low, high);
        y0[c] = ek_requantize_dsp(sums.row_0_channel_0 + bias[c], multiplier[c], right_shift[c],
                                  zero_point, low, high);
        if (c + 1 < channels) {
            y1[c + 1] = ek_requantize_dsp(sums.row_1_channel_1 + bias[c + 1], multiplier[c + 1],
                                          right_shift[c + 1], zero_point, low, high);
            y0[c + 1] = ek_requantize_dsp(sums.row_0_channel_1 + bias[c + 1], multiplier[c + 1],
                                          right_shift[c + 1], zero_point, low, high);
        }
        filter += depth / 2;
    }
}

#endif
