/* A value that is known ahead of time, where it has to lie in the arena: SHAPE as model output.
 *
 * value    bytes
 * output   as many
 */
#ifndef EK_CONSTANT_H
#define EK_CONSTANT_H

#include "ek_common.h"

typedef struct {
    int32_t bytes;
    const EK_FLASH int8_t *value;
} ek_constant_params;

static EK_INLINE void ek_constant(const ek_constant_params *p, int8_t *output)
{
    ek_copy_table(output, p->value, (size_t)p->bytes);
}

#endif
