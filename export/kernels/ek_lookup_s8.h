/* LOGISTIC and TANH, int8: any function of one code, from a table made ahead of time.
 *
 * input    int8 [length]
 * table    int8 [256], entry i is the output for the code i - 128
 * output   int8 [length]; may be the input
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_LOOKUP_S8_H
#define EK_LOOKUP_S8_H

#include "ek_common.h"

typedef struct {
    int32_t length;
    const EK_FLASH int8_t *table;
} ek_lookup_s8_params;

static EK_INLINE void ek_lookup_s8(const ek_lookup_s8_params *p, const int8_t *input,
                                   int8_t *output)
{
    for (int32_t i = 0; i < p->length; ++i) {
        output[i] = p->table[input[i] + 128];
    }
}

#endif
