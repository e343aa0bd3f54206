/* Rows copied to where they stand in the longer rows of the output: CONCATENATION, PACK, plain
 * copies.
 *
 * input    [rows, row_bytes]
 * output   [rows, output_row_bytes], of which this writes the first row_bytes of each row
 * Order: memory order. A row is read whole before it is written, so that it may lie over itself.
 */
#ifndef EK_COPY_ROWS_H
#define EK_COPY_ROWS_H

#include "ek_common.h"

typedef struct {
    int32_t rows;
    int32_t row_bytes;
    int32_t output_row_bytes;
} ek_copy_rows_params;

static EK_INLINE void ek_copy_rows(const ek_copy_rows_params *p, const int8_t *input,
                                   int8_t *output)
{
    for (int32_t row = 0; row < p->rows; ++row) {
        memmove(output, input, (size_t)p->row_bytes);
        input += p->row_bytes;
        output += p->output_row_bytes;
    }
}

#endif
