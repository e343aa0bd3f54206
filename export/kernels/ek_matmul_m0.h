/* The inner product of the kernels for Armv6-M: one row of inputs with eight channels of
 * weights, or with four.
 *
 * Bytes with their sign are loaded only from the sum of two registers. So weights are unsigned,
 * 128 more than they are, which a load with an offset in the instruction fetches; the 128 are
 * taken off again by the sum of the inputs. Accumulators lie in the high registers, which an
 * addition takes. For each input the weights of the block's channels follow each other.
 * The sums are right modulo 2^32, and the caller proves that the true ones fit.
 */
#ifndef EK_MATMUL_M0_H
#define EK_MATMUL_M0_H

#include "ek_m0.h"

#if EK_HAS_M0
#define EK_M0_INPUT(tap) "ldrb r2, [r0, #" #tap "]\n\tsxtb r2, r2\n\t"
#define EK_M0_CHANNEL(weight, sum) \
    "ldrb r3, [r1, #" #weight "]\n\tmuls r3, r2\n\tadd " sum ", r3\n\t"
#define EK_M0_8(tap, w0, w1, w2, w3, w4, w5, w6, w7)                                             \
    EK_M0_INPUT(tap)                                                                             \
    EK_M0_CHANNEL(w0, "r4") EK_M0_CHANNEL(w1, "r5") EK_M0_CHANNEL(w2, "r6")                      \
    EK_M0_CHANNEL(w3, "r7") EK_M0_CHANNEL(w4, "r8") EK_M0_CHANNEL(w5, "r9")                      \
    EK_M0_CHANNEL(w6, "r10") EK_M0_CHANNEL(w7, "r11")
#define EK_M0_4(tap, w0, w1, w2, w3)                                                             \
    EK_M0_INPUT(tap)                                                                             \
    EK_M0_CHANNEL(w0, "r4") EK_M0_CHANNEL(w1, "r5") EK_M0_CHANNEL(w2, "r6")                      \
    EK_M0_CHANNEL(w3, "r7")

/* Goes through the inputs, four at a time and then one at a time. On entry r0: inputs, r1:
 * weights, r2: how many inputs. Clobbers r2, r3, r12. */
#define EK_M0_LOOP(four, one, step_four, step_one)                                               \
    "movs r3, #3\n\t"                                                                            \
    "ands r3, r2\n\t"                                                                            \
    "push {r3}\n\t"                                                                              \
    "subs r2, r2, r3\n\t"                                                                        \
    "beq 2f\n\t"                                                                                 \
    "add r2, r0\n\t"                                                                             \
    "mov r12, r2\n"                                                                              \
    "1:\n\t" four "adds r0, #4\n\tadds r1, #" step_four "\n\t"                                   \
    "cmp r0, r12\n\t"                                                                            \
    "bne 1b\n"                                                                                   \
    "2:\n\t"                                                                                     \
    "pop {r3}\n\t"                                                                               \
    "cmp r3, #0\n\t"                                                                             \
    "beq 4f\n\t"                                                                                 \
    "add r3, r0\n\t"                                                                             \
    "mov r12, r3\n"                                                                              \
    "3:\n\t" one "adds r0, #1\n\tadds r1, #" step_one "\n\t"                                     \
    "cmp r0, r12\n\t"                                                                            \
    "bne 3b\n"                                                                                   \
    "4:\n\t"

/* sums[c] = sums[0] + sum over i of x[i] * w[8 * i + c] */
__attribute__((naked)) static EK_NOINLINE void ek_matmul_8_m0(
    __attribute__((unused)) const int8_t *x, __attribute__((unused)) const uint8_t *w,
    __attribute__((unused)) int32_t length, __attribute__((unused)) int32_t *sums)
{
    __asm__ volatile(
        ".syntax unified\n\t"
        "push {r3, r4, r5, r6, r7, lr}\n\t"
        "mov r4, r8\n\tmov r5, r9\n\tmov r6, r10\n\tmov r7, r11\n\t"
        "push {r4, r5, r6, r7}\n\t"
        "ldr r4, [r3]\n\tmovs r5, r4\n\tmovs r6, r4\n\tmovs r7, r4\n\t"
        "mov r8, r4\n\tmov r9, r4\n\tmov r10, r4\n\tmov r11, r4\n\t"
        EK_M0_LOOP(EK_M0_8(0, 0, 1, 2, 3, 4, 5, 6, 7) EK_M0_8(1, 8, 9, 10, 11, 12, 13, 14, 15)
                       EK_M0_8(2, 16, 17, 18, 19, 20, 21, 22, 23)
                           EK_M0_8(3, 24, 25, 26, 27, 28, 29, 30, 31),
                   EK_M0_8(0, 0, 1, 2, 3, 4, 5, 6, 7), "32", "8")
        "ldr r0, [sp, #16]\n\t"
        "stmia r0!, {r4, r5, r6, r7}\n\t"
        "mov r4, r8\n\tmov r5, r9\n\tmov r6, r10\n\tmov r7, r11\n\t"
        "stmia r0!, {r4, r5, r6, r7}\n\t"
        "pop {r4, r5, r6, r7}\n\t"
        "mov r8, r4\n\tmov r9, r5\n\tmov r10, r6\n\tmov r11, r7\n\t"
        "pop {r3, r4, r5, r6, r7, pc}\n\t");
}

