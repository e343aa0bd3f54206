/* TRANSPOSE, STRIDED_SLICE, SPLIT, TILE and all else that only moves bytes: runs of bytes, read
 * and written at steps of their own in up to six dimensions.
 *
 * input    where the first run is read; steps may be 0 (repeat) or negative (backwards)
 * output   where the first run is written
 * run      bytes that stay together: one element or more
 * unit     the same when it is 1, 2 or 4, which compiles to a load and a store; 0 otherwise
 * Order: as the loops say, the last dimension fastest. A run is read whole before it is
 * written, so that it may lie over itself.
 */
#ifndef EK_STRIDED_COPY_H
#define EK_STRIDED_COPY_H

#include "ek_common.h"

typedef struct {
    int32_t size_0;
    int32_t size_1;
    int32_t size_2;
    int32_t size_3;
    int32_t size_4;
    int32_t size_5;
    int32_t input_step_0;
    int32_t input_step_1;
    int32_t input_step_2;
    int32_t input_step_3;
    int32_t input_step_4;
    int32_t input_step_5;
    int32_t output_step_0;
    int32_t output_step_1;
    int32_t output_step_2;
    int32_t output_step_3;
    int32_t output_step_4;
    int32_t output_step_5;
    int32_t run;
    int32_t unit;
} ek_strided_copy_params;

/* The two innermost dimensions. */
static EK_INLINE void ek_strided_copy_plane(const ek_strided_copy_params *p, const int8_t *input,
                                            int8_t *output)
{
    const int32_t length = p->unit > 0 ? p->unit : p->run;
    for (int32_t i = 0; i < p->size_4; ++i) {
        for (int32_t j = 0; j < p->size_5; ++j) {
            memmove(output + i * p->output_step_4 + j * p->output_step_5,
                    input + i * p->input_step_4 + j * p->input_step_5, (size_t)length);
        }
    }
}

static EK_INLINE void ek_strided_copy(const ek_strided_copy_params *p, const int8_t *input,
                                      int8_t *output)
{
    for (int32_t i = 0; i < p->size_0; ++i) {
        for (int32_t j = 0; j < p->size_1; ++j) {
            const int8_t *input_2 = input + i * p->input_step_0 + j * p->input_step_1;
            int8_t *output_2 = output + i * p->output_step_0 + j * p->output_step_1;
            for (int32_t k = 0; k < p->size_2; ++k) {
                for (int32_t l = 0; l < p->size_3; ++l) {
                    ek_strided_copy_plane(
                        p, input_2 + k * p->input_step_2 + l * p->input_step_3,
                        output_2 + k * p->output_step_2 + l * p->output_step_3);
                }
            }
        }
    }
}

#endif
