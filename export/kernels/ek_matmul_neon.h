/* The inner product of the kernels for aarch64: up to four rows of inputs with all channels.
 *
 * Plain (dot 0): filter int8 [channels / 4, depth / 16, 4 channels, 16 inputs]. Two products
 * share a sum of 16 bits where the weights allow it (pairs_fit): inputs i and i + 8 of the 16
 * never both meet -128, so that no such sum leaves the 16 bits.
 *
 * With SDOT (dot 1): blocks of 16 channels, then of 4, each int8
 * [depth / 16, channels of the block / 4, 4 groups of inputs, 4 channels, 4 inputs].
 *
 * depth and the number of channels are rounded up, with zero weights.
 */
#ifndef EK_MATMUL_NEON_H
#define EK_MATMUL_NEON_H

#include "ek_neon.h"

#define EK_ROWS_NEON 4 /* rows at a time */

/* acc[c] + the sum of w[4c .. 4c+3] * x[4 lane .. 4 lane + 3]. Slow where SDOT is missing. */
#if defined(__ARM_FEATURE_DOTPROD)
#define EK_DOT_LANE(acc, w, x, lane) vdotq_laneq_s32((acc), (w), (x), (lane))
#else
#define EK_DOT_LANE(acc, w, x, lane)                                                             \
    ek_dot_neon((acc), (w),                                                                      \
                vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x), (lane))))

static EK_INLINE int32x4_t ek_dot_neon(int32x4_t acc, int8x16_t w, int8x16_t x)
{
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(w, x));
    return vaddq_s32(acc, vpaddq_s32(low, high));
}
#endif

/* The weights, and how sums become outputs. */
typedef struct {
    int32_t dot;
    int32_t pairs_fit;
    int32_t depth;
    int32_t channels;
    const int8_t *filter;
    ek_output_neon output;
} ek_matmul_neon;

/* Adds 16 products to four sums, four to each. */
static EK_INLINE int32x4_t ek_multiply_16_neon(const ek_matmul_neon *m, int32x4_t acc,
                                               int8x16_t x, int8x16_t w)
{
    const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
    if (m->pairs_fit) {
        return vpadalq_s16(acc, vmlal_high_s8(low, x, w));
    }
    return vpadalq_s16(vpadalq_s16(acc, low), vmull_high_s8(x, w));
}

