/* The NEON intrinsics that the kernels use, in plain C, so that they run under sanitizers.
 *
 * They are stricter than the instructions: where a sum or a product leaves its lane without
 * being meant to, the program ends. Only vaddq_u16 and vmulq_n_u32 wrap around by intent.
 */
#ifndef PLAIN_NEON_H
#define PLAIN_NEON_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Inlined hundreds of times under sanitizers they would take minutes to compile. */
#define NEON_FUNCTION static __attribute__((noinline, unused))

#define VECTOR(name, type, lanes)                                                                \
    typedef struct {                                                                             \
        type v[lanes];                                                                           \
    } name
VECTOR(int8x8_t, int8_t, 8);
VECTOR(int8x16_t, int8_t, 16);
VECTOR(int16x4_t, int16_t, 4);
VECTOR(int16x8_t, int16_t, 8);
VECTOR(uint16x4_t, uint16_t, 4);
VECTOR(uint16x8_t, uint16_t, 8);
VECTOR(int32x4_t, int32_t, 4);
VECTOR(uint32x2_t, uint32_t, 2);
VECTOR(uint32x4_t, uint32_t, 4);
VECTOR(uint64x1_t, uint64_t, 1);

static inline int64_t neon_fit(int64_t x, int64_t low, int64_t high)
{
    if (x < low || x > high) {
        abort();
    }
    return x;
}

static inline int64_t neon_saturate(int64_t x, int64_t low, int64_t high)
{
    return x < low ? low : x > high ? high : x;
}

/* x * 2^bits, bits of either sign; rounded halves up to the right. */
static inline int64_t neon_shift(int64_t x, int32_t bits, int round)
{
    const int right = -bits;
    if (bits >= 0) {
        return (int64_t)((uint64_t)x << bits);
    }
    return (x + (round ? (int64_t)1 << (right - 1) : 0)) >> right;
}

