/* The inner product of the DSP kernels: two rows of inputs with two channels of weights.
 *
 * Inputs are widened: for every four of a row, the word of elements 0 and 2 and the word of
 * elements 1 and 3, as halves. Two rows are interleaved: rows[4i .. 4i+3] are the words of
 * row 0 and then of row 1 for the inputs 4i .. 4i+3.
 *
 * Weights of two channels share a half: 256 * w1 + w0, in the order of the inputs. One
 * multiplication by it gives 256 * S1 + S0, one by its low byte alone S0, and the difference
 * S1. The weights take as many bytes as before, and four products one instruction and a half.
 * Whoever packs them proves that 256 * S1 + S0 fits 32 bits for any input.
 */
#ifndef EK_MATMUL_DSP_H
#define EK_MATMUL_DSP_H

#include "ek_dsp.h"

#if EK_HAS_DSP
/* Four inputs, in r4 r5 (row 0) and r6 r8 (row 1), with two channels. */
#define EK_MATMUL_DSP_STEP                                                                       \
    "ldmia %[x]!, {r4, r5, r6, r8}\n\t"                                                           \
    "ldrd r9, r10, [%[w]], #8\n\t"                                                               \
    "smlad %[b0], r4, r9, %[b0]\n\t"                                                             \
    "smlad %[b1], r6, r9, %[b1]\n\t"                                                             \
    "sxtb16 r9, r9\n\t"                                                                          \
    "smlad %[b0], r5, r10, %[b0]\n\t"                                                            \
    "smlad %[b1], r8, r10, %[b1]\n\t"                                                            \
    "sxtb16 r10, r10\n\t"                                                                        \
    "smlad %[l0], r4, r9, %[l0]\n\t"                                                             \
    "smlad %[l1], r6, r9, %[l1]\n\t"                                                             \
    "smlad %[l0], r5, r10, %[l0]\n\t"                                                            \
    "smlad %[l1], r8, r10, %[l1]\n\t"
#endif

/* Sums of one channel pair with two rows, times two: that saves a shift each. */
typedef struct {
    int32_t row_0_channel_0;
    int32_t row_0_channel_1;
    int32_t row_1_channel_0;
    int32_t row_1_channel_1;
} ek_matmul_sums;

/* Advances *filter behind the weights of the pair. */
static EK_INLINE ek_matmul_sums ek_matmul_dsp(const uint32_t *rows, const uint32_t **filter,
                                              int32_t depth)
{
    const uint32_t *weights = *filter;
    int32_t both_0 = 0;
    int32_t both_1 = 0;
    int32_t low_0 = 0;
    int32_t low_1 = 0;
    ek_matmul_sums sums;
#if EK_HAS_DSP
    /* 12 instructions for 16 products, and the loop. Compilers neither load the four words of
     * inputs at once nor find registers for all of it. */
    int32_t steps = depth / 4 + 1; /* two at a time: an odd number begins in the middle */
    __asm__("lsrs %[n], %[n], #1\n\t"
            "bcc 2f\n"
            "1:\n\t" EK_MATMUL_DSP_STEP "2:\n\t" EK_MATMUL_DSP_STEP
            "subs %[n], %[n], #1\n\t"
            "bne 1b\n\t"
            : [x] "+r"(rows), [w] "+r"(weights), [b0] "+r"(both_0), [b1] "+r"(both_1),
              [l0] "+r"(low_0), [l1] "+r"(low_1), [n] "+r"(steps)
            :
            : "r4", "r5", "r6", "r8", "r9", "r10", "cc", "memory");
#else
    for (int32_t i = 0; i < depth / 4; ++i) {
        const uint32_t low_even = ek_even_bytes(weights[0]);
        const uint32_t low_odd = ek_even_bytes(weights[1]);
        both_0 = ek_smlad(rows[1], weights[1], ek_smlad(rows[0], weights[0], both_0));
        both_1 = ek_smlad(rows[3], weights[1], ek_smlad(rows[2], weights[0], both_1));
        low_0 = ek_smlad(rows[1], low_odd, ek_smlad(rows[0], low_even, low_0));
        low_1 = ek_smlad(rows[3], low_odd, ek_smlad(rows[2], low_even, low_1));
        rows += 4;
        weights += 2;
    }
#endif
    *filter = weights;
    sums.row_0_channel_0 = 2 * low_0;
    sums.row_0_channel_1 = (both_0 - low_0) >> 7; /* a multiple of 256 */
    sums.row_1_channel_0 = 2 * low_1;
    sums.row_1_channel_1 = (both_1 - low_1) >> 7;
    return sums;
}

