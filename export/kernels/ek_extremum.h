/* MAXIMUM and MINIMUM, int8 and int16, with broadcasting: of codes, whatever their scales.
 *
 * input_1, input_2   int8 or int16, broadcast to the output's shape
 * output             of that type [size_0, size_1, size_2, size_3]; may be an input of its size
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input of its size.
 */
#ifndef EK_EXTREMUM_H
#define EK_EXTREMUM_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
} ek_extremum_params;

#define EK_DEFINE_EXTREMUM(name, type, relation)                                               \
    typedef ek_extremum_params ek_##name##_params;                                             \
    static EK_INLINE void ek_##name(const ek_extremum_params *p, const type *input_1,          \
                                    const type *input_2, type *output)                         \
    {                                                                                          \
        EK_FOR_EACH_PAIR(p, i, j, k)                                                           \
        {                                                                                      \
            output[k] = input_1[i] relation input_2[j] ? input_1[i] : input_2[j];              \
        }                                                                                      \
    }

EK_DEFINE_EXTREMUM(maximum_s8, int8_t, >)
EK_DEFINE_EXTREMUM(minimum_s8, int8_t, <)
EK_DEFINE_EXTREMUM(maximum_s16, int16_t, >)
EK_DEFINE_EXTREMUM(minimum_s16, int16_t, <)

#endif
