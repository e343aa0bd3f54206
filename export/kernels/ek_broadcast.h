/* The loops of operators whose inputs are broadcast to the output's shape.
 *
 * Four nested loops go through the output in memory order. An input takes a step of its own
 * for each loop: 0 along a dimension in which it is repeated. The compiler of the model fuses
 * what needs no loop of its own, so most models use one or two of them.
 */
#ifndef EK_BROADCAST_H
#define EK_BROADCAST_H

#include "ek_common.h"

/* Iterations, outermost first, and the steps of input n in elements. */
#define EK_LOOP_SIZES \
    int32_t size_0;   \
    int32_t size_1;   \
    int32_t size_2;   \
    int32_t size_3;
#define EK_LOOP_STEPS(n)  \
    int32_t step_##n##_0; \
    int32_t step_##n##_1; \
    int32_t step_##n##_2; \
    int32_t step_##n##_3;

/* The parameters of a kernel of two inputs begin with these. */
#define EK_PAIR_FIELDS EK_LOOP_SIZES EK_LOOP_STEPS(1) EK_LOOP_STEPS(2)

/* And those of a kernel of three inputs with these. */
#define EK_TRIPLE_FIELDS EK_PAIR_FIELDS EK_LOOP_STEPS(3)

/* Where a row, the innermost loop, begins in input n. */
#define EK_ROW_START(p, n)                                                     \
    (ek_d0 * (p)->step_##n##_0 + ek_d1 * (p)->step_##n##_1 + ek_d2 * (p)->step_##n##_2)

#define EK_FOR_EACH_ROW(p, k)                                              \
    for (int32_t k = 0, ek_d0 = 0; ek_d0 < (p)->size_0; ++ek_d0)           \
        for (int32_t ek_d1 = 0; ek_d1 < (p)->size_1; ++ek_d1)              \
            for (int32_t ek_d2 = 0; ek_d2 < (p)->size_2; ++ek_d2)

/* Runs the following block once for each element k of the output, which depends on element i
 * of the first input and element j of the second. */
#define EK_FOR_EACH_PAIR(p, i, j, k)                                                           \
    EK_FOR_EACH_ROW(p, k)                                                                      \
        for (int32_t ek_d3 = 0, i = EK_ROW_START(p, 1), j = EK_ROW_START(p, 2);                \
             ek_d3 < (p)->size_3;                                                              \
             ++ek_d3, i += (p)->step_1_3, j += (p)->step_2_3, ++k)

/* The same with element h of the first, i of the second and j of the third input. */
#define EK_FOR_EACH_TRIPLE(p, h, i, j, k)                                                      \
    EK_FOR_EACH_ROW(p, k)                                                                      \
        for (int32_t ek_d3 = 0, h = EK_ROW_START(p, 1), i = EK_ROW_START(p, 2),                \
                     j = EK_ROW_START(p, 3);                                                   \
             ek_d3 < (p)->size_3;                                                              \
             ++ek_d3, h += (p)->step_1_3, i += (p)->step_2_3, j += (p)->step_3_3, ++k)

#endif
