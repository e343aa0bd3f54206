/* SIN and COS, float32. These alone take a function from <math.h>: sinf and cosf, which reduce
 * arguments of any size.
 *
 * input    float [length]
 * output   float [length]; may be the input
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_TRIGONOMETRY_F32_H
#define EK_TRIGONOMETRY_F32_H

#include <math.h>

#include "ek_unary_f32.h"

EK_DEFINE_FUNCTION_F32(sin, sinf(x))
EK_DEFINE_FUNCTION_F32(cos, cosf(x))

#endif
