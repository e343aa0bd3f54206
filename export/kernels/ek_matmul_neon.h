/* The inner product of the kernels with NEON: up to four rows of inputs with all channels.
 *
 * Plain (dot 0): two rows at a time. filter int8 [channels / 8, depth / 16, 8 channels, 16
 * inputs]; depth is a multiple of 8, and where 8 inputs are left, they follow for each 8 channels
 * as [8 channels, 8 inputs]. Two products share a sum of 16 bits where the weights allow it
 * (pairs_fit): inputs i and i + 8 of the 16 never both meet -128.
 *
 * With SDOT (dot 1): four rows at a time. filter: blocks of 16 channels, then of 4, each int8
 * [depth / 16, channels of the block / 4, 4 groups of inputs, 4 channels, 4 inputs], depth a
 * multiple of 4. The last 4, 8 or 12 inputs follow as
 * [1 to 3 groups of inputs, channels of the block / 4, 4 channels, 4 inputs].
 *
 * depth and the number of channels are rounded up, with zero weights. Rows of inputs lie stride
 * bytes apart, depth rounded up to a multiple of 16.
 */
#ifndef EK_MATMUL_NEON_H
#define EK_MATMUL_NEON_H

#include "ek_neon.h"

/* Rows at a time. */
static EK_INLINE int32_t ek_rows_neon(int32_t dot)
{
    return dot ? 4 : 2;
}

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
    int32_t stride;
    int32_t channels;
    const int8_t *filter;
    ek_output_neon output;
} ek_matmul_neon;

/* Sums of 16 products, four to each. */
static EK_INLINE int32x4_t ek_first_16_neon(const ek_matmul_neon *m, int8x16_t x, int8x16_t w)
{
    const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
    if (m->pairs_fit) {
        return vpaddlq_s16(vmlal_high_s8(low, x, w));
    }
    return vpadalq_s16(vpaddlq_s16(low), vmull_high_s8(x, w));
}

/* Adds 16 products to four sums, four to each. */
static EK_INLINE int32x4_t ek_add_16_products_neon(const ek_matmul_neon *m, int32x4_t sums,
                                                   int8x16_t x, int8x16_t w)
{
    const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(w));
    if (m->pairs_fit) {
        return vpadalq_s16(sums, vmlal_high_s8(low, x, w));
    }
    return vpadalq_s16(vpadalq_s16(sums, low), vmull_high_s8(x, w));
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

/* Applies a step to a row (or two) and all eight channels. */
#define EK_PLAIN_CHANNELS(step, row)                                                             \
    do {                                                                                         \
        step(row, 0);                                                                            \
        step(row, 1);                                                                            \
        step(row, 2);                                                                            \
        step(row, 3);                                                                            \
        step(row, 4);                                                                            \
        step(row, 5);                                                                            \
        step(row, 6);                                                                            \
        step(row, 7);                                                                            \
    } while (0)

#define EK_PLAIN_2_ROWS(step, c)                                                                 \
    do {                                                                                         \
        step(0, c);                                                                              \
        step(1, c);                                                                              \
        if ((c) % 2 == 1) {                                                                      \
            EK_ORDER_LOADS();                                                                    \
        }                                                                                        \
    } while (0)

#define EK_FIRST_16(row, c) a_##row##c = ek_first_16_neon(m, x_##row, vld1q_s8(w + 16 * (c)))
#define EK_ADD_16(row, c)                                                                        \
    a_##row##c = ek_add_16_products_neon(m, a_##row##c, x_##row, vld1q_s8(w + 16 * (c)))
#define EK_FIRST_8(row, c)                                                                       \
    a_##row##c = vpaddlq_s16(vmull_s8(vget_low_s8(x_##row), vld1_s8(w + 8 * (c))))
