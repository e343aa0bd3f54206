/* SOFTMAX, int16, over the last dimension, by interpolation in tables.
 *
 * input              int16 [rows, depth], zero point 0
 * exp_table          int16 [513], exp over [-10, 0] in Q15
 * reciprocal_table   int16 [513], 1 / (1 + x) over [0, 1] in Q15
 * output             int16 [rows, depth], scale 1/32768, zero point 0
 * Rounding: halves up.
 * Order: rows in memory order; a row is read once for its largest element; then element i is
 * read and its exponential written, and read and written again: may be in place.
 */
#ifndef EK_SOFTMAX_S16_H
#define EK_SOFTMAX_S16_H

#include "ek_common.h"

typedef struct {
    int32_t rows;
    int32_t depth;
    int32_t multiplier;
    int32_t shift;
    const EK_FLASH int16_t *exp_table;
    const EK_FLASH int16_t *reciprocal_table;
} ek_softmax_s16_params;

/* Between the two nearest of 513 entries, for x in [-32768, 32767]. */
static EK_INLINE int32_t ek_look_up_s16(const EK_FLASH int16_t *table, int32_t x)
{
    const int32_t index = 256 + (x >> 7);
    const int32_t slope = (int32_t)table[index + 1] - table[index];
    return table[index] + ((slope * (x & 127) + 64) >> 7);
}

/* Significant bits of a positive number. */
static EK_INLINE int32_t ek_bit_length(int32_t x)
{
    int32_t bits = 0;
    for (; x > 0; x >>= 1) {
        ++bits;
    }
    return bits;
}

static EK_INLINE void ek_softmax_s16(const ek_softmax_s16_params *p, const int16_t *input,
                                     int16_t *output)
{
    for (int32_t row = 0; row < p->rows; ++row) {
        int32_t largest = INT16_MIN;
        int32_t sum_q15 = 0;
        for (int32_t i = 0; i < p->depth; ++i) {
            largest = ek_max_s32(largest, input[i]);
        }
        for (int32_t i = 0; i < p->depth; ++i) {
            const int32_t scaled = ek_scale(input[i] - largest, p->multiplier, p->shift);
            const int32_t x = ek_max_s32(scaled, -65535) + 32767;
            const int32_t power = ek_look_up_s16(p->exp_table, x);
            output[i] = (int16_t)power;
            sum_q15 += power;
        }
        {
            /* sum = (1 + x) * 2^(bits - 16) in Q15, x in [0, 1) */
            const int32_t bits = ek_bit_length(sum_q15);
            const int64_t mantissa = (((int64_t)sum_q15 << (31 - bits)) + ((int32_t)1 << 13)) >> 14;
            const int32_t x = (int32_t)mantissa - ((int32_t)1 << 15) - ((int32_t)1 << 16);
            const int32_t factor = ek_look_up_s16(p->reciprocal_table, ek_min_s32(x, INT16_MAX));
            const int32_t shift = bits - 1;
            for (int32_t i = 0; i < p->depth; ++i) {
                const int64_t product =
                    (int64_t)output[i] * factor + ((int64_t)1 << (shift - 1));
                output[i] = ek_clamp_s16((int32_t)(product >> shift), 0, INT16_MAX);
            }
        }
        input += p->depth;
        output += p->depth;
    }
}

#endif
