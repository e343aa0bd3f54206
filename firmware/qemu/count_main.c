/* Runs a model named "m", with one input and one output, on all inputs that come in, under QEMU's
 * user mode. count.c finds invoke by its symbol and its end by a label; for sections.c each
 * inference is a section. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "m.h"

#define EK_MARK 0x656b /* as in sections.c */

static int8_t arena[M_ARENA_BYTES] __attribute__((aligned(64)));

static __attribute__((noinline)) void infer(void)
{
    m_invoke(arena);
    __asm__ volatile(".globl ek_invoke_end\nek_invoke_end:" ::: "memory");
}

int main(void)
{
    while (fread(m_input(arena), 1, M_INPUT_BYTES, stdin) == M_INPUT_BYTES) {
        (void)syscall(EK_MARK, 0L, -1L);
        infer();
        (void)syscall(EK_MARK, 0L, 0L);
        if (fwrite(m_output(arena), 1, M_OUTPUT_BYTES, stdout) != M_OUTPUT_BYTES) {
            return 1;
        }
    }
    return fflush(stdout) == 0 ? 0 : 1;
}
