/* What 64-bit cores have beyond the NEON of 32-bit ones, of what the kernels use, in terms of the
 * latter and under the same names (Arm C Language Extensions).
 */
#ifndef EK_NEON_ARMV7_H
#define EK_NEON_ARMV7_H

#include <arm_neon.h>

#include "ek_common.h"

static EK_INLINE int16x8_t vaddw_high_s8(int16x8_t a, int8x16_t b)
{
    return vaddw_s8(a, vget_high_s8(b));
}

static EK_INLINE int32x4_t vaddw_high_s16(int32x4_t a, int16x8_t b)
{
    return vaddw_s16(a, vget_high_s16(b));
}

static EK_INLINE int16x8_t vmull_high_s8(int8x16_t a, int8x16_t b)
{
    return vmull_s8(vget_high_s8(a), vget_high_s8(b));
}

static EK_INLINE int16x8_t vmlal_high_s8(int16x8_t acc, int8x16_t a, int8x16_t b)
{
    return vmlal_s8(acc, vget_high_s8(a), vget_high_s8(b));
}

static EK_INLINE int32x4_t vpaddq_s32(int32x4_t a, int32x4_t b)
{
    return vcombine_s32(vpadd_s32(vget_low_s32(a), vget_high_s32(a)),
                        vpadd_s32(vget_low_s32(b), vget_high_s32(b)));
}

static EK_INLINE int8x16_t vqmovn_high_s16(int8x8_t low, int16x8_t high)
{
    return vcombine_s8(low, vqmovn_s16(high));
}

static EK_INLINE int16x8_t vqmovn_high_s32(int16x4_t low, int32x4_t high)
{
    return vcombine_s16(low, vqmovn_s32(high));
}

#define vshll_high_n_s16(a, bits) vshll_n_s16(vget_high_s16(a), (bits))
#define vdupq_laneq_s32(a, lane) vdupq_n_s32(vgetq_lane_s32((a), (lane)))

#endif
