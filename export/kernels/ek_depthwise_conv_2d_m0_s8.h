/* DEPTHWISE_CONV_2D, int8, for Armv6-M: four channels at a time; any filter, stride, dilation
 * and padding; one batch, depth multiplier 1.
 *
 * input        int8 [input_height, input_width, channels], channels a multiple of 4
 * filter       int8 [filter_height, filter_width, channels]
 * scales       int32 [channels, 3]: the bias less input_zero_point * sum(filter) of the channel,
 *              the multiplier, the right shift in [1, 22]
 * output       int8 [output_height, output_width, channels]
 * Taps outside of the input read its zero point. Rounding: ek_requantize_m0.
 * Order: outputs in memory order, four channels at a time; they are written after their
 * windows were read.
 */
#ifndef EK_DEPTHWISE_CONV_2D_M0_S8_H
#define EK_DEPTHWISE_CONV_2D_M0_S8_H

#include "ek_m0.h"

typedef struct {
    int32_t input_height;
    int32_t input_width;
    int32_t channels;
    int32_t input_zero_point;
    int32_t filter_height;
    int32_t filter_width;
    int32_t output_height;
    int32_t output_width;
    int32_t stride_height;
    int32_t stride_width;
    int32_t dilation_height;
    int32_t dilation_width;
    int32_t pad_top;
    int32_t pad_left;
    int32_t output_zero_point;
    int32_t activation_min;
    int32_t activation_max;
    const int8_t *filter;
    const int32_t *scales;
} ek_depthwise_conv_2d_m0_s8_params;

/* Where the taps of a window lie, in bytes. */
typedef struct {
    int32_t rows;
    int32_t taps;
    int32_t x_step;
    int32_t w_step;
    int32_t x_skip; /* from the end of a row to the next one's begin */
    int32_t w_skip;
} ek_window_m0;

/* sums[c] += sum over all taps of x[c] * w[c], for four neighbouring channels */
#if EK_HAS_M0
#define EK_M0_TAP(index, sum)                                                                    \
    "ldrsb r2, [r0, " index "]\n\tldrsb r3, [r1, " index "]\n\tmuls r3, r2\n\tadd " sum ", r3\n\t"

__attribute__((naked)) static EK_NOINLINE void ek_depthwise_4_m0(
    __attribute__((unused)) const int8_t *x, __attribute__((unused)) const int8_t *w,
    __attribute__((unused)) const ek_window_m0 *window, __attribute__((unused)) int32_t *sums)
{
    __asm__ volatile(".syntax unified\n\t"
                     "push {r2, r3, r4, r5, r6, r7, lr}\n\t"
                     "mov r4, r8\n\tmov r5, r9\n\tmov r6, r10\n\tmov r7, r11\n\t"
                     "push {r4, r5, r6, r7}\n\t"
                     "ldmia r3!, {r4, r5, r6, r7}\n\t"
                     "mov r8, r4\n\tmov r9, r5\n\tmov r10, r6\n\tmov r11, r7\n\t"
                     "ldmia r2!, {r4, r5, r6, r7}\n\t" /* rows, taps, steps */
                     "push {r4}\n\tmov r12, r6\n\tmov lr, r7\n\t"
                     "movs r4, #1\n\tmovs r5, #2\n\tmovs r6, #3\n"
                     "1:\n\t"
                     "ldr r7, [sp, #20]\n\tldr r7, [r7, #4]\n" /* taps */
                     "2:\n\t"
                     "ldrb r2, [r0]\n\tldrb r3, [r1]\n\tsxtb r2, r2\n\tsxtb r3, r3\n\t"
                     "muls r3, r2\n\tadd r8, r3\n\t"
                     EK_M0_TAP("r4", "r9") EK_M0_TAP("r5", "r10") EK_M0_TAP("r6", "r11")
                     "add r0, r12\n\tadd r1, lr\n\t"
                     "subs r7, #1\n\t"
                     "bne 2b\n\t"
                     "ldr r2, [sp, #20]\n\t"
                     "ldr r3, [r2, #16]\n\tadds r0, r0, r3\n\t"
                     "ldr r3, [r2, #20]\n\tadds r1, r1, r3\n\t"
                     "ldr r2, [sp]\n\tsubs r2, #1\n\tstr r2, [sp]\n\t"
                     "bne 1b\n\t"
                     "ldr r0, [sp, #24]\n\t"
                     "mov r4, r8\n\tmov r5, r9\n\tmov r6, r10\n\tmov r7, r11\n\t"
                     "stmia r0!, {r4, r5, r6, r7}\n\t"
                     "pop {r3, r4, r5, r6, r7}\n\t"
                     "mov r8, r4\n\tmov r9, r5\n\tmov r10, r6\n\tmov r11, r7\n\t"
                     "pop {r2, r3, r4, r5, r6, r7, pc}\n\t");
}
#else
static EK_INLINE void ek_depthwise_4_m0(const int8_t *x, const int8_t *w,
                                        const ek_window_m0 *window, int32_t *sums)
{
    for (int32_t row = 0; row < window->rows; ++row) {
        for (int32_t tap = 0; tap < window->taps; ++tap) {
            for (int32_t c = 0; c < 4; ++c) {
                sums[c] += (int32_t)x[tap * window->x_step + c] * w[c];
            }
            w += window->w_step;
        }
        x += window->taps * window->x_step + window->x_skip;
        w += window->w_skip;
    }
}
#endif

