/* SIN and COS, float32, for arguments of any size.
 *
 * input    float [length]
 * output   float [length]; may be the input
 * The quotient by pi / 2 is computed in integers, as far as it matters: modulo 4 and to 62
 * bits. The error is at most 4 units in the last place.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_TRIGONOMETRY_F32_H
#define EK_TRIGONOMETRY_F32_H

#include "ek_unary_f32.h"

/* x = quadrant * pi / 2 + angle with |angle| at most pi / 4; x is finite and at least 0. */
typedef struct {
    int32_t quadrant;
    float angle;
} ek_angle_f32;

static EK_INLINE ek_angle_f32 ek_reduce_angle_f32(float x)
{
    /* 2 / pi, after 32 zero bits */
    static const EK_FLASH uint32_t two_over_pi[8] = {
        0x00000000u, 0xA2F9836Eu, 0x4E441529u, 0xFC2757D1u,
        0xF534DDC0u, 0xDB629599u, 0x3C439041u, 0xFE5163ABu,
    };
    ek_angle_f32 result = {0, x};
    if (x > 7.85398185e-01f) {
        const uint32_t bits = ek_bits_of_f32(x);
        const uint64_t mantissa = (bits & 0x007FFFFFu) | 0x00800000u;
        /* x = mantissa * 2^exponent. Of the digits of 2 / pi, those before this position
         * contribute multiples of 4, and those 96 places behind it too little. */
        const int32_t exponent = (int32_t)(bits >> 23) - 150;
        const int32_t position = exponent + 30;
        const int32_t word = position >> 5;
        const int32_t shift = position & 31;
        uint64_t carry = 0;
        uint32_t product[3];
        for (int32_t i = 2; i >= 0; --i) {
            const uint64_t two_words =
                (uint64_t)two_over_pi[word + i] << 32 |
                (word + i + 1 < 8 ? two_over_pi[word + i + 1] : 0u);
            const uint32_t digits = (uint32_t)((two_words << shift) >> 32);
            carry += mantissa * digits;
            product[i] = (uint32_t)carry;
            carry >>= 32;
        }
        {
            /* the quotient modulo 4, with 62 bits behind the point */
            const uint64_t quotient = (uint64_t)product[0] << 32 | product[1];
            const uint64_t nearest = (quotient + ((uint64_t)1 << 61)) >> 62;
            const int64_t fraction = (int64_t)(quotient - (nearest << 62));
            result.quadrant = (int32_t)(nearest & 3u);
            result.angle = (float)fraction * 3.40612155e-19f;
        }
    }
    return result;
}

/* The Taylor series for |x| at most pi / 4. */
static EK_INLINE float ek_sin_near_zero_f32(float x)
{
    const float z = x * x;
    float tail = 2.75573188e-06f;
    tail = tail * z + -1.98412701e-04f;
    tail = tail * z + 8.33333377e-03f;
    tail = tail * z + -1.66666672e-01f;
    return tail * z * x + x;
}

static EK_INLINE float ek_cos_near_zero_f32(float x)
{
    const float z = x * x;
    float tail = -2.75573199e-07f;
    tail = tail * z + 2.48015876e-05f;
    tail = tail * z + -1.38888892e-03f;
    tail = tail * z + 4.16666679e-02f;
    tail = tail * z + -5.00000000e-01f;
    return tail * z + 1.0f;
}

/* The sine of x + quadrants * pi / 2, for x at least 0. */
static EK_INLINE float ek_sin_of_f32(float x, int32_t quadrants)
{
    if (!(x < 3.40282347e+38f || x == 3.40282347e+38f)) {
        return ek_f32_of_bits(0x7FC00000u);
    }
    {
        const ek_angle_f32 reduced = ek_reduce_angle_f32(x);
        const int32_t quadrant = (reduced.quadrant + quadrants) & 3;
        const float size = (quadrant & 1) ? ek_cos_near_zero_f32(reduced.angle)
                                          : ek_sin_near_zero_f32(reduced.angle);
        return (quadrant & 2) ? -size : size;
    }
}

EK_DEFINE_FUNCTION_F32(sin, x < 0.0f ? -ek_sin_of_f32(-x, 0) : ek_sin_of_f32(x, 0))
EK_DEFINE_FUNCTION_F32(cos, ek_sin_of_f32(ek_abs_of_f32(x), 1))

#endif