#define EK_ADD_8(row, c)                                                                         \
    a_##row##c =                                                                                 \
        vpadalq_s16(a_##row##c, vmull_s8(vget_low_s8(x_##row), vld1_s8(w + 8 * (c))))

#define EK_FIRST_16_2(row, c) EK_PLAIN_2_ROWS(EK_FIRST_16, c)
#define EK_ADD_16_2(row, c) EK_PLAIN_2_ROWS(EK_ADD_16, c)
#define EK_FIRST_8_2(row, c) EK_PLAIN_2_ROWS(EK_FIRST_8, c)
#define EK_ADD_8_2(row, c) EK_PLAIN_2_ROWS(EK_ADD_8, c)

/* 32-bit cores have half the registers: see below. */
#if !defined(__arm__)
static EK_INLINE void ek_two_rows_plain_neon(const ek_matmul_neon *m, const int8_t *rows,
                                             int8_t *output)
{
    const ek_output_neon *o = &m->output;
    const int32_t half = m->depth & 8;
    const int8_t *w = m->filter;
    for (int32_t c = 0; c < m->channels; c += 8) {
        int32x4_t a_00, a_01, a_02, a_03, a_04, a_05, a_06, a_07;
        int32x4_t a_10, a_11, a_12, a_13, a_14, a_15, a_16, a_17;
        int8x16_t x_0 = vld1q_s8(rows);
        int8x16_t x_1 = vld1q_s8(rows + m->stride);
        if (m->depth >= 16) {
            EK_PLAIN_CHANNELS(EK_FIRST_16_2, 0);
            w += 128;
            for (int32_t k = 16; k + 16 <= m->depth; k += 16) {
                x_0 = vld1q_s8(rows + k);
                x_1 = vld1q_s8(rows + m->stride + k);
                EK_PLAIN_CHANNELS(EK_ADD_16_2, 0);
                w += 128;
            }
            if (half) {
                x_0 = vld1q_s8(rows + m->stride - 16);
                x_1 = vld1q_s8(rows + 2 * m->stride - 16);
                EK_PLAIN_CHANNELS(EK_ADD_8_2, 0);
                w += 64;
            }
        } else {
            EK_PLAIN_CHANNELS(EK_FIRST_8_2, 0);
            w += 64;
        }
        {
            const int32x4_t low = vld1q_s32(o->bias + c);
            const int32x4_t high = vld1q_s32(o->bias + c + 4);
            const int32x4_t s_00 = vaddq_s32(low, ek_sums_neon(a_00, a_01, a_02, a_03));
            const int32x4_t s_01 = vaddq_s32(high, ek_sums_neon(a_04, a_05, a_06, a_07));
            const int32x4_t s_10 = vaddq_s32(low, ek_sums_neon(a_10, a_11, a_12, a_13));
            const int32x4_t s_11 = vaddq_s32(high, ek_sums_neon(a_14, a_15, a_16, a_17));
            const int8x16_t codes = ek_narrow_16_neon(
                o, ek_scale_channels_neon(o, c, s_00), ek_scale_channels_neon(o, c + 4, s_01),
                ek_scale_channels_neon(o, c, s_10), ek_scale_channels_neon(o, c + 4, s_11));
            ek_store_8_neon(output + c, vget_low_s8(codes), m->channels - c);
            ek_store_8_neon(output + m->channels + c, vget_high_s8(codes), m->channels - c);
        }
    }
}

#endif

static EK_INLINE void ek_one_row_plain_neon(const ek_matmul_neon *m, const int8_t *row,
                                            int8_t *output)
{
    const ek_output_neon *o = &m->output;
    const int32_t half = m->depth & 8;
    const int8_t *w = m->filter;
    for (int32_t c = 0; c < m->channels; c += 8) {
        int32x4_t a_00, a_01, a_02, a_03, a_04, a_05, a_06, a_07;
        int8x16_t x_0 = vld1q_s8(row);
        if (m->depth >= 16) {
            EK_PLAIN_CHANNELS(EK_FIRST_16, 0);
            w += 128;
            for (int32_t k = 16; k + 16 <= m->depth; k += 16) {
                x_0 = vld1q_s8(row + k);
                EK_PLAIN_CHANNELS(EK_ADD_16, 0);
                w += 128;
            }
            if (half) {
                x_0 = vld1q_s8(row + m->stride - 16);
                EK_PLAIN_CHANNELS(EK_ADD_8, 0);
                w += 64;
            }
        } else {
            EK_PLAIN_CHANNELS(EK_FIRST_8, 0);
            w += 64;
        }
        {
            const int32x4_t low = vaddq_s32(vld1q_s32(o->bias + c),
                                            ek_sums_neon(a_00, a_01, a_02, a_03));
            const int32x4_t high = vaddq_s32(vld1q_s32(o->bias + c + 4),
                                             ek_sums_neon(a_04, a_05, a_06, a_07));
            ek_store_8_neon(output + c,
                            ek_narrow_8_neon(o, ek_scale_channels_neon(o, c, low),
                                             ek_scale_channels_neon(o, c + 4, high)),
                            m->channels - c);
        }
    }
}

#if defined(__arm__)
static EK_INLINE void ek_two_rows_plain_neon(const ek_matmul_neon *m, const int8_t *rows,
                                             int8_t *output)
{
    ek_one_row_plain_neon(m, rows, output);
    ek_one_row_plain_neon(m, rows + m->stride, output + m->channels);
}
#endif

/* Sixteen inputs of a row with the four channels of tile t, whose weights are w_0 to w_3. */
#define EK_DOT_ROW(row, t)                                                                       \
    do {                                                                                         \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_0, x_##row, 0);                                   \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_1, x_##row, 1);                                   \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_2, x_##row, 2);                                   \
        a_##row##t = EK_DOT_LANE(a_##row##t, w_3, x_##row, 3);                                   \
    } while (0)

#define EK_DOT_WEIGHTS(t)                                                                        \
    const int8x16x4_t w_all = ek_load_64_neon(w + 64 * (t));                                     \
    const int8x16_t w_0 = w_all.val[0];                                                          \
    const int8x16_t w_1 = w_all.val[1];                                                          \
    const int8x16_t w_2 = w_all.val[2];                                                          \
    const int8x16_t w_3 = w_all.val[3]

#define EK_DOT_TILE_4(t)                                                                         \
    do {                                                                                         \
        EK_DOT_WEIGHTS(t);                                                                       \
        EK_DOT_ROW(0, t);                                                                        \
        EK_DOT_ROW(1, t);                                                                        \
        EK_DOT_ROW(2, t);                                                                        \
        EK_DOT_ROW(3, t);                                                                        \
        EK_ORDER_LOADS();                                                                        \
    } while (0)

#define EK_DOT_TILE_1(t)                                                                         \
    do {                                                                                         \
        EK_DOT_WEIGHTS(t);                                                                       \
        EK_DOT_ROW(0, t);                                                                        \
    } while (0)

/* The last inputs: group `lane` of four, tile by tile. */
#define EK_DOT_LEFT(row, t, lane)                                                                \
    a_##row##t = EK_DOT_LANE(a_##row##t, vld1q_s8(w + 16 * (t)), x_##row, lane)

#define EK_DOT_LEFT_1X4(lane) EK_DOT_LEFT(0, 0, lane)

#define EK_DOT_LEFT_1X16(lane)                                                                   \
    do {                                                                                         \
        EK_DOT_LEFT(0, 0, lane);                                                                 \
        EK_DOT_LEFT(0, 1, lane);                                                                 \
        EK_DOT_LEFT(0, 2, lane);                                                                 \
        EK_DOT_LEFT(0, 3, lane);                                                                 \
    } while (0)

#define EK_DOT_LEFT_4X1(t, lane)                                                                 \
    do {                                                                                         \
        EK_DOT_LEFT(0, t, lane);                                                                 \
        EK_DOT_LEFT(1, t, lane);                                                                 \
        EK_DOT_LEFT(2, t, lane);                                                                 \
        EK_DOT_LEFT(3, t, lane);                                                                 \
    } while (0)

#define EK_DOT_LEFT_4X4(lane) EK_DOT_LEFT_4X1(0, lane)

#define EK_DOT_LEFT_4X16(lane)                                                                   \
    do {                                                                                         \
        EK_DOT_LEFT_4X1(0, lane);                                                                \
        EK_DOT_LEFT_4X1(1, lane);                                                                \
        EK_DOT_LEFT_4X1(2, lane);                                                                \
        EK_DOT_LEFT_4X1(3, lane);                                                                \
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
    const int32_t whole = m->depth & ~15;
    const int32_t left = m->depth & 15;
    const int8_t *w = m->filter;
    int32_t c = 0;
    for (; c + 16 <= m->channels; c += 16) {
        const int32_t *bias = m->output.bias + c;
        int32x4_t a_00 = vld1q_s32(bias), a_01 = vld1q_s32(bias + 4);
        int32x4_t a_02 = vld1q_s32(bias + 8), a_03 = vld1q_s32(bias + 12);
        int32x4_t a_10 = a_00, a_11 = a_01, a_12 = a_02, a_13 = a_03;
        int32x4_t a_20 = a_00, a_21 = a_01, a_22 = a_02, a_23 = a_03;
        int32x4_t a_30 = a_00, a_31 = a_01, a_32 = a_02, a_33 = a_03;
        for (int32_t k = 0; k < whole; k += 16) {
            const int8x16_t x_0 = vld1q_s8(rows + k);
            const int8x16_t x_1 = vld1q_s8(rows + m->stride + k);
            const int8x16_t x_2 = vld1q_s8(rows + 2 * m->stride + k);
            const int8x16_t x_3 = vld1q_s8(rows + 3 * m->stride + k);
            EK_DOT_TILE_4(0);
            EK_DOT_TILE_4(1);
            EK_DOT_TILE_4(2);
            EK_DOT_TILE_4(3);
            w += 256;
        }
        if (left) {
            const int8x16_t x_0 = vld1q_s8(rows + whole);
            const int8x16_t x_1 = vld1q_s8(rows + m->stride + whole);
            const int8x16_t x_2 = vld1q_s8(rows + 2 * m->stride + whole);
            const int8x16_t x_3 = vld1q_s8(rows + 3 * m->stride + whole);
            EK_DOT_LEFT_4X16(0);
            w += 64;
            if (left > 4) {
                EK_DOT_LEFT_4X16(1);
                w += 64;
            }
            if (left > 8) {
                EK_DOT_LEFT_4X16(2);
                w += 64;
            }
        }
        ek_write_1x16_neon(m, c, a_00, a_01, a_02, a_03, output);
        ek_write_1x16_neon(m, c, a_10, a_11, a_12, a_13, output + m->channels);
        ek_write_1x16_neon(m, c, a_20, a_21, a_22, a_23, output + 2 * m->channels);
        ek_write_1x16_neon(m, c, a_30, a_31, a_32, a_33, output + 3 * m->channels);
    }
    for (; c < m->channels; c += 4) {
        int32x4_t a_00 = vld1q_s32(m->output.bias + c), a_10 = a_00, a_20 = a_00, a_30 = a_00;
        for (int32_t k = 0; k < whole; k += 16) {
            const int8x16_t x_0 = vld1q_s8(rows + k);
            const int8x16_t x_1 = vld1q_s8(rows + m->stride + k);
            const int8x16_t x_2 = vld1q_s8(rows + 2 * m->stride + k);
            const int8x16_t x_3 = vld1q_s8(rows + 3 * m->stride + k);
            EK_DOT_TILE_4(0);
            w += 64;
        }
        if (left) {
            const int8x16_t x_0 = vld1q_s8(rows + whole);
            const int8x16_t x_1 = vld1q_s8(rows + m->stride + whole);
            const int8x16_t x_2 = vld1q_s8(rows + 2 * m->stride + whole);
            const int8x16_t x_3 = vld1q_s8(rows + 3 * m->stride + whole);
            EK_DOT_LEFT_4X4(0);
            w += 16;
            if (left > 4) {
                EK_DOT_LEFT_4X4(1);
                w += 16;
            }
            if (left > 8) {
                EK_DOT_LEFT_4X4(2);
                w += 16;
            }
        }
        ek_write_4x4_neon(m, c, a_00, a_10, a_20, a_30, output);
    }
}

static EK_INLINE void ek_one_row_dot_neon(const ek_matmul_neon *m, const int8_t *row,
                                          int8_t *output)
{
    const int32_t whole = m->depth & ~15;
    const int32_t left = m->depth & 15;
    const int8_t *w = m->filter;
    int32_t c = 0;
    for (; c + 16 <= m->channels; c += 16) {
        const int32_t *bias = m->output.bias + c;
        int32x4_t a_00 = vld1q_s32(bias), a_01 = vld1q_s32(bias + 4);
        int32x4_t a_02 = vld1q_s32(bias + 8), a_03 = vld1q_s32(bias + 12);
        for (int32_t k = 0; k < whole; k += 16) {
            const int8x16_t x_0 = vld1q_s8(row + k);
            EK_DOT_TILE_1(0);
            EK_DOT_TILE_1(1);
            EK_DOT_TILE_1(2);
            EK_DOT_TILE_1(3);
            w += 256;
        }
        if (left) {
            const int8x16_t x_0 = vld1q_s8(row + whole);
            EK_DOT_LEFT_1X16(0);
            w += 64;
            if (left > 4) {
                EK_DOT_LEFT_1X16(1);
                w += 64;
            }
            if (left > 8) {
                EK_DOT_LEFT_1X16(2);
                w += 64;
            }
        }
        ek_write_1x16_neon(m, c, a_00, a_01, a_02, a_03, output);
    }
    for (; c < m->channels; c += 4) {
        int32x4_t a_00 = vld1q_s32(m->output.bias + c);
        for (int32_t k = 0; k < whole; k += 16) {
            const int8x16_t x_0 = vld1q_s8(row + k);
            EK_DOT_TILE_1(0);
            w += 64;
        }
        if (left) {
            const int8x16_t x_0 = vld1q_s8(row + whole);
            EK_DOT_LEFT_1X4(0);
            w += 16;
            if (left > 4) {
                EK_DOT_LEFT_1X4(1);
                w += 16;
            }
            if (left > 8) {
                EK_DOT_LEFT_1X4(2);
                w += 16;
            }
        }
        ek_write_1x4_neon(m, c, a_00, output);
    }
}

/* Multiplies up to ek_rows_neon rows, which lie stride bytes apart, and writes their outputs. */
static EK_INLINE void ek_multiply_rows_neon(const ek_matmul_neon *m, const int8_t *rows,
                                            int32_t count, int8_t *output)
{
    if (count == ek_rows_neon(m->dot)) {
        if (m->dot) {
            ek_four_rows_dot_neon(m, rows, output);
        } else {
            ek_two_rows_plain_neon(m, rows, output);
        }
        return;
    }
    for (int32_t row = 0; row < count; ++row) {
        if (m->dot) {
            ek_one_row_dot_neon(m, rows, output);
        } else {
            ek_one_row_plain_neon(m, rows, output);
        }
        rows += m->stride;
        output += m->channels;
    }
}

#endif
