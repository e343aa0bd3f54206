/* AVERAGE_POOL_2D and MAX_POOL_2D, int8, with NEON: sixteen channels at a time, then eight.
 *
 * As ek_pool_2d_s8, for averages over at most 256 taps: their sums fit 16 bits.
 * Order: output pixels in memory order, channels in blocks; a block is written after its
 * window was read.
 */
#ifndef EK_POOL_2D_NEON_S8_H
#define EK_POOL_2D_NEON_S8_H

#include "ek_neon.h"
#include "ek_pool_2d_s8.h"

typedef ek_average_pool_2d_s8_params ek_average_pool_2d_neon_s8_params;
typedef ek_average_pool_2d_s8_params ek_max_pool_2d_neon_s8_params;

/* What of a window lies inside of the input. */
typedef struct {
    const int8_t *from;
    int32_t rows;
    int32_t columns;
    int32_t row_bytes;
    int32_t channels;
} ek_pool_window_neon;

static EK_INLINE ek_pool_window_neon ek_pool_window(const ek_average_pool_2d_s8_params *p,
                                                    const int8_t *input, int32_t out_y,
                                                    int32_t out_x)
{
    const int32_t in_y = out_y * p->stride_height - p->pad_top;
    const int32_t in_x = out_x * p->stride_width - p->pad_left;
    const int32_t y = ek_max_s32(in_y, 0);
    const int32_t x = ek_max_s32(in_x, 0);
    const ek_pool_window_neon w = {input + (y * p->input_width + x) * p->channels,
                                   ek_min_s32(in_y + p->filter_height, p->input_height) - y,
                                   ek_min_s32(in_x + p->filter_width, p->input_width) - x,
                                   p->input_width * p->channels, p->channels};
    return w;
}

/* Eight sums, divided by count and rounded; reciprocal is 2^24 / count, rounded up. The dividend
 * n is at most 65408 and count at most 256, so n * (reciprocal * count - 2^24) < 2^24: the
 * quotient is exact. */
static EK_INLINE int8x8_t ek_average_8_neon(int16x8_t sums, int32_t count, uint32_t reciprocal,
                                            int32_t shift)
{
    const int16x8_t sign = vshrq_n_s16(sums, 15);
    const uint16x8_t half = vdupq_n_u16((uint16_t)(count / 2));
    const uint16x8_t shifted = vaddq_u16(vreinterpretq_u16_s16(sums),
                                         vdupq_n_u16((uint16_t)(shift * count)));
    const uint16x8_t magnitude = vreinterpretq_u16_s16(vabsq_s16(sums));
    const uint16x8_t n = vaddq_u16(shift ? shifted : magnitude, half);
    const uint32x4_t low = vmulq_n_u32(vmovl_u16(vget_low_u16(n)), reciprocal);
    const uint32x4_t high = vmulq_n_u32(vmovl_u16(vget_high_u16(n)), reciprocal);
    const int16x8_t quotient = vreinterpretq_s16_u16(
        vcombine_u16(vmovn_u32(vshrq_n_u32(low, 24)), vmovn_u32(vshrq_n_u32(high, 24))));
    if (shift) {
        return vmovn_s16(vsubq_s16(quotient, vdupq_n_s16((int16_t)shift)));
    }
    return vmovn_s16(vsubq_s16(veorq_s16(quotient, sign), sign));
}

static EK_INLINE void ek_average_pixel_neon(const ek_average_pool_2d_s8_params *p,
                                            const ek_pool_window_neon *w, int8_t *output)
{
    const int8x16_t lowest = vdupq_n_s8((int8_t)p->activation_min);
    const int8x16_t highest = vdupq_n_s8((int8_t)p->activation_max);
    const int32_t count = w->rows * w->columns;
    const uint32_t reciprocal = ((1u << 24) + (uint32_t)count - 1u) / (uint32_t)count;
    int32_t c = 0;
    for (; c + 16 <= w->channels; c += 16) {
        int16x8_t low = vdupq_n_s16(0);
        int16x8_t high = vdupq_n_s16(0);
        for (int32_t y = 0; y < w->rows; ++y) {
            const int8_t *from = w->from + y * w->row_bytes + c;
            for (int32_t x = 0; x < w->columns; ++x) {
                const int8x16_t codes = vld1q_s8(from);
                low = vaddw_s8(low, vget_low_s8(codes));
                high = vaddw_high_s8(high, codes);
                from += w->channels;
            }
        }
        vst1q_s8(output + c,
                 vminq_s8(vmaxq_s8(vcombine_s8(ek_average_8_neon(low, count, reciprocal, p->shift),
                                               ek_average_8_neon(high, count, reciprocal,
                                                                 p->shift)),
                                   lowest),
                          highest));
    }
    for (; c < w->channels; c += 8) {
        int16x8_t sums = vdupq_n_s16(0);
        for (int32_t y = 0; y < w->rows; ++y) {
            const int8_t *from = w->from + y * w->row_bytes + c;
            for (int32_t x = 0; x < w->columns; ++x) {
                sums = vaddw_s8(sums, ek_load_8_neon(from, w->channels - c));
                from += w->channels;
            }
        }
        ek_store_8_neon(output + c,
                        vmin_s8(vmax_s8(ek_average_8_neon(sums, count, reciprocal, p->shift),
                                        vget_low_s8(lowest)),
                                vget_low_s8(highest)),
                        w->channels - c);
    }
}

static EK_INLINE void ek_max_pixel_neon(const ek_max_pool_2d_neon_s8_params *p,
                                        const ek_pool_window_neon *w, int8_t *output)
{
    const int8x16_t lowest = vdupq_n_s8((int8_t)p->activation_min);
    const int8x16_t highest = vdupq_n_s8((int8_t)p->activation_max);
    int32_t c = 0;
    for (; c + 16 <= w->channels; c += 16) {
        int8x16_t largest = lowest;
        for (int32_t y = 0; y < w->rows; ++y) {
            const int8_t *from = w->from + y * w->row_bytes + c;
            for (int32_t x = 0; x < w->columns; ++x) {
                largest = vmaxq_s8(largest, vld1q_s8(from));
                from += w->channels;
            }
        }
        vst1q_s8(output + c, vminq_s8(largest, highest));
    }
    for (; c < w->channels; c += 8) {
        int8x8_t largest = vget_low_s8(lowest);
        for (int32_t y = 0; y < w->rows; ++y) {
            const int8_t *from = w->from + y * w->row_bytes + c;
            for (int32_t x = 0; x < w->columns; ++x) {
                largest = vmax_s8(largest, ek_load_8_neon(from, w->channels - c));
                from += w->channels;
            }
        }
        ek_store_8_neon(output + c, vmin_s8(largest, vget_low_s8(highest)), w->channels - c);
    }
}

static EK_INLINE void ek_average_pool_2d_neon_s8(const ek_average_pool_2d_neon_s8_params *p,
                                                 const int8_t *input, int8_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const ek_pool_window_neon w = ek_pool_window(p, input, out_y, out_x);
                ek_average_pixel_neon(p, &w, output);
                output += p->channels;
            }
        }
        input += p->input_height * p->input_width * p->channels;
    }
}

static EK_INLINE void ek_max_pool_2d_neon_s8(const ek_max_pool_2d_neon_s8_params *p,
                                             const int8_t *input, int8_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
            for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
                const ek_pool_window_neon w = ek_pool_window(p, input, out_y, out_x);
                ek_max_pixel_neon(p, &w, output);
                output += p->channels;
            }
        }
        input += p->input_height * p->input_width * p->channels;
    }
}

#endif
