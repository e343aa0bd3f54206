/* FULLY_CONNECTED of one row, int8, for cores with the DSP extension.
 *
 * input        int8 [depth], depth a multiple of 4
 * filter       two channels to a half, see ek_matmul_dsp.h
 * bias         int32 [channels], less input_zero_point * sum(filter) of the channel
 * right_shift  int8 [channels], in [1, 22]
 * output       int8 [channels]
 * Rounding: ek_requantize_dsp.
 * Order: outputs in memory order, two by two, while the input is still read.
 */
#ifndef EK_VECTOR_DSP_S8_H
#define EK_VECTOR_DSP_S8_H

#include "ek_dsp.h"

typedef struct {
    int32_t depth;
    int32_t channels;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    const uint32_t *filter;
    const int32_t *bias;
    const int32_t *multiplier;
    const int8_t *right_shift;
} ek_vector_dsp_s8_params;

static EK_INLINE void ek_vector_dsp_s8(const ek_vector_dsp_s8_params *p, const int8_t *input,
                                       int8_t *output)
{
    const uint32_t *w = p->filter;
    for (int32_t c = 0; c < p->channels; c += 2) {
        const int8_t *x = input;
        const int8_t *const end = input + p->depth;
        int32_t both = 0;
        int32_t low = 0;
        do {
            const uint32_t word = ek_load_word(x);
            const uint32_t x_even = ek_even_bytes(word);
            const uint32_t x_odd = ek_odd_bytes(word);
            both = ek_smlad(x_even, w[0], both);
            low = ek_smlad(x_even, ek_even_bytes(w[0]), low);
            both = ek_smlad(x_odd, w[1], both);
            low = ek_smlad(x_odd, ek_even_bytes(w[1]), low);
            x += 4;
            w += 2;
        } while (x != end);
        output[c] =
            ek_requantize_dsp(low + p->bias[c], p->multiplier[c], p->right_shift[c],
                              p->output_zero_point, p->activation_min, p->activation_max);
        if (c + 1 < p->channels) {
            output[c + 1] = ek_requantize_dsp(
                ((both - low) >> 8) + p->bias[c + 1], p->multiplier[c + 1], p->right_shift[c + 1],
                p->output_zero_point, p->activation_min, p->activation_max);
        }
    }
}

#endif
