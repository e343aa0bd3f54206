/* SELECT_V2 with broadcasting: of the second input where the first holds, else of the third.
 *
 * condition          bool, broadcast to the output's shape
 * input_1, input_2   of one type of 1, 2, 4 or 8 bytes, broadcast
 * output             of that type [size_0, size_1, size_2, size_3]; may be an input of its size
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input that it overlaps.
 */
#ifndef EK_SELECT_H
#define EK_SELECT_H

#include "ek_broadcast.h"

typedef struct {
    EK_TRIPLE_FIELDS
} ek_select_params;

#define EK_DEFINE_SELECT(suffix, type)                                                         \
    typedef ek_select_params ek_select_##suffix##_params;                                      \
    static EK_INLINE void ek_select_##suffix(const ek_select_params *p,                        \
                                             const uint8_t *condition, const type *input_1,    \
                                             const type *input_2, type *output)                \
    {                                                                                          \
        EK_FOR_EACH_TRIPLE(p, h, i, j, k)                                                      \
        {                                                                                      \
            output[k] = condition[h] ? input_1[i] : input_2[j];                                \
        }                                                                                      \
    }

EK_DEFINE_SELECT(s8, int8_t)
EK_DEFINE_SELECT(u8, uint8_t)
EK_DEFINE_SELECT(s16, int16_t)
EK_DEFINE_SELECT(s32, int32_t)
EK_DEFINE_SELECT(s64, int64_t)
EK_DEFINE_SELECT(f32, float)

#endif