#if EK_HAS_DSP
/* As EK_MATMUL_DSP_STEP, with weights of 4 bits. */
#define EK_MATMUL_DSP_S4_STEP                                                                    \
    "ldmia %[x]!, {r4, r5, r6, r8}\n\t"                                                           \
    "ldr r9, [%[w]], #4\n\t"                                                                     \
    "uxtb16 r10, r9\n\t"                                                                         \
    "uxtb16 r9, r9, ror #8\n\t"                                                                  \
    "smlad %[b0], r4, r10, %[b0]\n\t"                                                            \
    "smlad %[b1], r6, r10, %[b1]\n\t"                                                            \
    "and r10, r10, #0x000F000F\n\t"                                                              \
    "smlad %[b0], r5, r9, %[b0]\n\t"                                                             \
    "smlad %[b1], r8, r9, %[b1]\n\t"                                                             \
    "and r9, r9, #0x000F000F\n\t"                                                                \
    "smlad %[l0], r4, r10, %[l0]\n\t"                                                            \
    "smlad %[l1], r6, r10, %[l1]\n\t"                                                            \
    "smlad %[l0], r5, r9, %[l0]\n\t"                                                             \
    "smlad %[l1], r8, r9, %[l1]\n\t"
#endif

/* Sums of the inputs of two rows. */
typedef struct {
    int32_t row_0;
    int32_t row_1;
} ek_row_sums;

static EK_INLINE ek_row_sums ek_sum_rows_dsp(const uint32_t *rows, int32_t depth)
{
    const uint32_t ones = 0x00010001u;
    ek_row_sums sums = {0, 0};
    for (int32_t i = 0; i < depth; i += 4) {
        sums.row_0 = ek_smlad(rows[1], ones, ek_smlad(rows[0], ones, sums.row_0));
        sums.row_1 = ek_smlad(rows[3], ones, ek_smlad(rows[2], ones, sums.row_1));
        rows += 4;
    }
    return sums;
}

/* ek_matmul_dsp with weights of 4 bits: a byte holds 16 * (w1 + 8) + w0 + 8, a word four inputs in
 * their order. The eights are taken off again by the sums of the inputs. */
static EK_INLINE ek_matmul_sums ek_matmul_dsp_s4(const uint32_t *rows, const uint32_t **filter,
                                                 int32_t depth, ek_row_sums inputs)
{
    const uint32_t *weights = *filter;
    int32_t both_0 = 0;
    int32_t both_1 = 0;
    int32_t low_0 = 0;
    int32_t low_1 = 0;
    ek_matmul_sums sums;
#if EK_HAS_DSP
    /* 14 instructions for 16 products, and the loop. */
    int32_t steps = depth / 4 + 1;
    __asm__("lsrs %[n], %[n], #1\n\t"
            "bcc 2f\n"
            "1:\n\t" EK_MATMUL_DSP_S4_STEP "2:\n\t" EK_MATMUL_DSP_S4_STEP
            "subs %[n], %[n], #1\n\t"
            "bne 1b\n\t"
            : [x] "+r"(rows), [w] "+r"(weights), [b0] "+r"(both_0), [b1] "+r"(both_1),
              [l0] "+r"(low_0), [l1] "+r"(low_1), [n] "+r"(steps)
            :
            : "r4", "r5", "r6", "r8", "r9", "r10", "cc", "memory");
#else
    for (int32_t i = 0; i < depth / 4; ++i) {
        const uint32_t even = *weights & 0x00FF00FFu;
        const uint32_t odd = (*weights >> 8) & 0x00FF00FFu;
        both_0 = ek_smlad(rows[1], odd, ek_smlad(rows[0], even, both_0));
        both_1 = ek_smlad(rows[3], odd, ek_smlad(rows[2], even, both_1));
        low_0 = ek_smlad(rows[1], odd & 0x000F000Fu, ek_smlad(rows[0], even & 0x000F000Fu, low_0));
        low_1 = ek_smlad(rows[3], odd & 0x000F000Fu, ek_smlad(rows[2], even & 0x000F000Fu, low_1));
        rows += 4;
        weights += 1;
    }
#endif
    *filter = weights;
    sums.row_0_channel_0 = 2 * low_0 - 16 * inputs.row_0;
    sums.row_0_channel_1 = ((both_0 - low_0) >> 3) - 16 * inputs.row_0; /* a multiple of 16 */
    sums.row_1_channel_0 = 2 * low_1 - 16 * inputs.row_1;
    sums.row_1_channel_1 = ((both_1 - low_1) >> 3) - 16 * inputs.row_1;
    return sums;
}

/* Widens `length` inputs (a multiple of 4) of one row; `rows` points to the row's first word.
 * Returns where the row goes on. */
