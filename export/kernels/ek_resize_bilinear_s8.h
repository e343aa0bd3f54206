/* RESIZE_BILINEAR, int8, without floating point.
 *
 * input    int8 [batches, input_height, input_width, channels]
 * output   int8 [batches, output_height, output_width, channels], same scale and zero point
 * Row y of the output lies at y * height_scale + height_offset of the input, in 1/1024 of a row;
 * columns alike. The caller has proved that no such place is at or after the end of the input's
 * last row or column. Rounded to the nearest, halves away from zero.
 */
#ifndef EK_RESIZE_BILINEAR_S8_H
#define EK_RESIZE_BILINEAR_S8_H

#include "ek_common.h"

typedef struct {
    int32_t batches;
    int32_t input_height;
    int32_t input_width;
    int32_t channels;
    int32_t output_height;
    int32_t output_width;
    int32_t height_scale;
    int32_t width_scale;
    int32_t height_offset;
    int32_t width_offset;
} ek_resize_bilinear_s8_params;

/* The two rows or columns that a place lies between, and how far from the first, in 1/1024. */
typedef struct {
    int32_t low;
    int32_t high;
    int32_t fraction;
} ek_resize_place;

static EK_INLINE ek_resize_place ek_resize_at(int32_t place, int32_t size)
{
    ek_resize_place at;
    at.low = ek_max_s32(place / 1024, 0);
    at.high = ek_min_s32((place + 1023) / 1024, size - 1);
    at.fraction = place - 1024 * at.low;
    return at;
}

/* One pixel, from the two rows and the place in them. */
static EK_INLINE void ek_resize_pixel(const int8_t *low, const int8_t *high,
                                      const ek_resize_place *y, const ek_resize_place *x,
                                      int32_t channels, int8_t *output)
{
    const int32_t half = (int32_t)1 << 19;
    const int32_t weight_ll = (1024 - y->fraction) * (1024 - x->fraction);
    const int32_t weight_hl = y->fraction * (1024 - x->fraction);
    const int32_t weight_lh = (1024 - y->fraction) * x->fraction;
    const int32_t weight_hh = y->fraction * x->fraction;
    for (int32_t i = 0; i < channels; ++i) {
        const int32_t sum =
            low[x->low * channels + i] * weight_ll + high[x->low * channels + i] * weight_hl +
            low[x->high * channels + i] * weight_lh + high[x->high * channels + i] * weight_hh;
        output[i] = (int8_t)((sum + (sum > 0 ? half : -half)) / (2 * half));
    }
}

static EK_INLINE void ek_resize_bilinear_s8(const ek_resize_bilinear_s8_params *p,
                                            const int8_t *input, int8_t *output)
{
    const int32_t row = p->input_width * p->channels;
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t i = 0; i < p->output_height; ++i) {
            const ek_resize_place y =
                ek_resize_at(i * p->height_scale + p->height_offset, p->input_height);
            for (int32_t j = 0; j < p->output_width; ++j) {
                const ek_resize_place x =
                    ek_resize_at(j * p->width_scale + p->width_offset, p->input_width);
                ek_resize_pixel(input + y.low * row, input + y.high * row, &y, &x, p->channels,
                                output);
                output += p->channels;
            }
        }
        input += p->input_height * row;
    }
}

#endif