/* The part of the filter that begins at a row and a tap, with inputs x_step and x_row apart. */
static EK_INLINE void ek_depthwise_part_m0(const ek_depthwise_conv_2d_m0_s8_params *p,
                                           const int8_t *x, int32_t x_step, int32_t x_row,
                                           int32_t row, int32_t rows, int32_t tap, int32_t taps,
                                           int32_t channel, int32_t *sums)
{
    if (rows > 0 && taps > 0) {
        const ek_window_m0 window = {rows,
                                     taps,
                                     x_step,
                                     p->channels,
                                     x_row - taps * x_step,
                                     (p->filter_width - taps) * p->channels};
        const int32_t first = (row * p->filter_width + tap) * p->channels + channel;
        ek_depthwise_4_m0(x, p->filter + first, &window, sums);
    }
}

static EK_INLINE void ek_depthwise_conv_2d_m0_s8(const ek_depthwise_conv_2d_m0_s8_params *p,
                                                 const int8_t *input, int8_t *output)
{
    const int8_t zero = (int8_t)p->input_zero_point;
    const int8_t zeros[4] = {zero, zero, zero, zero};
    const ek_scale_m0 *const scales = (const ek_scale_m0 *)p->scales;
    const ek_range_m0 range =
        ek_make_range_m0(p->output_zero_point, p->activation_min, p->activation_max);
    const int32_t x_step = p->dilation_width * p->channels;
    const int32_t x_row = p->dilation_height * p->input_width * p->channels;
    for (int32_t out_y = 0; out_y < p->output_height; ++out_y) {
        const int32_t in_y = out_y * p->stride_height - p->pad_top;
        const int32_t first_y = ek_min_s32(ek_first_tap(in_y, p->dilation_height), p->filter_height);
        const int32_t last_y = ek_max_s32(
            ek_last_tap(in_y, p->dilation_height, p->filter_height, p->input_height), first_y);
        for (int32_t out_x = 0; out_x < p->output_width; ++out_x) {
            const int32_t in_x = out_x * p->stride_width - p->pad_left;
            const int32_t first_x =
                ek_min_s32(ek_first_tap(in_x, p->dilation_width), p->filter_width);
            const int32_t last_x = ek_max_s32(
                ek_last_tap(in_x, p->dilation_width, p->filter_width, p->input_width), first_x);
            const int32_t rows = last_y - first_y;
            const int32_t taps = last_x - first_x;
            const int is_whole = rows == p->filter_height && taps == p->filter_width;
            const int8_t *x = input
                              + ((in_y + first_y * p->dilation_height) * p->input_width + in_x
                                 + first_x * p->dilation_width)
                                    * p->channels;
            for (int32_t c = 0; c < p->channels; c += 4) {
                int32_t sums[4] = {0, 0, 0, 0};
                ek_depthwise_part_m0(p, x + c, x_step, x_row, first_y, rows, first_x, taps, c, sums);
                if (!is_whole) { /* above, below, left and right of it */
                    ek_depthwise_part_m0(p, zeros, 0, 0, 0, first_y, 0, p->filter_width, c, sums);
                    ek_depthwise_part_m0(p, zeros, 0, 0, last_y, p->filter_height - last_y, 0,
                                         p->filter_width, c, sums);
                    ek_depthwise_part_m0(p, zeros, 0, 0, first_y, rows, 0, first_x, c, sums);
                    ek_depthwise_part_m0(p, zeros, 0, 0, first_y, rows, last_x,
                                         p->filter_width - last_x, c, sums);
                }
                ek_requantize_m0(sums, scales + c, &range, output, 4);
                output += 4;
            }
        }
    }
}

#endif