/* sums[c] = sums[0] + sum over i of x[i] * w[4 * i + c] */
__attribute__((naked)) static EK_NOINLINE void ek_matmul_4_m0(
    __attribute__((unused)) const int8_t *x, __attribute__((unused)) const uint8_t *w,
    __attribute__((unused)) int32_t length, __attribute__((unused)) int32_t *sums)
{
    __asm__ volatile(
        ".syntax unified\n\t"
        "push {r3, r4, r5, r6, r7, lr}\n\t"
        "ldr r4, [r3]\n\tmovs r5, r4\n\tmovs r6, r4\n\tmovs r7, r4\n\t"
        EK_M0_LOOP(EK_M0_4(0, 0, 1, 2, 3) EK_M0_4(1, 4, 5, 6, 7) EK_M0_4(2, 8, 9, 10, 11)
                       EK_M0_4(3, 12, 13, 14, 15),
                   EK_M0_4(0, 0, 1, 2, 3), "16", "4")
        "ldr r0, [sp]\n\t"
        "stmia r0!, {r4, r5, r6, r7}\n\t"
        "pop {r3, r4, r5, r6, r7, pc}\n\t");
}
#else
static EK_INLINE void ek_matmul_block_m0(const int8_t *x, const uint8_t *w, int32_t length,
                                      int32_t block, int32_t *sums)
{
    const int32_t first = sums[0];
    for (int32_t c = 0; c < block; ++c) {
        uint32_t sum = (uint32_t)first;
        for (int32_t i = 0; i < length; ++i) {
            sum += (uint32_t)((int32_t)x[i] * w[block * i + c]);
        }
        sums[c] = (int32_t)sum;
    }
}

static EK_INLINE void ek_matmul_8_m0(const int8_t *x, const uint8_t *w, int32_t length,
                                     int32_t *sums)
{
    ek_matmul_block_m0(x, w, length, 8, sums);
}

static EK_INLINE void ek_matmul_4_m0(const int8_t *x, const uint8_t *w, int32_t length,
                                     int32_t *sums)
{
    ek_matmul_block_m0(x, w, length, 4, sums);
}
#endif

static EK_INLINE int32_t ek_sum_row_m0(const int8_t *x, int32_t length)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < length; ++i) {
        sum += x[i];
    }
    return sum;
}

/* A row of inputs is multiplied with all channels. A block of eight channels follows another;
 * the last has four where that is enough, and weights for all of them. */
typedef struct {
    int32_t depth;
    int32_t channels;
    const uint8_t *filter;
    const ek_scale_m0 *scales;
    ek_range_m0 range;
} ek_matmul_m0;

static EK_NOINLINE void ek_matmul_m0_write(const ek_matmul_m0 *p, const int8_t *x, int8_t *output)
{
    const int32_t excess = -128 * ek_sum_row_m0(x, p->depth);
    const uint8_t *filter = p->filter;
    int32_t sums[8];
    for (int32_t c = 0; c < p->channels; c += 8) {
        const int32_t left = p->channels - c;
        sums[0] = excess;
        if (left > 4) {
            ek_matmul_8_m0(x, filter, p->depth, sums);
        } else {
            ek_matmul_4_m0(x, filter, p->depth, sums);
        }
        ek_requantize_m0(sums, p->scales + c, &p->range, output + c, ek_min_s32(left, 8));
        filter += 8 * p->depth;
    }
}

#endif
