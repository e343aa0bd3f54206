/* ADD, int8, with NEON: of two tensors of the same size; sixteen elements at a time.
 *
 * input_1, input_2   int8 [length]
 * output             int8 [length]; may be either input
 * Each input is raised by 20 bits, scaled to twice the larger input scale, added, and scaled to
 * the output: all three with ek_scale_down. An input of the larger scale is halved, which is
 * exact: input_1_halves or input_2_halves is 1 then.
 * Order: memory order; sixteen elements are written after those of both inputs were read.
 */
#ifndef EK_ADD_NEON_S8_H
#define EK_ADD_NEON_S8_H

#include "ek_neon.h"

typedef struct {
    int32_t length;
    int32_t input_1_offset;
    int32_t input_1_multiplier;
    int32_t input_1_shift;
    int32_t input_1_halves;
    int32_t input_2_offset;
    int32_t input_2_multiplier;
    int32_t input_2_shift;
    int32_t input_2_halves;
    int32_t output_multiplier;
    int32_t output_shift;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
} ek_add_neon_s8_params;

/* An input's scaled elements, four by four. */
typedef struct {
    int32x4_t a;
    int32x4_t b;
    int32x4_t c;
    int32x4_t d;
} ek_scaled_neon;

/* ek_scale_down of four values by one multiplier. */
static EK_INLINE int32x4_t ek_scale_down_neon(int32x4_t x, int32_t multiplier, int32_t shift)
{
    return ek_scale_neon(x, vdupq_n_s32(multiplier), vdupq_n_s32(shift), 0, 0);
}

static EK_INLINE ek_scaled_neon ek_raise_neon(int8x16_t x, int32_t offset, int32_t multiplier,
                                              int32_t shift, int32_t halves)
{
    const int16x8_t wide = vdupq_n_s16((int16_t)offset);
    int16x8_t low = vaddw_s8(wide, vget_low_s8(x));
    int16x8_t high = vaddw_high_s8(wide, x);
    ek_scaled_neon s;
    /* Up to 255 * 16 fits; SHLL raises by 16 bits more. */
    low = halves ? vshlq_n_s16(low, 3) : vshlq_n_s16(low, 4);
    high = halves ? vshlq_n_s16(high, 3) : vshlq_n_s16(high, 4);
    s.a = vshll_n_s16(vget_low_s16(low), 16);
    s.b = vshll_high_n_s16(low, 16);
    s.c = vshll_n_s16(vget_low_s16(high), 16);
    s.d = vshll_high_n_s16(high, 16);
    if (!halves) {
        s.a = ek_scale_down_neon(s.a, multiplier, shift);
        s.b = ek_scale_down_neon(s.b, multiplier, shift);
        s.c = ek_scale_down_neon(s.c, multiplier, shift);
        s.d = ek_scale_down_neon(s.d, multiplier, shift);
    }
    return s;
}

static EK_INLINE int8x16_t ek_add_16_elements_neon(const ek_add_neon_s8_params *p, int8x16_t x_1,
                                                   int8x16_t x_2)
{
    const ek_output_neon o = {NULL, NULL, NULL, 0, 0, p->output_zero_point, p->activation_min,
                              p->activation_max};
    const ek_scaled_neon s_1 = ek_raise_neon(x_1, p->input_1_offset, p->input_1_multiplier,
                                             p->input_1_shift, p->input_1_halves);
    const ek_scaled_neon s_2 = ek_raise_neon(x_2, p->input_2_offset, p->input_2_multiplier,
                                             p->input_2_shift, p->input_2_halves);
    return ek_narrow_16_neon(
        &o,
        ek_scale_down_neon(vaddq_s32(s_1.a, s_2.a), p->output_multiplier, p->output_shift),
        ek_scale_down_neon(vaddq_s32(s_1.b, s_2.b), p->output_multiplier, p->output_shift),
        ek_scale_down_neon(vaddq_s32(s_1.c, s_2.c), p->output_multiplier, p->output_shift),
        ek_scale_down_neon(vaddq_s32(s_1.d, s_2.d), p->output_multiplier, p->output_shift));
}

static EK_INLINE void ek_add_neon_s8(const ek_add_neon_s8_params *p, const int8_t *input_1,
                                     const int8_t *input_2, int8_t *output)
{
    int32_t i = 0;
    for (; i + 16 <= p->length; i += 16) {
        vst1q_s8(output + i,
                 ek_add_16_elements_neon(p, vld1q_s8(input_1 + i), vld1q_s8(input_2 + i)));
    }
    if (i < p->length) {
        int8_t x_1[16] = {0};
        int8_t x_2[16] = {0};
        (void)ek_copy_neon(x_1, input_1 + i, p->length - i);
        (void)ek_copy_neon(x_2, input_2 + i, p->length - i);
        vst1q_s8(x_1, ek_add_16_elements_neon(p, vld1q_s8(x_1), vld1q_s8(x_2)));
        (void)ek_copy_neon(output + i, x_1, p->length - i);
    }
}

#endif
