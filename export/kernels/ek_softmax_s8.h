/* SOFTMAX, int8 to int8 or int16, over the last dimension.
 *
 * input    int8 [rows, depth]
 * output   int8 [rows, depth], scale 1/256, zero point -128, or
 *          int16 [rows, depth], scale 1/65536, zero point -32768
 * exp and the reciprocal are gemmlowp's fixed-point functions. A name such as x_q5 means a
 * value with 5 integer bits: the int32 stands for x / 2^(31 - 5).
 * Order: rows in memory order; a row is read twice before its first output is written, and
 * once more while it is written (element i is written after it was read): may be in place.
 */
#ifndef EK_SOFTMAX_S8_H
#define EK_SOFTMAX_S8_H

#include "ek_common.h"

typedef struct {
    int32_t rows;
    int32_t depth;
    int32_t multiplier;
    int32_t shift;
    int32_t diff_min;
} ek_softmax_s8_params;

/* exp(x) in Q0 for x <= 0 in Q5. */
static EK_INLINE int32_t ek_exp_of_negative_q5(int32_t x_q5)
{
    /* exp(-2^(i - 2)) in Q0 */
    static const EK_FLASH int32_t factors[7] = {1672461947, 1302514674, 790015084, 290630308,
                                                39332535,   720401,     242};
    const int32_t quarter = (int32_t)1 << 24;
    const int32_t exp_minus_eighth = 1895147668;
    const int32_t third = 715827883;
    const int32_t reduced = (x_q5 & (quarter - 1)) - quarter;
    const int32_t remainder = reduced - x_q5;
    /* Taylor series around -1/8 on [-1/4, 0), in Q0 */
    const int32_t x = reduced * (1 << 5) + ((int32_t)1 << 28);
    const int32_t x2 = ek_doubling_high_mul(x, x);
    const int32_t x3 = ek_doubling_high_mul(x2, x);
    const int32_t x4 = ek_doubling_high_mul(x2, x2);
    const int32_t cubic = ek_doubling_high_mul(ek_rounding_divide_by_pot(x4, 2) + x3, third);
    const int32_t tail = ek_rounding_divide_by_pot(cubic + x2, 1);
    int32_t result = exp_minus_eighth + ek_doubling_high_mul(x + tail, exp_minus_eighth);
    if (x_q5 == 0) {
        return INT32_MAX;
    }
    for (int32_t i = 0; i < 7; ++i) {
        if (remainder & ((int32_t)1 << (24 + i))) {
            result = ek_doubling_high_mul(result, factors[i]);
        }
    }
    return result;
}

/* 1 / (1 + a) in Q0 for a in [0, 1] in Q0, by three Newton-Raphson steps. */
static EK_INLINE int32_t ek_one_over_one_plus_q0(int32_t a)
{
    const int32_t half_denominator = (int32_t)(((uint32_t)a + (uint32_t)INT32_MAX + 1u) >> 1);
    int32_t x_q2 = 1515870810 + ek_doubling_high_mul(half_denominator, -1010580540);
    for (int32_t i = 0; i < 3; ++i) {
        const int32_t error_q2 = ((int32_t)1 << 29) - ek_doubling_high_mul(half_denominator, x_q2);
        x_q2 += ek_doubling_high_mul(x_q2, error_q2) * (1 << 2);
    }
    return x_q2 > ((int32_t)1 << 30) - 1 ? INT32_MAX : x_q2 * (1 << 1);
}

static EK_INLINE int32_t ek_leading_zeros(uint32_t x)
{
#if defined(__GNUC__) && __SIZEOF_INT__ == 4
    return __builtin_clz(x);
#elif defined(__GNUC__) && __SIZEOF_LONG__ == 4
    return __builtin_clzl(x);
#else
    int32_t zeros = 0;
    while ((x & 0x80000000u) == 0) {
        x <<= 1;
        ++zeros;
    }
    return zeros;
#endif
}

static EK_INLINE int32_t ek_softmax_exp(const ek_softmax_s8_params *p, int32_t difference)
{
    return ek_exp_of_negative_q5(
        ek_doubling_high_mul(ek_shift_left(difference, p->shift), p->multiplier));
}

/* What a row's elements are compared with and multiplied by. */
typedef struct {
    int32_t largest;
    int32_t scale_q0;
    int32_t bits;
} ek_softmax_row;

static EK_INLINE ek_softmax_row ek_softmax_sum(const ek_softmax_s8_params *p,
                                               const int8_t *input)
{
    ek_softmax_row row;
    int32_t sum_q12 = 0;
    row.largest = INT8_MIN;
    for (int32_t i = 0; i < p->depth; ++i) {
        row.largest = ek_max_s32(row.largest, input[i]);
    }
    for (int32_t i = 0; i < p->depth; ++i) {
        const int32_t difference = input[i] - row.largest;
        if (difference >= p->diff_min) {
            sum_q12 += ek_rounding_divide_by_pot(ek_softmax_exp(p, difference), 12);
        }
    }
    {
        const int32_t zeros = ek_leading_zeros((uint32_t)sum_q12);
        row.scale_q0 = ek_one_over_one_plus_q0(
            (int32_t)(((uint32_t)sum_q12 << zeros) - ((uint32_t)1 << 31)));
        row.bits = 12 - zeros;
    }
    return row;
}

/* One output, of so many bits. */
static EK_INLINE int32_t ek_softmax_one(const ek_softmax_s8_params *p, const ek_softmax_row *row,
                                        int32_t input, int32_t output_bits)
{
    const int32_t low = -((int32_t)1 << (output_bits - 1));
    const int32_t difference = input - row->largest;
    if (difference < p->diff_min) {
        return low;
    }
    {
        const int32_t product =
            ek_doubling_high_mul(row->scale_q0, ek_softmax_exp(p, difference));
        const int32_t exponent = row->bits + 31 - output_bits;
        return ek_min_s32(low + ek_rounding_divide_by_pot(product, exponent), -low - 1);
    }
}

static EK_INLINE void ek_softmax_s8(const ek_softmax_s8_params *p, const int8_t *input,
                                    int8_t *output)
{
    for (int32_t n = 0; n < p->rows; ++n) {
        const ek_softmax_row row = ek_softmax_sum(p, input);
        for (int32_t i = 0; i < p->depth; ++i) {
            output[i] = (int8_t)ek_softmax_one(p, &row, input[i], 8);
        }
        input += p->depth;
        output += p->depth;
    }
}

typedef ek_softmax_s8_params ek_softmax_s8_s16_params;

static EK_INLINE void ek_softmax_s8_s16(const ek_softmax_s8_params *p, const int8_t *input,
                                        int16_t *output)
{
    for (int32_t n = 0; n < p->rows; ++n) {
        const ek_softmax_row row = ek_softmax_sum(p, input);
        for (int32_t i = 0; i < p->depth; ++i) {
            output[i] = (int16_t)ek_softmax_one(p, &row, input[i], 16);
        }
        input += p->depth;
        output += p->depth;
    }
}

#endif
