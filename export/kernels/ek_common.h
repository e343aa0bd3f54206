/* What every edgekiln kernel builds on: integer types, fixed-point arithmetic.
 *
 * All kernels are `static inline` and always inlined into a function that the compiler
 * generates, with parameters that are mostly constants there.
 *
 * Assumed of the C compiler, as by every embedded toolchain: two's complement, and a right
 * shift of a negative number that copies the sign.
 */
#ifndef EK_COMMON_H
#define EK_COMMON_H

#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define EK_INLINE inline __attribute__((always_inline))
#define EK_NOINLINE __attribute__((noinline))
#if defined(__AVR__) || (defined(__ARM_ARCH_6M__) && defined(__OPTIMIZE_SIZE__))
/* Arithmetic that is wider than the registers: one copy of it is enough. */
#define EK_WIDE __attribute__((noinline, unused))
#else
#define EK_WIDE EK_INLINE
#endif
#define EK_ALIGN(bytes) __attribute__((aligned(bytes)))
#else
#define EK_INLINE inline
#define EK_WIDE inline
#define EK_NOINLINE
#define EK_ALIGN(bytes)
#endif

/* Where constant tables lie. On most processors a load reads flash like RAM. AVR reads it by an
 * instruction of its own: `__flash` for the first 64 kB, `__memx` for more (-DEK_FLASH=__memx). */
#if !defined(EK_FLASH)
#if defined(__AVR__) && !defined(__cplusplus)
#define EK_FLASH __flash
#define EK_FLASH_IS_NEAR
#else
#define EK_FLASH
#endif
#endif

static EK_INLINE int32_t ek_min_s32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static EK_INLINE int32_t ek_max_s32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static EK_INLINE int8_t ek_clamp_s8(int32_t value, int32_t low, int32_t high)
{
    return (int8_t)ek_min_s32(ek_max_s32(value, low), high);
}

static EK_INLINE int16_t ek_clamp_s16(int32_t value, int32_t low, int32_t high)
{
    return (int16_t)ek_min_s32(ek_max_s32(value, low), high);
}

/* Arithmetic that wraps around, where overflow is the model's own doing. */
static EK_INLINE int32_t ek_wrapping_add(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a + (uint32_t)b);
}

static EK_INLINE int32_t ek_wrapping_sub(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a - (uint32_t)b);
}

static EK_INLINE int32_t ek_wrapping_mul(int32_t a, int32_t b)
{
    return (int32_t)((uint32_t)a * (uint32_t)b);
}

/* a * b / 2^31, rounded to the nearest, halves up, from four products of 16 bits by 16. */
static EK_INLINE int32_t ek_doubling_high_mul_by_halves(int32_t a, int32_t b)
{
    const int32_t a_low = a & 0xFFFF;
    const int32_t b_low = b & 0xFFFF;
    const int32_t a_high = a >> 16;
    const int32_t b_high = b >> 16;
    const int32_t cross_1 = a_low * b_high;
    const int32_t cross_2 = a_high * b_low;
    const uint32_t low = (uint32_t)a_low * (uint32_t)b_low;
    const uint32_t middle = ((uint32_t)cross_1 & 0xFFFFu) + ((uint32_t)cross_2 & 0xFFFFu)
                            + (low >> 16) + 0x4000u;
    const int32_t high =
        a_high * b_high + (cross_1 >> 16) + (cross_2 >> 16) + (int32_t)(middle >> 16);
    return (int32_t)(((uint32_t)high << 1) | ((middle >> 15) & 1u));
}

/* a * b / 2^31, rounded to the nearest, halves up. Not for a = b = INT32_MIN.
 * The same integer as gemmlowp's SaturatingRoundingDoublingHighMul. */
static EK_WIDE int32_t ek_doubling_high_mul(int32_t a, int32_t b)
{
#if defined(__ARM_ARCH_6M__) /* no product is wider than 32 bits: compilers call a function */
    return ek_doubling_high_mul_by_halves(a, b);
#else
    const int64_t product = (int64_t)a * b + ((int32_t)1 << 30);
#if defined(__AVR__) /* shifts bit by bit: better to pick bytes */
    union {
        int64_t whole;
        uint32_t halves[2];
    } parts;
    parts.whole = product;
    return (int32_t)((parts.halves[1] << 1) | (parts.halves[0] >> 31));
#else
    return (int32_t)(product >> 31);
#endif
#endif
}

/* x / 2^exponent, rounded to the nearest, halves away from zero; exponent in [0, 31]. */
static EK_WIDE int32_t ek_rounding_divide_by_pot(int32_t x, int32_t exponent)
{
#if defined(__AVR__) /* one shift instead of two, by a number of 8 bits */
    uint32_t size = x < 0 ? 0u - (uint32_t)x : (uint32_t)x;
    if (exponent == 0) {
        return x;
    }
    size = ((size >> (uint8_t)(exponent - 1)) + 1u) >> 1;
    return x < 0 ? -(int32_t)size : (int32_t)size;
#else
    const int32_t mask = (int32_t)(((uint32_t)1 << exponent) - 1u);
    const int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
    return (x >> exponent) + ((x & mask) > threshold ? 1 : 0);
#endif
}

/* x * 2^bits, which the caller knows not to overflow or wants to wrap; bits in [0, 31]. */
static EK_INLINE int32_t ek_shift_left(int32_t x, int32_t bits)
{
    return (int32_t)((uint32_t)x << bits);
}

