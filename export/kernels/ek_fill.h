/* ZEROS_LIKE: one byte, repeated.
 *
 * output   bytes
 */
#ifndef EK_FILL_H
#define EK_FILL_H

#include "ek_common.h"

typedef struct {
    int32_t bytes;
    int32_t value;
} ek_fill_params;

static EK_INLINE void ek_fill(const ek_fill_params *p, int8_t *output)
{
    memset(output, (int)p->value, (size_t)p->bytes);
}

#endif
