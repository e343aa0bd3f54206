/* GATHER_ND, any type: slices of a tensor, chosen by tuples of indices.
 *
 * input    bytes [sizes[0], …, sizes[depth - 1], slice_bytes]
 * indices  int32 [tuples, depth]
 * output   bytes [tuples, slice_bytes]
 * An index outside of its dimension is taken as the nearest one inside, so that no input makes
 * the kernel read elsewhere.
 */
#ifndef EK_GATHER_ND_H
#define EK_GATHER_ND_H

#include "ek_common.h"

typedef struct {
    int32_t tuples;
    int32_t depth;
    int32_t slice_bytes;
    const EK_FLASH int32_t *sizes;
} ek_gather_nd_params;

static EK_INLINE void ek_gather_nd(const ek_gather_nd_params *p, const int8_t *input,
                                   const int8_t *indices, int8_t *output)
{
    for (int32_t i = 0; i < p->tuples; ++i) {
        int32_t place = 0;
        for (int32_t j = 0; j < p->depth; ++j) {
            int32_t index;
            memcpy(&index, indices, sizeof(index));
            indices += 4;
            place = place * p->sizes[j] + ek_min_s32(ek_max_s32(index, 0), p->sizes[j] - 1);
        }
        memcpy(output, input + place * p->slice_bytes, (size_t)p->slice_bytes);
        output += p->slice_bytes;
    }
}

#endif
