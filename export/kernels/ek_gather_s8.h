/* Gathers the inputs under one window of a convolution.
 *
 * input    int8 [input_height, input_width, channels]
 * window   int8 [filter_height, filter_width, channels]; taps outside of the input are zero_point
 * No dilation along the width.
 */
#ifndef EK_GATHER_S8_H
#define EK_GATHER_S8_H

#include "ek_common.h"

typedef struct {
    int32_t input_height;
    int32_t input_width;
    int32_t channels;
    int32_t zero_point;
    int32_t filter_height;
    int32_t filter_width;
    int32_t dilation_height;
} ek_gather_s8;

static EK_INLINE int8_t *ek_gather_copy(int8_t *to, const int8_t *from, int32_t length)
{
    memcpy(to, from, (size_t)length);
    return to + length;
}

static EK_INLINE int8_t *ek_gather_fill(int8_t *to, int32_t value, int32_t length)
{
    memset(to, (int)value, (size_t)length);
    return to + length;
}

/* in_y and in_x: the place of the window's first tap, which may lie before the input. */
static EK_INLINE void ek_gather_window_s8(const ek_gather_s8 *p, const int8_t *input, int32_t in_y,
                                          int32_t in_x, int8_t *window)
{
    const int32_t row = p->filter_width * p->channels;
    const int32_t first_x = ek_min_s32(ek_max_s32(0, -in_x), p->filter_width);
    const int32_t last_x = ek_max_s32(ek_min_s32(p->filter_width, p->input_width - in_x), first_x);
    for (int32_t tap_y = 0; tap_y < p->filter_height; ++tap_y) {
        const int32_t y = in_y + tap_y * p->dilation_height;
        const int8_t *x = input + (y * p->input_width + in_x + first_x) * p->channels;
        if (y < 0 || y >= p->input_height) {
            window = ek_gather_fill(window, p->zero_point, row);
        } else if (last_x - first_x == p->filter_width) {
            window = ek_gather_copy(window, x, row);
        } else {
            window = ek_gather_fill(window, p->zero_point, first_x * p->channels);
            window = ek_gather_copy(window, x, (last_x - first_x) * p->channels);
            window = ek_gather_fill(window, p->zero_point,
                                    (p->filter_width - last_x) * p->channels);
        }
    }
}

#endif