/* x * multiplier * 2^(shift - 31) with gemmlowp's two roundings; shift in [-31, 0]. */
static EK_INLINE int32_t ek_scale_down(int32_t x, int32_t multiplier, int32_t shift)
{
    return ek_rounding_divide_by_pot(ek_doubling_high_mul(x, multiplier), -shift);
}

/* The same for shift in [-31, 30] (TensorFlow Lite's MultiplyByQuantizedMultiplier). */
static EK_INLINE int32_t ek_scale(int32_t x, int32_t multiplier, int32_t shift)
{
    if (shift > 0) {
        return ek_doubling_high_mul(ek_shift_left(x, shift), multiplier);
    }
    return ek_scale_down(x, multiplier, shift);
}

/* Accumulator to int8: scale, add the zero point, clamp. shifts_left tells whether any
 * shift of the node is positive; where none is, the test is compiled away. */
static EK_INLINE int8_t ek_requantize_s8(int32_t acc, int32_t multiplier, int32_t shift,
                                         int32_t shifts_left, int32_t zero_point, int32_t low,
                                         int32_t high)
{
    const int32_t scaled = shifts_left ? ek_scale(acc, multiplier, shift)
                                       : ek_scale_down(acc, multiplier, shift);
    return ek_clamp_s8(scaled + zero_point, low, high);
}

#if defined(__AVR_HAVE_MUL__) && defined(EK_FLASH_IS_NEAR)
/* The sums below on AVR, 16 cycles a product: `multiply` makes 16 bits of w[i] and `change`d
 * x[i], and leaves their sign in the carry. */
#define EK_AVR_SUM(x, w, length, acc, change, multiply)                                        \
    do {                                                                                       \
        uint16_t ek_left = (uint16_t)(length);                                                 \
        uint8_t ek_x, ek_w;                                                                    \
        if (ek_left != 0u) {                                                                   \
            __asm__ volatile("0: ld %[a], %a[from]+\n"                                         \
                             "lpm %[b], %a[table]+\n"                                          \
                             change multiply " %[b], %[a]\n"                                   \
                             "sbc %[b], %[b]\n"                                                \
                             "add %A[sum], r0\n"                                               \
                             "adc %B[sum], r1\n"                                               \
                             "adc %C[sum], %[b]\n"                                             \
                             "adc %D[sum], %[b]\n"                                             \
                             "sbiw %[left], 1\n"                                               \
                             "brne 0b\n"                                                       \
                             "clr __zero_reg__\n"                                              \
                             : [from] "+e"(x), [table] "+z"(w), [left] "+w"(ek_left),          \
                               [sum] "+r"(acc), [a] "=&a"(ek_x), [b] "=&a"(ek_w)               \
                             :                                                                 \
                             : "memory");                                                      \
        }                                                                                      \
    } while (0)
#endif

/* Sum of x[i] * w[i]. The bound on the sum is the caller's to prove. */
static EK_WIDE int32_t ek_dot_s8(const int8_t *x, const EK_FLASH int8_t *w, int32_t length,
                                 int32_t acc)
{
#if defined(EK_AVR_SUM)
    EK_AVR_SUM(x, w, length, acc, "", "muls");
#else
    for (int32_t i = 0; i < length; ++i) {
        acc += (int32_t)x[i] * w[i];
    }
#endif
    return acc;
}

/* Sum of (x[i] + offset) * w[i]. */
static EK_WIDE int32_t ek_dot_offset_s8(const int8_t *x, const EK_FLASH int8_t *w, int32_t length,
                                        int32_t offset, int32_t acc)
{
#if defined(EK_AVR_SUM)
    if (offset == 128) { /* as after a RELU: x[i] + 128 is a byte without a sign */
        EK_AVR_SUM(x, w, length, acc, "subi %[a], 0x80\n", "mulsu");
        return acc;
    }
#endif
    for (int32_t i = 0; i < length; ++i) {
        acc += ((int32_t)x[i] + offset) * w[i];
    }
    return acc;
}

/* Copies a table to RAM. */
static EK_INLINE void ek_copy_table(void *to, const EK_FLASH void *from, size_t bytes)
{
#if defined(__AVR__)
    for (size_t i = 0; i < bytes; ++i) {
        ((uint8_t *)to)[i] = ((const EK_FLASH uint8_t *)from)[i];
    }
#else
    memcpy(to, from, bytes);
#endif
}

/* First tap of a window that lies inside of the input: the smallest f >= 0 with
 * origin + f * dilation >= 0. */
static EK_INLINE int32_t ek_first_tap(int32_t origin, int32_t dilation)
{
    return origin >= 0 ? 0 : (dilation - 1 - origin) / dilation;
}

/* One past the last tap inside of the input: the largest f <= taps with
 * origin + (f - 1) * dilation < size. */
static EK_INLINE int32_t ek_last_tap(int32_t origin, int32_t dilation, int32_t taps, int32_t size)
{
    return ek_min_s32(taps, (size - origin + dilation - 1) / dilation);
}

/* First of the windows of `taps` at 0, stride, 2 * stride, … that covers a place. */
static EK_INLINE int32_t ek_first_cover(int32_t place, int32_t taps, int32_t stride)
{
    return place < taps ? 0 : (place - taps + stride) / stride;
}

#endif
