/* Arm's DSP extension (Cortex-M4, M7, M33): two 16-bit products at a time.
 *
 * Where the C compiler does not offer the instructions, the same functions in plain C: the
 * kernels built on them then run, slowly, on any machine, and can be tested there.
 */
#ifndef EK_DSP_H
#define EK_DSP_H

#include "ek_common.h"

#if defined(__ARM_FEATURE_SIMD32) && defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#define EK_HAS_DSP 1
#else
#define EK_HAS_DSP 0
#endif

/* Four bytes as a word, from any address. */
static EK_INLINE uint32_t ek_load_word(const void *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof(word));
    return word;
}

static EK_INLINE int32_t ek_low_half(uint32_t word)
{
    return (int16_t)(uint16_t)(word & 0xFFFFu);
}

static EK_INLINE int32_t ek_high_half(uint32_t word)
{
    return (int16_t)(uint16_t)(word >> 16);
}

/* acc + low(a) * low(b) + high(a) * high(b). The sum must fit 32 bits. */
static EK_INLINE int32_t ek_smlad(uint32_t a, uint32_t b, int32_t acc)
{
#if EK_HAS_DSP
    return __smlad((int16x2_t)a, (int16x2_t)b, acc);
#else
    return acc + ek_low_half(a) * ek_low_half(b) + ek_high_half(a) * ek_high_half(b);
#endif
}

/* acc + low(a) * low(b) */
static EK_INLINE int32_t ek_smlabb(uint32_t a, uint32_t b, int32_t acc)
{
#if EK_HAS_DSP
    return __smlabb((int32_t)a, (int32_t)b, acc);
#else
    return acc + ek_low_half(a) * ek_low_half(b);
#endif
}

/* acc + high(a) * high(b) */
static EK_INLINE int32_t ek_smlatt(uint32_t a, uint32_t b, int32_t acc)
{
#if EK_HAS_DSP
    return __smlatt((int32_t)a, (int32_t)b, acc);
#else
    return acc + ek_high_half(a) * ek_high_half(b);
#endif
}

/* Bytes 0 and 2, each as a signed half. */
static EK_INLINE uint32_t ek_even_bytes(uint32_t word)
{
#if EK_HAS_DSP
    return (uint32_t)__sxtb16((int8x4_t)word);
#else
    const uint32_t low = (uint32_t)(int32_t)(int8_t)(uint8_t)(word & 0xFFu);
    const uint32_t high = (uint32_t)(int32_t)(int8_t)(uint8_t)((word >> 16) & 0xFFu);
    return (low & 0xFFFFu) | (high << 16);
#endif
}

/* Bytes 1 and 3, each as a signed half. */
static EK_INLINE uint32_t ek_odd_bytes(uint32_t word)
{
#if EK_HAS_DSP
    uint32_t result; /* the rotation is part of the instruction, which compilers miss */
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(result) : "r"(word));
    return result;
#else
    return ek_even_bytes(word >> 8);
#endif
}

/* Bytes 0 and 2, each added as a signed half to the halves of offset (SXTAB16). */
static EK_INLINE uint32_t ek_add_bytes_even(uint32_t offset, uint32_t word)
{
#if EK_HAS_DSP
    uint32_t result;
    __asm__("sxtab16 %0, %1, %2" : "=r"(result) : "r"(offset), "r"(word));
    return result;
#else
    const uint32_t bytes = ek_even_bytes(word);
    return ((bytes + offset) & 0xFFFFu) | ((bytes & 0xFFFF0000u) + (offset & 0xFFFF0000u));
#endif
}

/* Bytes 1 and 3, each added as a signed half to the halves of offset. */
static EK_INLINE uint32_t ek_add_bytes_odd(uint32_t offset, uint32_t word)
{
#if EK_HAS_DSP
    uint32_t result;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(result) : "r"(offset), "r"(word));
    return result;
#else
    return ek_add_bytes_even(offset, word >> 8);
#endif
}

/* a * b / 2^32, rounded to the nearest, halves up. */
static EK_INLINE int32_t ek_high_mul(int32_t a, int32_t b)
{
#if EK_HAS_DSP
    int32_t result; /* compilers make three instructions of the product in 64 bits */
    __asm__("smmulr %0, %1, %2" : "=r"(result) : "r"(a), "r"(b));
    return result;
#else
    return (int32_t)(((int64_t)a * b + INT64_C(0x80000000)) >> 32);
#endif
}

/* As ek_requantize_s8 of half of `twice`, which is even, where the shift is -right with right in
 * [1, 22]: the halves away from zero and the zero point go into one shift. */
static EK_INLINE int8_t ek_requantize_twice_dsp(int32_t twice, int32_t multiplier, int32_t right,
                                                int32_t zero_point, int32_t low, int32_t high)
{
    const int32_t scaled = ek_high_mul(twice, multiplier);
    const int32_t offset = ek_shift_left(2 * zero_point + 1, right - 1);
    const int32_t value = (scaled + (scaled >> 31) + offset) >> right;
#if EK_HAS_DSP
    if (low == INT8_MIN && high == INT8_MAX) {
        int32_t saturated;
        __asm__("ssat %0, #8, %1" : "=r"(saturated) : "r"(value));
        return (int8_t)saturated;
    }
#endif
    return ek_clamp_s8(value, low, high);
}

/* The same of acc, where |acc| < 2^30. */
static EK_INLINE int8_t ek_requantize_dsp(int32_t acc, int32_t multiplier, int32_t right,
                                          int32_t zero_point, int32_t low, int32_t high)
{
    return ek_requantize_twice_dsp(acc * 2, multiplier, right, zero_point, low, high);
}

#endif
