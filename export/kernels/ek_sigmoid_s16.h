/* LOGISTIC and TANH, int16: interpolation in a table of the sigmoid.
 *
 * input    int16 [length], zero point 0
 * table    uint16 [256], entry i is the sigmoid of i / 24 as a fraction of 2^16
 * output   int16 [length], scale 1/32768, zero point 0; may be the input
 * multiplier (at most 15 bits) and shift bring the input to the scale 1 / (3 * 4096).
 * Rounding: halves up, of the scaled input and of the interpolated output.
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_SIGMOID_S16_H
#define EK_SIGMOID_S16_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    int32_t multiplier;
    int32_t shift;
    const EK_FLASH uint16_t *table;
} ek_sigmoid_s16_params;

typedef ek_sigmoid_s16_params ek_logistic_s16_params;
typedef ek_sigmoid_s16_params ek_tanh_s16_params;

static EK_INLINE int32_t ek_sigmoid_argument(const ek_sigmoid_s16_params *p, int32_t x)
{
    return (x * p->multiplier + (int32_t)(((uint32_t)1 << p->shift) >> 1)) >> p->shift;
}

/* The table at x / 2^bits, times 2^bits; `saturated` where the table ends. */
static EK_INLINE int32_t ek_interpolate_sigmoid(const EK_FLASH uint16_t *table, int32_t x,
                                                int32_t bits, int32_t saturated)
{
    const int32_t entry = x >> bits;
    if (entry >= 255) {
        return saturated;
    }
    {
        const int32_t here = table[entry];
        const int32_t next = table[entry + 1];
        return here * ((int32_t)1 << bits) + (x & ((1 << bits) - 1)) * (next - here);
    }
}

/* The sigmoid of x / (3 * 4096), times 2^15. */
static EK_INLINE int16_t ek_logistic_of_s16(const EK_FLASH uint16_t *table, int32_t x)
{
    const int32_t size = x < 0 ? -x : x;
    const int32_t y = ek_interpolate_sigmoid(table, size, 9, (int32_t)0x7FFF * 1024);
    return (int16_t)((x < 0 ? ((int32_t)1 << 25) - y + (1 << 9) - 1 : y + (1 << 9)) >> 10);
}

/* tanh(x / (3 * 4096)) times 2^15: tanh(x) is 2 * sigmoid(2 * x) - 1. */
static EK_INLINE int16_t ek_tanh_of_s16(const EK_FLASH uint16_t *table, int32_t x)
{
    const int32_t size = x < 0 ? -x : x;
    const int32_t sigmoid = ek_interpolate_sigmoid(table, size, 8, (int32_t)0xFFFF * 256);
    const int32_t y = sigmoid - ((int32_t)1 << 23);
    return (int16_t)((x < 0 ? -y + (1 << 7) - 1 : y + (1 << 7)) >> 8);
}

static EK_INLINE void ek_logistic_s16(const ek_sigmoid_s16_params *p, const int16_t *input,
                                      int16_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        output[i] = ek_logistic_of_s16(p->table, ek_sigmoid_argument(p, input[i]));
    }
}

static EK_INLINE void ek_tanh_s16(const ek_sigmoid_s16_params *p, const int16_t *input,
                                  int16_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        output[i] = ek_tanh_of_s16(p->table, ek_sigmoid_argument(p, input[i]));
    }
}

#endif
