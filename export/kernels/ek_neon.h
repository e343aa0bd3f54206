/* What the kernels with NEON share: fixed-point arithmetic on four channels, copies.
 *
 * A table that belongs to channels (bias, multiplier, shift) has zeros up to a multiple of eight.
 */
#ifndef EK_NEON_H
#define EK_NEON_H

#include <arm_neon.h>

#include "ek_common.h"
#if defined(__arm__)
#include "ek_neon_armv7.h"
#endif

/* Compilers move loads to the front of a long run of multiplications, until there are no
 * registers left. They may not move them over this. */
#if defined(__GNUC__)
#define EK_ORDER_LOADS() __asm__ volatile("" ::: "memory")
#else
#define EK_ORDER_LOADS() ((void)0)
#endif

/* Sixty-four bytes by one instruction, where the compiler offers it. */
static EK_INLINE int8x16x4_t ek_load_64_neon(const int8_t *from)
{
#if defined(__arm__) || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 10)
    int8x16x4_t all;
    all.val[0] = vld1q_s8(from);
    all.val[1] = vld1q_s8(from + 16);
    all.val[2] = vld1q_s8(from + 32);
    all.val[3] = vld1q_s8(from + 48);
    return all;
#else
    return vld1q_s8_x4(from);
#endif
}

/* How accumulators become outputs.
 *
 * bias, multiplier, shift  int32, one per channel
 * shifts_left              whether any shift is positive
 * shifts_right             whether all shifts are negative
 */
typedef struct {
    const int32_t *bias;
    const int32_t *multiplier;
    const int32_t *shift;
    int32_t shifts_left;
    int32_t shifts_right;
    int32_t zero_point;
    int32_t low;
    int32_t high;
} ek_output_neon;

/* ek_scale of four accumulators. SQRDMULH is ek_doubling_high_mul. SRSHL rounds halves up:
 * one less where a negative number is shifted to the right, and they go away from zero. */
static EK_INLINE int32x4_t ek_scale_neon(int32x4_t acc, int32x4_t multiplier, int32x4_t shift,
                                         int32_t shifts_left, int32_t shifts_right)
{
    const int32x4_t zero = vdupq_n_s32(0);
    int32x4_t scaled = acc;
    int32x4_t right = shift;
    if (shifts_left) {
        scaled = vshlq_s32(scaled, vmaxq_s32(shift, zero));
        right = vminq_s32(shift, zero);
    }
    scaled = vqrdmulhq_s32(scaled, multiplier);
    scaled = vsraq_n_s32(scaled, shifts_right ? scaled : vandq_s32(scaled, right), 31);
    return vrshlq_s32(scaled, right);
}

/* Scales the accumulators, bias included, of the four channels from `channel` on. */
static EK_INLINE int32x4_t ek_scale_channels_neon(const ek_output_neon *o, int32_t channel,
                                                  int32x4_t acc)
{
    return ek_scale_neon(acc, vld1q_s32(o->multiplier + channel), vld1q_s32(o->shift + channel),
                         o->shifts_left, o->shifts_right);
}

/* Adds the zero point to eight scaled accumulators, with saturation to 16 bits: what lies beyond
 * them is beyond 8 bits too. */
static EK_INLINE int16x8_t ek_add_zero_point_neon(const ek_output_neon *o, int32x4_t a,
                                                  int32x4_t b)
{
    const int16x8_t both = vqmovn_high_s32(vqmovn_s32(a), b);
    return vqaddq_s16(both, vdupq_n_s16((int16_t)o->zero_point));
}

/* Scaled accumulators to outputs. */
static EK_INLINE int8x8_t ek_narrow_8_neon(const ek_output_neon *o, int32x4_t a, int32x4_t b)
{
    const int8x8_t codes = vqmovn_s16(ek_add_zero_point_neon(o, a, b));
    return vmin_s8(vmax_s8(codes, vdup_n_s8((int8_t)o->low)), vdup_n_s8((int8_t)o->high));
}