static EK_INLINE uint32_t *ek_widen_row(uint32_t *rows, const int8_t *input, int32_t length)
{
    const int8_t *const end = input + length;
#if EK_HAS_DSP
    if (length % 8 != 0) {
        const uint32_t word = ek_load_word(input);
        rows[0] = ek_even_bytes(word);
        rows[1] = ek_odd_bytes(word);
        rows += 4;
        input += 4;
    }
    if (input != end) {
        __asm__ volatile(
                "1:\n\t"
                "ldr r4, [%[x]], #4\n\t"
                "ldr r6, [%[x]], #4\n\t"
                "sxtb16 r5, r4, ror #8\n\t"
                "sxtb16 r4, r4\n\t"
                "strd r4, r5, [%[rows]], #16\n\t"
                "sxtb16 r8, r6, ror #8\n\t"
                "sxtb16 r6, r6\n\t"
                "cmp %[x], %[end]\n\t"
                "strd r6, r8, [%[rows]], #16\n\t"
                "bne 1b\n\t"
                : [x] "+r"(input), [rows] "+r"(rows)
                : [end] "r"(end)
                : "r4", "r5", "r6", "r8", "cc", "memory");
    }
    return rows;
#endif
    while (input != end) {
        const uint32_t word = ek_load_word(input);
        rows[0] = ek_even_bytes(word);
        rows[1] = ek_odd_bytes(word);
        rows += 4;
        input += 4;
    }
    return rows;
}

/* Fills `length` inputs (a multiple of 4) of one row with one value, given twice as halves. */
static EK_INLINE uint32_t *ek_fill_row(uint32_t *rows, uint32_t value, int32_t length)
{
    for (int32_t i = 0; i < length; i += 4) {
        rows[0] = value;
        rows[1] = value;
        rows += 4;
    }
    return rows;
}

/* Requantizes and writes one channel of two rows; sums and bias come times two. */
static EK_INLINE void ek_write_two_dsp(int8_t *y1, int8_t *y0, int32_t twice_1, int32_t twice_0,
                                       int32_t twice_bias, int32_t multiplier, int32_t right,
                                       int32_t zero_point, int32_t low, int32_t high)
{
    *y1 = ek_requantize_twice_dsp(twice_1 + twice_bias, multiplier, right, zero_point, low, high);
    *y0 = ek_requantize_twice_dsp(twice_0 + twice_bias, multiplier, right, zero_point, low, high);
}

/* Multiplies two widened rows with all channels and writes their outputs; the second row's
 * only where `second` is 1. depth counts the inputs of a row (a multiple of 4); filter holds
 * depth / 2 words for each pair of channels. */
static EK_INLINE void ek_matmul_dsp_rows(int32_t weight_bits, const uint32_t *rows, int32_t depth,
                                         int32_t channels, const uint32_t *filter,
                                         const int32_t *twice_bias, const int32_t *multiplier,
                                         const int8_t *right_shift, int32_t zero_point, int32_t low,
                                         int32_t high, int8_t *output, int32_t second)
{
    const ek_row_sums inputs = ek_sum_rows_dsp(rows, weight_bits == 4 ? depth : 0);
    int8_t *y0 = output;
    int8_t *y1 = output + (second ? channels : 0);
    for (int32_t c = 0; c < channels; c += 2) {
        const ek_matmul_sums sums = weight_bits == 4
                                        ? ek_matmul_dsp_s4(rows, &filter, depth, inputs)
                                        : ek_matmul_dsp(rows, &filter, depth);
        /* Row 1 first: where there is none, row 0 overwrites what it left. */
        ek_write_two_dsp(y1 + c, y0 + c, sums.row_1_channel_0, sums.row_0_channel_0, twice_bias[c],
                         multiplier[c], right_shift[c], zero_point, low, high);
        if (c != channels - 1) {
            ek_write_two_dsp(y1 + c + 1, y0 + c + 1, sums.row_1_channel_1, sums.row_0_channel_1,
                             twice_bias[c + 1], multiplier[c + 1], right_shift[c + 1], zero_point,
                             low, high);
        }
    }
}

static EK_NOINLINE void ek_matmul_dsp_write(const uint32_t *rows, int32_t depth, int32_t channels,
                                            const uint32_t *filter, const int32_t *twice_bias,
                                            const int32_t *multiplier, const int8_t *right_shift,
                                            int32_t zero_point, int32_t low, int32_t high,
                                            int8_t *output, int32_t second)
{
    ek_matmul_dsp_rows(8, rows, depth, channels, filter, twice_bias, multiplier, right_shift, zero_point,
                       low, high, output, second);
}

/* The same with weights of 4 bits: depth / 4 words for each pair of channels. */
static EK_NOINLINE void ek_matmul_dsp_write_s4(const uint32_t *rows, int32_t depth,
                                               int32_t channels, const uint32_t *filter,
                                               const int32_t *twice_bias, const int32_t *multiplier,
                                               const int8_t *right_shift, int32_t zero_point,
                                               int32_t low, int32_t high, int8_t *output,
                                               int32_t second)
{
    ek_matmul_dsp_rows(4, rows, depth, channels, filter, twice_bias, multiplier, right_shift, zero_point,
                       low, high, output, second);
}

#endif
