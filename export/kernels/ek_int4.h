/* Signed 4-bit weights, two to a byte, the first in the low half. */
#ifndef EK_INT4_H
#define EK_INT4_H

#include "ek_common.h"

static EK_INLINE int32_t ek_low_nibble(int8_t pair)
{
    return ek_shift_left(pair, 28) >> 28;
}

static EK_INLINE int32_t ek_high_nibble(int8_t pair)
{
    return pair >> 4;
}

static EK_INLINE int32_t ek_int4_at(const EK_FLASH int8_t *pairs, int32_t index)
{
    return (index & 1) ? ek_high_nibble(pairs[index >> 1]) : ek_low_nibble(pairs[index >> 1]);
}

/* acc + sum of (x[i] + offset) * w[i], for weights that begin with a byte. */
static EK_INLINE int32_t ek_dot_s4(const int8_t *x, const EK_FLASH int8_t *pairs,
                                   int32_t length, int32_t offset, int32_t acc)
{
    int32_t i = 0;
    for (; i + 1 < length; i += 2) {
        const int8_t pair = pairs[i >> 1];
        acc += ((int32_t)x[i] + offset) * ek_low_nibble(pair);
        acc += ((int32_t)x[i + 1] + offset) * ek_high_nibble(pair);
    }
    if (i < length) {
        acc += ((int32_t)x[i] + offset) * ek_low_nibble(pairs[i >> 1]);
    }
    return acc;
}

#endif