static EK_INLINE int8x16_t ek_narrow_16_neon(const ek_output_neon *o, int32x4_t a, int32x4_t b,
                                             int32x4_t c, int32x4_t d)
{
    const int8x8_t first = vqmovn_s16(ek_add_zero_point_neon(o, a, b));
    const int8x16_t codes = vqmovn_high_s16(first, ek_add_zero_point_neon(o, c, d));
    return vminq_s8(vmaxq_s8(codes, vdupq_n_s8((int8_t)o->low)), vdupq_n_s8((int8_t)o->high));
}

/* Writes the first `count` bytes of a word, at most four. */
static EK_INLINE void ek_store_word_neon(int8_t *to, uint32_t word, int32_t count)
{
    if (count >= 4) {
        memcpy(to, &word, 4);
        return;
    }
    for (int32_t i = 0; i < count; ++i) {
        to[i] = (int8_t)(uint8_t)(word >> (8 * i) & 0xFFu);
    }
}

/* Writes the first `count` of eight bytes, at most all of them. */
static EK_INLINE void ek_store_8_neon(int8_t *to, int8x8_t bytes, int32_t count)
{
    if (count >= 8) {
        vst1_s8(to, bytes);
        return;
    }
    {
        const uint64_t all = vget_lane_u64(vreinterpret_u64_s8(bytes), 0);
        for (int32_t i = 0; i < count; ++i) {
            to[i] = (int8_t)(uint8_t)(all >> (8 * i) & 0xFFu);
        }
    }
}

/* Copies bytes that do not overlap, and nothing beyond them; returns where `to` goes on. */
static EK_INLINE int8_t *ek_copy_neon(int8_t *to, const int8_t *from, int32_t bytes)
{
    if (bytes >= 16) {
        for (int32_t i = 0; i + 16 <= bytes; i += 16) {
            vst1q_s8(to + i, vld1q_s8(from + i));
        }
        if (bytes % 16 != 0) {
            vst1q_s8(to + bytes - 16, vld1q_s8(from + bytes - 16));
        }
    } else if (bytes >= 8) {
        const int8x8_t head = vld1_s8(from);
        const int8x8_t tail = vld1_s8(from + bytes - 8);
        vst1_s8(to, head);
        vst1_s8(to + bytes - 8, tail);
    } else if (bytes >= 4) {
        uint32_t head;
        uint32_t tail;
        memcpy(&head, from, 4);
        memcpy(&tail, from + bytes - 4, 4);
        memcpy(to, &head, 4);
        memcpy(to + bytes - 4, &tail, 4);
    } else {
        for (int32_t i = 0; i < bytes; ++i) {
            to[i] = from[i];
        }
    }
    return to + bytes;
}

/* Reads the first `count` of eight bytes, at most all of them, and nothing beyond them. */
static EK_INLINE int8x8_t ek_load_8_neon(const int8_t *from, int32_t count)
{
    int8_t bytes[8] = {0};
    if (count >= 8) {
        return vld1_s8(from);
    }
    (void)ek_copy_neon(bytes, from, count);
    return vld1_s8(bytes);
}

/* Fills bytes with one value; returns where `to` goes on. */
static EK_INLINE int8_t *ek_fill_neon(int8_t *to, int32_t value, int32_t bytes)
{
    const int8x16_t all = vdupq_n_s8((int8_t)value);
    if (bytes >= 16) {
        for (int32_t i = 0; i + 16 <= bytes; i += 16) {
            vst1q_s8(to + i, all);
        }
        vst1q_s8(to + bytes - 16, all);
    } else if (bytes >= 8) {
        vst1_s8(to, vget_low_s8(all));
        vst1_s8(to + bytes - 8, vget_low_s8(all));
    } else {
        for (int32_t i = 0; i < bytes; ++i) {
            to[i] = (int8_t)value;
        }
    }
    return to + bytes;
}

#endif
