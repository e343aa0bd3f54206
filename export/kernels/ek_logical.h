/* LOGICAL_AND and LOGICAL_OR with broadcasting, and LOGICAL_NOT.
 *
 * inputs   bool: 0 or 1; broadcast to the output's shape
 * output   bool [size_0, size_1, size_2, size_3] or [length]; may be an input of its size
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_LOGICAL_H
#define EK_LOGICAL_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
} ek_logical_params;

typedef ek_logical_params ek_logical_and_params;
typedef ek_logical_params ek_logical_or_params;

typedef struct {
    int32_t length;
} ek_logical_not_params;

static EK_INLINE void ek_logical_and(const ek_logical_params *p, const uint8_t *input_1,
                                     const uint8_t *input_2, uint8_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = input_1[i] && input_2[j] ? 1 : 0;
    }
}

static EK_INLINE void ek_logical_or(const ek_logical_params *p, const uint8_t *input_1,
                                    const uint8_t *input_2, uint8_t *output)
{
    EK_FOR_EACH_PAIR(p, i, j, k)
    {
        output[k] = input_1[i] || input_2[j] ? 1 : 0;
    }
}

static EK_INLINE void ek_logical_not(const ek_logical_not_params *p, const uint8_t *input,
                                     uint8_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        output[i] = input[i] ? 0 : 1;
    }
}

#endif
