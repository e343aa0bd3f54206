/* MEAN and SUM, int8, with NEON: sixteen neighbouring sums at a time, then eight.
 *
 * As ek_sum_s8. shifts_left and shifts_right tell the sign of shift.
 * Order: outputs in memory order, in blocks; a block is written after the inputs it depends on
 * were read.
 */
#ifndef EK_SUM_NEON_S8_H
#define EK_SUM_NEON_S8_H

#include "ek_neon.h"

typedef struct {
    int32_t outer;
    int32_t reduced_0;
    int32_t middle;
    int32_t reduced_1;
    int32_t inner;
    int32_t sum_offset;
    int32_t multiplier;
    int32_t shift;
    int32_t shifts_left;
    int32_t shifts_right;
    int32_t output_zero_point;
} ek_sum_neon_s8_params;

static EK_INLINE int32x4_t ek_scale_sums_neon(const ek_sum_neon_s8_params *p, int32x4_t sums)
{
    return ek_scale_neon(sums, vdupq_n_s32(p->multiplier), vdupq_n_s32(p->shift), p->shifts_left,
                         p->shifts_right);
}

/* The sums of one row of outputs, `inner` of them; rows of inputs lie row_bytes apart. */
static EK_INLINE void ek_sum_row_neon(const ek_sum_neon_s8_params *p, const int8_t *input,
                                      int32_t row_bytes, int8_t *output)
{
    const ek_output_neon o = {NULL, NULL, NULL, 0, 0, p->output_zero_point, INT8_MIN, INT8_MAX};
    const int32x4_t offset = vdupq_n_s32(p->sum_offset);
    int32_t c = 0;
    for (; c + 16 <= p->inner; c += 16) {
        int32x4_t a = offset, b = offset, d = offset, e = offset;
        for (int32_t i = 0; i < p->reduced_0; ++i) {
            const int8_t *from = input + i * row_bytes + c;
            for (int32_t j = 0; j < p->reduced_1; ++j) {
                const int8x16_t codes = vld1q_s8(from);
                const int16x8_t low = vmovl_s8(vget_low_s8(codes));
                const int16x8_t high = vmovl_s8(vget_high_s8(codes));
                a = vaddw_s16(a, vget_low_s16(low));
                b = vaddw_high_s16(b, low);
                d = vaddw_s16(d, vget_low_s16(high));
                e = vaddw_high_s16(e, high);
                from += p->inner;
            }
        }
        vst1q_s8(output + c, ek_narrow_16_neon(&o, ek_scale_sums_neon(p, a),
                                               ek_scale_sums_neon(p, b), ek_scale_sums_neon(p, d),
                                               ek_scale_sums_neon(p, e)));
    }
    for (; c < p->inner; c += 8) {
        int32x4_t a = offset, b = offset;
        for (int32_t i = 0; i < p->reduced_0; ++i) {
            const int8_t *from = input + i * row_bytes + c;
            for (int32_t j = 0; j < p->reduced_1; ++j) {
                const int16x8_t codes = vmovl_s8(ek_load_8_neon(from, p->inner - c));
                a = vaddw_s16(a, vget_low_s16(codes));
                b = vaddw_high_s16(b, codes);
                from += p->inner;
            }
        }
        ek_store_8_neon(output + c,
                        ek_narrow_8_neon(&o, ek_scale_sums_neon(p, a), ek_scale_sums_neon(p, b)),
                        p->inner - c);
    }
}

static EK_INLINE void ek_sum_neon_s8(const ek_sum_neon_s8_params *p, const int8_t *input,
                                     int8_t *output)
{
    const int32_t row = p->reduced_1 * p->inner;
    for (int32_t outer = 0; outer < p->outer; ++outer) {
        for (int32_t middle = 0; middle < p->middle; ++middle) {
            ek_sum_row_neon(p, input + middle * row, p->middle * row, output);
            output += p->inner;
        }
        input += p->reduced_0 * p->middle * row;
    }
}

#endif
