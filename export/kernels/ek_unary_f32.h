/* Functions of one float32.
 *
 * input    float [length]
 * output   float [length]; may be the input
 * Order: memory order; element i is written after element i was read.
 */
#ifndef EK_UNARY_F32_H
#define EK_UNARY_F32_H

#include "ek_math_f32.h"

typedef struct {
    int32_t length;
} ek_unary_f32_params;

typedef struct {
    int32_t length;
    float low;
    float high;
} ek_clip_f32_params;

typedef struct {
    int32_t length;
    float alpha;
} ek_leaky_relu_f32_params;

/* x, at least 0 and at most 6. */
static EK_INLINE float ek_ramp_f32(float x)
{
    const float raised = x < 0.0f ? 0.0f : x;
    return raised > 6.0f ? 6.0f : raised;
}

/* Defines ek_<name>_f32, which computes `result` from x. */
#define EK_DEFINE_UNARY_F32(name, params, result)                                              \
    static EK_INLINE void ek_##name##_f32(const params *p, const float *input, float *output)  \
    {                                                                                          \
        for (int32_t i = 0; i < p->length; ++i) {                                              \
            const float x = input[i];                                                          \
            output[i] = result;                                                                \
        }                                                                                      \
    }

#define EK_DEFINE_FUNCTION_F32(name, result)                                                   \
    typedef ek_unary_f32_params ek_##name##_f32_params;                                        \
    EK_DEFINE_UNARY_F32(name, ek_unary_f32_params, result)

EK_DEFINE_UNARY_F32(clip, ek_clip_f32_params, x > p->high ? p->high : (x < p->low ? p->low : x))
EK_DEFINE_UNARY_F32(leaky_relu, ek_leaky_relu_f32_params, x > 0.0f ? x : x * p->alpha)

EK_DEFINE_FUNCTION_F32(relu, x < 0.0f ? 0.0f : x)
EK_DEFINE_FUNCTION_F32(logistic, ek_logistic_of_f32(x))
EK_DEFINE_FUNCTION_F32(tanh, ek_tanh_of_f32(x))
EK_DEFINE_FUNCTION_F32(abs, ek_abs_of_f32(x))
EK_DEFINE_FUNCTION_F32(neg, -x)
EK_DEFINE_FUNCTION_F32(square, x * x)
EK_DEFINE_FUNCTION_F32(sqrt, ek_sqrt_of_f32(x))
EK_DEFINE_FUNCTION_F32(rsqrt, 1.0f / ek_sqrt_of_f32(x))
EK_DEFINE_FUNCTION_F32(exp, ek_exp_of_f32(x))
EK_DEFINE_FUNCTION_F32(log, ek_log_of_f32(x))
EK_DEFINE_FUNCTION_F32(elu, x < 0.0f ? ek_expm1_of_f32(x) : x)
EK_DEFINE_FUNCTION_F32(hard_swish, x * ek_ramp_f32(x + 3.0f) / 6.0f)
EK_DEFINE_FUNCTION_F32(floor, ek_floor_of_f32(x))
EK_DEFINE_FUNCTION_F32(ceil, -ek_floor_of_f32(-x))
EK_DEFINE_FUNCTION_F32(round, ek_round_of_f32(x))

#endif
