/* EQUAL, NOT_EQUAL, GREATER and GREATER_EQUAL, with broadcasting. LESS and LESS_EQUAL are the
 * last two with their inputs swapped.
 *
 * input_1, input_2   int8, int32, int64, float or (first two) bool, broadcast
 * output             bool [size_0, size_1, size_2, size_3]; may be an input of as many elements
 * int8 codes are compared as real numbers: raised by 8 bits and scaled with ek_scale_down.
 * Order: the output's memory order; element k is written after what it depends on was read,
 * and nothing that an earlier element depends on is read later from an input that it overlaps.
 */
#ifndef EK_COMPARE_H
#define EK_COMPARE_H

#include "ek_broadcast.h"

typedef struct {
    EK_PAIR_FIELDS
} ek_compare_params;

typedef struct {
    EK_PAIR_FIELDS
    int32_t input_1_offset;
    int32_t input_1_multiplier;
    int32_t input_1_shift;
    int32_t input_2_offset;
    int32_t input_2_multiplier;
    int32_t input_2_shift;
} ek_compare_s8_params;

#define EK_DEFINE_COMPARE(name, type, relation)                                                \
    typedef ek_compare_params ek_##name##_params;                                              \
    static EK_INLINE void ek_##name(const ek_compare_params *p, const type *input_1,           \
                                    const type *input_2, uint8_t *output)                      \
    {                                                                                          \
        EK_FOR_EACH_PAIR(p, i, j, k)                                                           \
        {                                                                                      \
            output[k] = input_1[i] relation input_2[j] ? 1 : 0;                                \
        }                                                                                      \
    }

#define EK_DEFINE_COMPARE_S8(name, relation)                                                   \
    typedef ek_compare_s8_params ek_##name##_params;                                           \
    static EK_INLINE void ek_##name(const ek_compare_s8_params *p, const int8_t *input_1,      \
                                    const int8_t *input_2, uint8_t *output)                    \
    {                                                                                          \
        EK_FOR_EACH_PAIR(p, i, j, k)                                                           \
        {                                                                                      \
            const int32_t a = ek_scale_down((input_1[i] + p->input_1_offset) * (1 << 8),       \
                                            p->input_1_multiplier, p->input_1_shift);          \
            const int32_t b = ek_scale_down((input_2[j] + p->input_2_offset) * (1 << 8),       \
                                            p->input_2_multiplier, p->input_2_shift);          \
            output[k] = a relation b ? 1 : 0;                                                  \
        }                                                                                      \
    }

#define EK_DEFINE_RELATION(name, relation)                                                     \
    EK_DEFINE_COMPARE_S8(name##_s8, relation)                                                  \
    EK_DEFINE_COMPARE(name##_s32, int32_t, relation)                                           \
    EK_DEFINE_COMPARE(name##_s64, int64_t, relation)                                           \
    EK_DEFINE_COMPARE(name##_f32, float, relation)

EK_DEFINE_RELATION(equal, ==)
EK_DEFINE_RELATION(not_equal, !=)
EK_DEFINE_RELATION(greater, >)
EK_DEFINE_RELATION(greater_equal, >=)
EK_DEFINE_COMPARE(equal_u8, uint8_t, ==)
EK_DEFINE_COMPARE(not_equal_u8, uint8_t, !=)

#endif
