/* LOG_SOFTMAX, int8, over the last dimension.
 *
 * input    int8 [rows, depth]
 * output   int8 [rows, depth], scale 1/16, zero point 127
 * exp, the logarithm and the reciprocal are gemmlowp's and TensorFlow Lite's fixed-point
 * functions. A name such as x_q5 means a value with 5 integer bits: the int32 stands for
 * x / 2^(31 - 5).
 * Order: rows in memory order; a row is read twice before its first output is written, and
 * once more while it is written (element i is written after it was read): may be in place.
 */
#ifndef EK_LOG_SOFTMAX_S8_H
#define EK_LOG_SOFTMAX_S8_H

#include "ek_softmax_s8.h"

typedef struct {
    int32_t rows;
    int32_t depth;
    int32_t multiplier;
    int32_t shift;
    int32_t diff_min;
    int32_t reverse_multiplier;
    int32_t reverse_shift;
} ek_log_softmax_s8_params;

/* x * 2^bits, at most INT32_MAX, for x >= 0. */
static EK_INLINE int32_t ek_saturating_shift_left(int32_t x, int32_t bits)
{
    return x > (INT32_MAX >> bits) ? INT32_MAX : ek_shift_left(x, bits);
}

/* ln(x) in Q5 for x >= 1 in Q12: x = 2^power * r^2 with r^2 near the root of 1/2, and a
 * quotient of polynomials in r. */
static EK_INLINE int32_t ek_log_q5_of_q12(int32_t x_q12)
{
    const int32_t sqrt_half = 1518500250;
    const int32_t root_4_half = 1805811301;
    const int32_t quarter_q6 = (int32_t)1 << 23;
    const int32_t zeros_a = ek_leading_zeros((uint32_t)x_q12);
    const int32_t r_a = ek_saturating_shift_left(
        ek_doubling_high_mul(ek_shift_left(x_q12, zeros_a - 1), sqrt_half), 1);
    const int32_t power_a_q6 = (12 - zeros_a) * ((int32_t)1 << 25) + quarter_q6;
    const int32_t zeros_b =
        ek_leading_zeros((uint32_t)ek_doubling_high_mul(x_q12, sqrt_half)) - 1;
    const int32_t r_b = ek_saturating_shift_left(x_q12, zeros_b);
    const int32_t power_b_q6 = (12 - zeros_b) * ((int32_t)1 << 25) - quarter_q6;
    const int32_t r = ek_min_s32(r_a, r_b);
    const int32_t power_q6 = ek_max_s32(power_a_q6, power_b_q6);

    const int32_t p = (int32_t)(((int64_t)r + root_4_half + 1) >> 1);
    const int32_t q = 2 * (r - root_4_half);
    const int32_t q2 = ek_doubling_high_mul(q, q);
    const int32_t numerator =
        ek_doubling_high_mul(q, r) +
        ek_doubling_high_mul(ek_doubling_high_mul(q, q2), 117049297);
    const int32_t inner = 1057819769 + q + ek_doubling_high_mul(127690142, q2);
    const int32_t denominator_minus_one =
        ek_doubling_high_mul(p, inner) + ek_doubling_high_mul(638450708, q);
    const int32_t quotient_q6 =
        ek_doubling_high_mul(ek_rounding_divide_by_pot(numerator, 6),
                             ek_one_over_one_plus_q0(denominator_minus_one));
    const int32_t result_q6 = ek_doubling_high_mul(power_q6, 1488522236) + quotient_q6;
    return result_q6 * 2;
}

static EK_INLINE int32_t ek_log_softmax_scaled(const ek_log_softmax_s8_params *p,
                                               int32_t difference)
{
    return ek_scale(difference, p->multiplier, p->shift);
}

static EK_INLINE void ek_log_softmax_s8(const ek_log_softmax_s8_params *p, const int8_t *input,
                                        int8_t *output)
{
    for (int32_t row = 0; row < p->rows; ++row) {
        int32_t largest = INT8_MIN;
        int32_t sum_q12 = 0;
        for (int32_t i = 0; i < p->depth; ++i) {
            largest = ek_max_s32(largest, input[i]);
        }
        for (int32_t i = 0; i < p->depth; ++i) {
            const int32_t difference = input[i] - largest;
            if (difference >= p->diff_min) {
                const int32_t power_q0 =
                    ek_exp_of_negative_q5(ek_log_softmax_scaled(p, difference));
                sum_q12 += ek_rounding_divide_by_pot(power_q0, 12);
            }
        }
        {
            const int32_t log_sum_q5 = ek_log_q5_of_q12(sum_q12);
            const int32_t smallest = ek_scale_down(INT32_MIN + log_sum_q5, p->reverse_multiplier,
                                                   p->reverse_shift);
            const int32_t limit = ek_max_s32(p->diff_min - 1, smallest);
            for (int32_t i = 0; i < p->depth; ++i) {
                const int32_t difference = input[i] - largest;
                int32_t result = INT8_MIN;
                if (difference > limit) {
                    const int32_t log_q5 = ek_log_softmax_scaled(p, difference) - log_sum_q5;
                    result = 127 + ek_rounding_divide_by_pot(log_q5, 22);
                }
                output[i] = ek_clamp_s8(result, INT8_MIN, INT8_MAX);
            }
        }
        input += p->depth;
        output += p->depth;
    }
}

#endif
