/* GATHER, any type: slices of a tensor, chosen by indices that are constant or computed.
 *
 * input    bytes [batches, outer, axis_size, slice_bytes]
 * indices  int32 [batches, indices_per_batch]
 * output   bytes [batches, outer, indices_per_batch, slice_bytes]
 * An index outside of [0, axis_size - 1] is taken as the nearest one inside, so that no input
 * makes the kernel read elsewhere.
 */
#ifndef EK_GATHER_H
#define EK_GATHER_H

#include "ek_common.h"

typedef struct {
    int32_t batches;
    int32_t outer;
    int32_t axis_size;
    int32_t slice_bytes;
    int32_t indices_per_batch;
} ek_gather_params;

static EK_INLINE void ek_gather(const ek_gather_params *p, const int8_t *input,
                                const int8_t *indices, int8_t *output)
{
    for (int32_t batch = 0; batch < p->batches; ++batch) {
        for (int32_t outer = 0; outer < p->outer; ++outer) {
            for (int32_t i = 0; i < p->indices_per_batch; ++i) {
                int32_t index;
                memcpy(&index, indices + i * 4, sizeof(index));
                index = ek_min_s32(ek_max_s32(index, 0), p->axis_size - 1);
                memcpy(output, input + index * p->slice_bytes, (size_t)p->slice_bytes);
                output += p->slice_bytes;
            }
            input += p->axis_size * p->slice_bytes;
        }
        indices += p->indices_per_batch * 4;
    }
}

#endif