#define FIT_16(x) ((int16_t)neon_fit((x), INT16_MIN, INT16_MAX))
#define FIT_32(x) ((int32_t)neon_fit((x), INT32_MIN, INT32_MAX))
#define SATURATE(bits, x)                                                                        \
    ((int##bits##_t)neon_saturate((x), INT##bits##_MIN, INT##bits##_MAX))

#define LANES(result, name, parameters, lanes, expression)                                       \
    NEON_FUNCTION result name parameters                                                         \
    {                                                                                            \
        result r;                                                                                \
        for (int i = 0; i < (lanes); ++i) {                                                      \
            r.v[i] = (expression);                                                               \
        }                                                                                        \
        return r;                                                                                \
    }

#define LOAD(name, vector, type)                                                                 \
    NEON_FUNCTION vector name(const type *from)                                                  \
    {                                                                                            \
        vector r;                                                                                \
        memcpy(r.v, from, sizeof(r.v));                                                          \
        return r;                                                                                \
    }
LOAD(vld1_s8, int8x8_t, int8_t)
LOAD(vld1q_s8, int8x16_t, int8_t)
LOAD(vld1q_s32, int32x4_t, int32_t)

typedef struct {
    int8x16_t val[4];
} int8x16x4_t;

NEON_FUNCTION int8x16x4_t vld1q_s8_x4(const int8_t *from)
{
    int8x16x4_t r;
    memcpy(r.val, from, sizeof(r.val));
    return r;
}

#define STORE(name, vector)                                                                      \
    NEON_FUNCTION void name(int8_t *to, vector x)                                                \
    {                                                                                            \
        memcpy(to, x.v, sizeof(x.v));                                                            \
    }
STORE(vst1_s8, int8x8_t)
STORE(vst1q_s8, int8x16_t)

#define REINTERPRET(name, result, vector)                                                        \
    NEON_FUNCTION result name(vector x)                                                          \
    {                                                                                            \
        result r;                                                                                \
        memcpy(r.v, x.v, sizeof(r.v));                                                           \
        return r;                                                                                \
    }
REINTERPRET(vreinterpret_u32_s8, uint32x2_t, int8x8_t)
REINTERPRET(vreinterpret_u64_s8, uint64x1_t, int8x8_t)
REINTERPRET(vreinterpretq_u32_s8, uint32x4_t, int8x16_t)
REINTERPRET(vreinterpretq_s8_s32, int8x16_t, int32x4_t)
REINTERPRET(vreinterpretq_s32_s8, int32x4_t, int8x16_t)
REINTERPRET(vreinterpretq_s16_u16, int16x8_t, uint16x8_t)
REINTERPRET(vreinterpretq_u16_s16, uint16x8_t, int16x8_t)

LANES(int8x8_t, vdup_n_s8, (int8_t x), 8, x)
LANES(int8x16_t, vdupq_n_s8, (int8_t x), 16, x)
LANES(int16x8_t, vdupq_n_s16, (int16_t x), 8, x)
LANES(uint16x8_t, vdupq_n_u16, (uint16_t x), 8, x)
LANES(int32x4_t, vdupq_n_s32, (int32_t x), 4, x)
LANES(int32x4_t, vdupq_laneq_s32, (int32x4_t x, int lane), 4, x.v[lane])
#define vget_lane_u32(x, lane) ((x).v[lane])
#define vget_lane_u64(x, lane) ((x).v[lane])
#define vgetq_lane_s32(x, lane) ((x).v[lane])
#define vgetq_lane_u32(x, lane) ((x).v[lane])

LANES(int8x8_t, vget_low_s8, (int8x16_t x), 8, x.v[i])
LANES(int8x8_t, vget_high_s8, (int8x16_t x), 8, x.v[i + 8])
LANES(int16x4_t, vget_low_s16, (int16x8_t x), 4, x.v[i])
LANES(int16x4_t, vget_high_s16, (int16x8_t x), 4, x.v[i + 4])
LANES(uint16x4_t, vget_low_u16, (uint16x8_t x), 4, x.v[i])
LANES(uint16x4_t, vget_high_u16, (uint16x8_t x), 4, x.v[i + 4])
LANES(int8x16_t, vcombine_s8, (int8x8_t a, int8x8_t b), 16, i < 8 ? a.v[i] : b.v[i - 8])
LANES(int16x8_t, vcombine_s16, (int16x4_t a, int16x4_t b), 8, i < 4 ? a.v[i] : b.v[i - 4])
LANES(uint16x8_t, vcombine_u16, (uint16x4_t a, uint16x4_t b), 8, i < 4 ? a.v[i] : b.v[i - 4])

LANES(int8x8_t, vmax_s8, (int8x8_t a, int8x8_t b), 8, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
LANES(int8x8_t, vmin_s8, (int8x8_t a, int8x8_t b), 8, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
LANES(int8x16_t, vmaxq_s8, (int8x16_t a, int8x16_t b), 16, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
LANES(int8x16_t, vminq_s8, (int8x16_t a, int8x16_t b), 16, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
LANES(int32x4_t, vmaxq_s32, (int32x4_t a, int32x4_t b), 4, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
LANES(int32x4_t, vminq_s32, (int32x4_t a, int32x4_t b), 4, a.v[i] < b.v[i] ? a.v[i] : b.v[i])

/* |-32768| is 32768 to whoever reads it without a sign. */
LANES(int16x8_t, vabsq_s16, (int16x8_t a), 8, (int16_t)(uint16_t)abs(a.v[i]))
LANES(int32x4_t, vandq_s32, (int32x4_t a, int32x4_t b), 4, a.v[i] & b.v[i])
LANES(int16x8_t, veorq_s16, (int16x8_t a, int16x8_t b), 8, (int16_t)(a.v[i] ^ b.v[i]))
LANES(int32x4_t, vaddq_s32, (int32x4_t a, int32x4_t b), 4, FIT_32((int64_t)a.v[i] + b.v[i]))
LANES(uint16x8_t, vaddq_u16, (uint16x8_t a, uint16x8_t b), 8, (uint16_t)(a.v[i] + b.v[i]))
LANES(int16x8_t, vsubq_s16, (int16x8_t a, int16x8_t b), 8, FIT_16(a.v[i] - b.v[i]))
LANES(int16x8_t, vqaddq_s16, (int16x8_t a, int16x8_t b), 8, SATURATE(16, a.v[i] + b.v[i]))
LANES(int16x8_t, vaddw_s8, (int16x8_t a, int8x8_t b), 8, FIT_16(a.v[i] + b.v[i]))
LANES(int16x8_t, vaddw_high_s8, (int16x8_t a, int8x16_t b), 8, FIT_16(a.v[i] + b.v[i + 8]))
LANES(int32x4_t, vaddw_s16, (int32x4_t a, int16x4_t b), 4, FIT_32((int64_t)a.v[i] + b.v[i]))
LANES(int32x4_t, vaddw_high_s16, (int32x4_t a, int16x8_t b), 4,
      FIT_32((int64_t)a.v[i] + b.v[i + 4]))
LANES(int32x4_t, vpaddq_s32, (int32x4_t a, int32x4_t b), 4,
      FIT_32(i < 2 ? (int64_t)a.v[2 * i] + a.v[2 * i + 1]
                   : (int64_t)b.v[2 * i - 4] + b.v[2 * i - 3]))
LANES(int32x4_t, vpaddlq_s16, (int16x8_t a), 4, a.v[2 * i] + a.v[2 * i + 1])
LANES(int32x4_t, vpadalq_s16, (int32x4_t acc, int16x8_t a), 4,
      FIT_32((int64_t)acc.v[i] + a.v[2 * i] + a.v[2 * i + 1]))

LANES(int16x8_t, vmull_s8, (int8x8_t a, int8x8_t b), 8, FIT_16(a.v[i] * b.v[i]))
LANES(int16x8_t, vmull_high_s8, (int8x16_t a, int8x16_t b), 8, FIT_16(a.v[i + 8] * b.v[i + 8]))
LANES(int16x8_t, vmlal_s8, (int16x8_t acc, int8x8_t a, int8x8_t b), 8,
      FIT_16(acc.v[i] + a.v[i] * b.v[i]))
LANES(int16x8_t, vmlal_high_s8, (int16x8_t acc, int8x16_t a, int8x16_t b), 8,
      FIT_16(acc.v[i] + a.v[i + 8] * b.v[i + 8]))
LANES(uint32x4_t, vmulq_n_u32, (uint32x4_t a, uint32_t b), 4, a.v[i] * b)
LANES(int32x4_t, vqrdmulhq_s32, (int32x4_t a, int32x4_t b), 4,
      SATURATE(32, ((int64_t)a.v[i] * b.v[i] + ((int64_t)1 << 30)) >> 31))
LANES(int32x4_t, vdotq_laneq_s32, (int32x4_t acc, int8x16_t w, int8x16_t x, int lane), 4,
      FIT_32((int64_t)acc.v[i] + w.v[4 * i] * x.v[4 * lane]
             + w.v[4 * i + 1] * x.v[4 * lane + 1] + w.v[4 * i + 2] * x.v[4 * lane + 2]
             + w.v[4 * i + 3] * x.v[4 * lane + 3]))

LANES(int16x8_t, vmovl_s8, (int8x8_t a), 8, a.v[i])
LANES(uint32x4_t, vmovl_u16, (uint16x4_t a), 4, a.v[i])
LANES(int8x8_t, vmovn_s16, (int16x8_t a), 8, (int8_t)neon_fit(a.v[i], INT8_MIN, INT8_MAX))
LANES(uint16x4_t, vmovn_u32, (uint32x4_t a), 4, (uint16_t)neon_fit(a.v[i], 0, UINT16_MAX))
LANES(int8x8_t, vqmovn_s16, (int16x8_t a), 8, SATURATE(8, a.v[i]))
LANES(int8x16_t, vqmovn_high_s16, (int8x8_t low, int16x8_t a), 16,
      i < 8 ? low.v[i] : SATURATE(8, a.v[i - 8]))
LANES(int16x4_t, vqmovn_s32, (int32x4_t a), 4, SATURATE(16, a.v[i]))
LANES(int16x8_t, vqmovn_high_s32, (int16x4_t low, int32x4_t a), 8,
      i < 4 ? low.v[i] : SATURATE(16, a.v[i - 4]))

LANES(int16x8_t, vshlq_n_s16, (int16x8_t a, int bits), 8, FIT_16(neon_shift(a.v[i], bits, 0)))
LANES(int16x8_t, vshrq_n_s16, (int16x8_t a, int bits), 8, (int16_t)(a.v[i] >> bits))
LANES(uint32x4_t, vshrq_n_u32, (uint32x4_t a, int bits), 4, a.v[i] >> bits)
LANES(int32x4_t, vshll_n_s16, (int16x4_t a, int bits), 4, FIT_32(neon_shift(a.v[i], bits, 0)))
LANES(int32x4_t, vshll_high_n_s16, (int16x8_t a, int bits), 4,
      FIT_32(neon_shift(a.v[i + 4], bits, 0)))
LANES(int32x4_t, vsraq_n_s32, (int32x4_t acc, int32x4_t a, int bits), 4,
      FIT_32((int64_t)acc.v[i] + (a.v[i] >> bits)))
/* A left shift may leave 32 bits where the model's own scale does (ek_scale). */
LANES(int32x4_t, vshlq_s32, (int32x4_t a, int32x4_t bits), 4,
      (int32_t)(uint32_t)neon_shift(a.v[i], bits.v[i], 0))
LANES(int32x4_t, vrshlq_s32, (int32x4_t a, int32x4_t bits), 4,
      FIT_32(neon_shift(a.v[i], bits.v[i], 1)))

#endif
