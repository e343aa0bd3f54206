/* exp, log, tanh, square roots and roundings of float32, without a library of functions.
 *
 * Additions, multiplications and divisions of float32 alone: all targets give the same bits.
 * The error is at most 4 units in the last place.
 */
#ifndef EK_MATH_F32_H
#define EK_MATH_F32_H

#include "ek_common.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

static EK_INLINE uint32_t ek_bits_of_f32(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static EK_INLINE float ek_f32_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 2^n for n in [-126, 127]. */
static EK_INLINE float ek_power_of_two_f32(int32_t n)
{
    return ek_f32_of_bits((uint32_t)(n + 127) << 23);
}

static EK_INLINE float ek_abs_of_f32(float x)
{
    return ek_f32_of_bits(ek_bits_of_f32(x) & 0x7FFFFFFFu);
}

static EK_INLINE int32_t ek_is_infinite_f32(float x)
{
    return (ek_bits_of_f32(x) & 0x7FFFFFFFu) == 0x7F800000u ? 1 : 0;
}

/* The next smaller integer. From 2^23 on all numbers are integers. */
static EK_INLINE float ek_floor_of_f32(float x)
{
    if (!(ek_abs_of_f32(x) < 8388608.0f)) {
        return x;
    }
    {
        const float whole = (float)(int32_t)x;
        return whole > x ? whole - 1.0f : (x == 0.0f ? x : whole);
    }
}

/* The nearest integer, halves to even: adding 2^23 leaves no bits for a fraction. */
static EK_INLINE float ek_round_of_f32(float x)
{
    const float size = ek_abs_of_f32(x);
    if (!(size < 8388608.0f)) {
        return x;
    }
    {
        const float rounded = (size + 8388608.0f) - 8388608.0f;
        return x < 0.0f ? -rounded : (x == 0.0f ? x : rounded);
    }
}

/* exp(r) - 1 for |r| < 0.35: the Taylor series to the seventh power. */
static EK_INLINE float ek_expm1_near_zero_f32(float r)
{
    float tail = 1.98412701e-04f;
    tail = tail * r + 1.38888892e-03f;
    tail = tail * r + 8.33333377e-03f;
    tail = tail * r + 4.16666679e-02f;
    tail = tail * r + 1.66666672e-01f;
    tail = tail * r + 5.00000000e-01f;
    return tail * (r * r) + r;
}

/* x = r + n * ln 2 with |r| at most ln 2 / 2; ln 2 in two parts. */
static EK_INLINE float ek_exp_of_f32(float x)
{
    const float bounded = x > -104.0f ? (x < 89.0f ? x : 89.0f) : -104.0f;
    const float scaled = bounded * 1.44269502e+00f + 0.5f;
    const int32_t towards_zero = (int32_t)scaled;
    const int32_t n = towards_zero - (scaled < (float)towards_zero ? 1 : 0);
    const float r = bounded - (float)n * 6.93359375e-01f - (float)n * -2.12194442e-04f;
    const float power = ek_expm1_near_zero_f32(r) + 1.0f;
    const int32_t half = n >> 1;
    if (x != x) {
        return x;
    }
    return power * ek_power_of_two_f32(half) * ek_power_of_two_f32(n - half);
}

/* exp(x) - 1 */
static EK_INLINE float ek_expm1_of_f32(float x)
{
    return ek_abs_of_f32(x) < 0.25f ? ek_expm1_near_zero_f32(x) : ek_exp_of_f32(x) - 1.0f;
}

/* ln(x), from x = m * 2^e with m near 1, and ln(m) = 2 * atanh((m - 1) / (m + 1)). */
static EK_INLINE float ek_log_of_f32(float x)
{
    if (!(x > 0.0f)) {
        return x == 0.0f ? -1.0f / ek_abs_of_f32(x) : ek_f32_of_bits(0x7FC00000u);
    }
    if (ek_is_infinite_f32(x)) {
        return x;
    }
    {
        const int32_t tiny = x < 1.17549435e-38f ? 1 : 0;
        const uint32_t bits = ek_bits_of_f32(tiny ? x * 16777216.0f : x);
        const int32_t exponent = (int32_t)(bits >> 23) - 126 - (tiny ? 24 : 0);
        const float fraction = ek_f32_of_bits((bits & 0x007FFFFFu) | 0x3F000000u);
        const int32_t small = fraction < 7.07106769e-01f ? 1 : 0;
        const float m = small ? fraction * 2.0f : fraction;
        const float e = (float)(exponent - small);
        const float s = (m - 1.0f) / (m + 1.0f);
        const float z = s * s;
        float tail = 2.22222224e-01f;
        tail = tail * z + 2.85714298e-01f;
        tail = tail * z + 4.00000006e-01f;
        tail = tail * z + 6.66666687e-01f;
        return e * 6.93359375e-01f + (e * -2.12194442e-04f + (tail * z * s + 2.0f * s));
    }
}

/* Near 0 a quotient of polynomials (Pade), beyond by exp. */
static EK_INLINE float ek_tanh_of_f32(float x)
{
    const float size = ek_abs_of_f32(x);
    if (x != x) {
        return x;
    }
    if (size < 0.625f) {
        const float z = x * x;
        return x * ((z + 105.0f) * z + 945.0f) / ((15.0f * z + 420.0f) * z + 945.0f);
    }
    {
        const float bounded = size < 10.0f ? size : 10.0f;
        const float far_from_zero = 1.0f - 2.0f / (ek_exp_of_f32(2.0f * bounded) + 1.0f);
        return x < 0.0f ? -far_from_zero : far_from_zero;
    }
}

/* 1 / (1 + exp(-x)); below -9 it is taken to be exp(x), as in TensorFlow Lite. */
static EK_INLINE float ek_logistic_of_f32(float x)
{
    return x < -9.0f ? ek_exp_of_f32(x) : 1.0f / (1.0f + ek_exp_of_f32(-x));
}

/* The square root, correctly rounded: the integer root of the mantissa, bit by bit. */
static EK_INLINE float ek_sqrt_of_f32(float x)
{
    if (!(x > 0.0f)) {
        return x == 0.0f ? x : ek_f32_of_bits(0x7FC00000u);
    }
    if (ek_is_infinite_f32(x)) {
        return x;
    }
    {
        const int32_t tiny = x < 1.17549435e-38f ? 1 : 0;
        const uint32_t bits = ek_bits_of_f32(tiny ? x * 16777216.0f : x);
        const int32_t exponent = (int32_t)(bits >> 23) - 127;
        const uint64_t mantissa = (bits & 0x007FFFFFu) | 0x00800000u;
        const uint64_t square = mantissa << ((exponent & 1) ? 26 : 25);
        uint64_t root = 0;
        for (uint64_t bit = (uint64_t)1 << 24; bit != 0; bit >>= 1) {
            const uint64_t larger = root | bit;
            if (larger * larger <= square) {
                root = larger;
            }
        }
        {
            const uint32_t rounded = (uint32_t)((root + 1) >> 1);
            const int32_t half = (exponent >> 1) - (tiny ? 12 : 0);
            return ek_f32_of_bits(((uint32_t)(half + 126) << 23) + rounded);
        }
    }
}

#endif