/* The sums of four vectors. */
static EK_INLINE int32x4_t ek_sums_neon(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d)
{
    return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

/* Scales and writes channels c .. c + 3, as far as there are so many, of four rows. */
static EK_INLINE void ek_write_4x4_neon(const ek_matmul_neon *m, int32_t c, int32x4_t sum_0,
                                        int32x4_t sum_1, int32x4_t sum_2, int32x4_t sum_3,
                                        int8_t *output)
{
    const ek_output_neon *o = &m->output;
    const int32_t count = m->channels - c;
    const uint32x4_t words = vreinterpretq_u32_s8(ek_narrow_16_neon(
        o, ek_scale_channels_neon(o, c, sum_0), ek_scale_channels_neon(o, c, sum_1),
        ek_scale_channels_neon(o, c, sum_2), ek_scale_channels_neon(o, c, sum_3)));
    int8_t *y = output + c;
    ek_store_word_neon(y, vgetq_lane_u32(words, 0), count);
    ek_store_word_neon(y + m->channels, vgetq_lane_u32(words, 1), count);
    ek_store_word_neon(y + 2 * m->channels, vgetq_lane_u32(words, 2), count);
    ek_store_word_neon(y + 3 * m->channels, vgetq_lane_u32(words, 3), count);
}

/* The same for one row. */
static EK_INLINE void ek_write_1x4_neon(const ek_matmul_neon *m, int32_t c, int32x4_t sum,
                                        int8_t *output)
{
    const int32x4_t scaled = ek_scale_channels_neon(&m->output, c, sum);
    const int8x8_t codes = ek_narrow_8_neon(&m->output, scaled, scaled);
    ek_store_word_neon(output + c, vget_lane_u32(vreinterpret_u32_s8(codes), 0),
                       m->channels - c);
}

/* One row of inputs and its sums with four channels. */
#define EK_PLAIN_ROW(row)                                                                        \
    do {                                                                                         \
        const int8x16_t ek_x = vld1q_s8(x_##row);                                                \
        a_##row##0 = ek_multiply_16_neon(m, a_##row##0, ek_x, w_0);                              \
        a_##row##1 = ek_multiply_16_neon(m, a_##row##1, ek_x, w_1);                              \
        a_##row##2 = ek_multiply_16_neon(m, a_##row##2, ek_x, w_2);                              \
        a_##row##3 = ek_multiply_16_neon(m, a_##row##3, ek_x, w_3);                              \
        x_##row += 16;                                                                           \
    } while (0)

static EK_INLINE void ek_four_rows_plain_neon(const ek_matmul_neon *m, const int8_t *rows,
                                              int8_t *output)
{
    const int8_t *w = m->filter;
    for (int32_t c = 0; c < m->channels; c += 4) {
        const int8_t *x_0 = rows;
        const int8_t *x_1 = rows + m->depth;
        const int8_t *x_2 = x_1 + m->depth;
        const int8_t *x_3 = x_2 + m->depth;
        const int32x4_t bias = vld1q_s32(m->output.bias + c);
        int32x4_t a_00 = vdupq_n_s32(0), a_01 = a_00, a_02 = a_00, a_03 = a_00;
        int32x4_t a_10 = a_00, a_11 = a_00, a_12 = a_00, a_13 = a_00;
        int32x4_t a_20 = a_00, a_21 = a_00, a_22 = a_00, a_23 = a_00;
        int32x4_t a_30 = a_00, a_31 = a_00, a_32 = a_00, a_33 = a_00;
        for (int32_t k = 0; k < m->depth; k += 16) {
            const int8x16_t w_0 = vld1q_s8(w);
            const int8x16_t w_1 = vld1q_s8(w + 16);
            const int8x16_t w_2 = vld1q_s8(w + 32);
            const int8x16_t w_3 = vld1q_s8(w + 48);
            w += 64;
            EK_PLAIN_ROW(0);
            EK_PLAIN_ROW(1);
            EK_PLAIN_ROW(2);
            EK_PLAIN_ROW(3);
        }
        ek_write_4x4_neon(m, c, vaddq_s32(bias, ek_sums_neon(a_00, a_01, a_02, a_03)),
                          vaddq_s32(bias, ek_sums_neon(a_10, a_11, a_12, a_13)),
                          vaddq_s32(bias, ek_sums_neon(a_20, a_21, a_22, a_23)),
                          vaddq_s32(bias, ek_sums_neon(a_30, a_31, a_32, a_33)), output);
    }
}

static EK_INLINE void ek_one_row_plain_neon(const ek_matmul_neon *m, const int8_t *row,
                                            int8_t *output)
{
    const int8_t *w = m->filter;
    for (int32_t c = 0; c < m->channels; c += 4) {
        const int8_t *x_0 = row;
        int32x4_t a_00 = vdupq_n_s32(0), a_01 = a_00, a_02 = a_00, a_03 = a_00;
        for (int32_t k = 0; k < m->depth; k += 16) {
            const int8x16_t w_0 = vld1q_s8(w);
            const int8x16_t w_1 = vld1q_s8(w + 16);
            const int8x16_t w_2 = vld1q_s8(w + 32);
            const int8x16_t w_3 = vld1q_s8(w + 48);
            w += 64;
            EK_PLAIN_ROW(0);
        }
        ek_write_1x4_neon(m, c,
                          vaddq_s32(vld1q_s32(m->output.bias + c),
                                    ek_sums_neon(a_00, a_01, a_02, a_03)),
                          output);
    }
}

/* Sixteen inputs of a row with the four channels of tile t, whose weights are w_0 to w_3. */
#define EK_DOT_ROW(row, t)                                                                       \
    do {                                                                                         \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_0, x_##row, 0);                                   \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_1, x_##row, 1);                                   \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_2, x_##row, 2);                                   \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_3, x_##row, 3);                                   \
    } while (0)

#define EK_DOT_WEIGHTS(t)                                                                        \
    const int8x16_t w_0 = vld1q_s8(w + 64 * (t));                                                \
    const int8x16_t w_1 = vld1q_s8(w + 64 * (t) + 16);                                           \
    const int8x16_t w_2 = vld1q_s8(w + 64 * (t) + 32);                                           \
    const int8x16_t w_3 = vld1q_s8(w + 64 * (t) + 48)

#define EK_DOT_TILE_4(t)                                                                         \
    do {                                                                                         \
        EK_DOT_WEIGHTS(t);                                                                       \
        EK_DOT_ROW(0, t);                                                                        \
        EK_DOT_ROW(1, t);                                                                        \
        EK_DOT_ROW(2, t);                                                                        \
        EK_DOT_ROW(3, t);                                                                        \
    } while (0)

#define EK_DOT_TILE_1(t)                                                                         \
    do {                                                                                         \
        EK_DOT_WEIGHTS(t);                                                                       \
        EK_DOT_ROW(0, t);                                                                        \
    } while (0)

/* Scales and writes sixteen channels of one row. */
static EK_INLINE void ek_write_1x16_neon(const ek_matmul_neon *m, int32_t c, int32x4_t sum_0,
                                         int32x4_t sum_1, int32x4_t sum_2, int32x4_t sum_3,
                                         int8_t *output)
{
    const ek_output_neon *o = &m->output;
    vst1q_s8(output + c, ek_narrow_16_neon(o, ek_scale_channels_neon(o, c, sum_0),
                                           ek_scale_channels_neon(o, c + 4, sum_1),
                                           ek_scale_channels_neon(o, c + 8, sum_2),
                                           ek_scale_channels_neon(o, c + 12, sum_3)));
}

static EK_INLINE void ek_four_rows_dot_neon(const ek_matmul_neon *m, const int8_t *rows,
                                            int8_t *output)
{
    const int32_t depth = m->depth;
    const int8_t *w = m->filter;
    int32_t c = 0;
    for (; c + 16 <= m->channels; c += 16) {
        const int32_t *bias = m->output.bias + c;
        int32x4_t a_00 = vld1q_s32(bias), a_01 = vld1q_s32(bias + 4);
        int32x4_t a_02 = vld1q_s32(bias + 8), a_03 = vld1q_s32(bias + 12);
        int32x4_t a_10 = a_00, a_11 = a_01, a_12 = a_02, a_13 = a_03;
        int32x4_t a_20 = a_00, a_21 = a_01, a_22 = a_02, a_23 = a_03;
        int32x4_t a_30 = a_00, a_31 = a_01, a_32 = a_02, a_33 = a_03;
        for (int32_t k = 0; k < depth; k += 16) {
            const int8x16_t x_0 = vld1q_s8(rows + k);
            const int8x16_t x_1 = vld1q_s8(rows + depth + k);
            const int8x16_t x_2 = vld1q_s8(rows + 2 * depth + k);
            const int8x16_t x_3 = vld1q_s8(rows + 3 * depth + k);
            EK_DOT_TILE_4(0);
            EK_DOT_TILE_4(1);
            EK_DOT_TILE_4(2);
            EK_DOT_TILE_4(3);
            w += 256;
        }
        ek_write_1x16_neon(m, c, a_00, a_01, a_02, a_03, output);
        ek_write_1x16_neon(m, c, a_10, a_11, a_12, a_13, output + m->channels);
        ek_write_1x16_neon(m, c, a_20, a_21, a_22, a_23, output + 2 * m->channels);
        ek_write_1x16_neon(m, c, a_30, a_31, a_32, a_33, output + 3 * m->channels);
    }
    for (; c < m->channels; c += 4) {
        int32x4_t a_00 = vld1q_s32(m->output.bias + c), a_10 = a_00, a_20 = a_00, a_30 = a_00;
        for (int32_t k = 0; k < depth; k += 16) {
            const int8x16_t x_0 = vld1q_s8(rows + k);
            const int8x16_t x_1 = vld1q_s8(rows + depth + k);
            const int8x16_t x_2 = vld1q_s8(rows + 2 * depth + k);
            const int8x16_t x_3 = vld1q_s8(rows + 3 * depth + k);
            EK_DOT_TILE_4(0);
            w += 64;
        }
        ek_write_4x4_neon(m, c, a_00, a_10, a_20, a_30, output);
    }
}

static EK_INLINE void ek_one_row_dot_neon(const ek_matmul_neon *m, const int8_t *row,
                                          int8_t *output)
{
    const int8_t *w = m->filter;
    int32_t c = 0;
    for (; c + 16 <= m->channels; c += 16) {
        const int32_t *bias = m->output.bias + c;
        int32x4_t a_00 = vld1q_s32(bias), a_01 = vld1q_s32(bias + 4);
        int32x4_t a_02 = vld1q_s32(bias + 8), a_03 = vld1q_s32(bias + 12);
        for (int32_t k = 0; k < m->depth; k += 16) {
            const int8x16_t x_0 = vld1q_s8(row + k);
            EK_DOT_TILE_1(0);
            EK_DOT_TILE_1(1);
            EK_DOT_TILE_1(2);
            EK_DOT_TILE_1(3);
            w += 256;
        }
        ek_write_1x16_neon(m, c, a_00, a_01, a_02, a_03, output);
    }
    for (; c < m->channels; c += 4) {
        int32x4_t a_00 = vld1q_s32(m->output.bias + c);
        for (int32_t k = 0; k < m->depth; k += 16) {
            const int8x16_t x_0 = vld1q_s8(row + k);
            EK_DOT_TILE_1(0);
            w += 64;
        }
        ek_write_1x4_neon(m, c, a_00, output);
    }
}

/* Multiplies up to four rows, which lie depth bytes apart, and writes their outputs. */
static EK_INLINE void ek_multiply_rows_neon(const ek_matmul_neon *m, const int8_t *rows,
                                            int32_t count, int8_t *output)
{
    if (count == EK_ROWS_NEON) {
        if (m->dot) {
            ek_four_rows_dot_neon(m, rows, output);
        } else {
            ek_four_rows_plain_neon(m, rows, output);
        }
        return;
    }
    for (int32_t row = 0; row < count; ++row) {
        if (m->dot) {
            ek_one_row_dot_neon(m, rows, output);
        } else {
            ek_one_row_plain_neon(m, rows, output);
        }
        rows += m->depth;
        output += m->channels;
    }
}

#endif
