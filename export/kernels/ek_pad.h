/* PAD and PADV2, any type: one byte, repeated, around a tensor of up to four dimensions.
 *
 * input    bytes [size_0, size_1, size_2, size_3]
 * output   bytes, each dimension longer by before_i + after_i
 * value    the byte; so every element of the border consists of equal bytes
 * The last dimension is the longest run that is not padded inside: fewer dimensions come
 * merged or as size 1.
 * Order: memory order of the output. A run is read whole before it is written, so that it may
 * lie over itself.
 */
#ifndef EK_PAD_H
#define EK_PAD_H

#include "ek_common.h"

typedef struct {
    int32_t size_0;
    int32_t size_1;
    int32_t size_2;
    int32_t size_3;
    int32_t before_0;
    int32_t before_1;
    int32_t before_2;
    int32_t before_3;
    int32_t after_0;
    int32_t after_1;
    int32_t after_2;
    int32_t after_3;
    int32_t value;
} ek_pad_params;

static EK_INLINE int8_t *ek_pad_border(int8_t *output, int32_t value, int32_t length)
{
    memset(output, (int)value, (size_t)length);
    return output + length;
}

static EK_INLINE void ek_pad(const ek_pad_params *p, const int8_t *input, int8_t *output)
{
    const int32_t step_3 = p->before_3 + p->size_3 + p->after_3;
    const int32_t step_2 = step_3 * (p->before_2 + p->size_2 + p->after_2);
    const int32_t step_1 = step_2 * (p->before_1 + p->size_1 + p->after_1);
    output = ek_pad_border(output, p->value, p->before_0 * step_1);
    for (int32_t i = 0; i < p->size_0; ++i) {
        output = ek_pad_border(output, p->value, p->before_1 * step_2);
        for (int32_t j = 0; j < p->size_1; ++j) {
            output = ek_pad_border(output, p->value, p->before_2 * step_3);
            for (int32_t k = 0; k < p->size_2; ++k) {
                output = ek_pad_border(output, p->value, p->before_3);
                memmove(output, input, (size_t)p->size_3);
                input += p->size_3;
                output = ek_pad_border(output + p->size_3, p->value, p->after_3);
            }
            output = ek_pad_border(output, p->value, p->after_2 * step_3);
        }
        output = ek_pad_border(output, p->value, p->after_1 * step_2);
    }
    (void)ek_pad_border(output, p->value, p->after_0 * step_1);
}

#endif
