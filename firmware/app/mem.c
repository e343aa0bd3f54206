/* The four functions that a C compiler may call on its own, small and quick enough, so that an
 * image needs no C library. Built with -fno-tree-loop-distribute-patterns: a loop in here must
 * not become a call of itself. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint32_t __attribute__((may_alias)) word;

#define WORD_BYTES sizeof(word)

/* Whether whole words can be moved between two addresses. */
static inline int can_move_words(uintptr_t a, uintptr_t b)
{
#if defined(__ARM_FEATURE_UNALIGNED)
    (void)a;
    (void)b;
    return 1;
#else
    return ((a | b) & (WORD_BYTES - 1u)) == 0u;
#endif
}

void *memcpy(void *restrict to, const void *restrict from, size_t bytes)
{
    unsigned char *out = to;
    const unsigned char *in = from;
    if (can_move_words((uintptr_t)out, (uintptr_t)in)) {
        for (; bytes >= WORD_BYTES; bytes -= WORD_BYTES) {
            *(word *)(void *)out = *(const word *)(const void *)in;
            out += WORD_BYTES;
            in += WORD_BYTES;
        }
    }
    for (; bytes > 0u; --bytes) {
        *out++ = *in++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t bytes)
{
    unsigned char *out = to;
    const unsigned char *in = from;
    if (out <= in || out >= in + bytes) {
        for (; bytes > 0u; --bytes) {
            *out++ = *in++;
        }
    } else {
        while (bytes-- > 0u) {
            out[bytes] = in[bytes];
        }
    }
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    unsigned char *out = to;
    const unsigned char byte = (unsigned char)value;
    if (can_move_words((uintptr_t)out, 0u)) {
        const word four = byte * 0x01010101u;
        for (; bytes >= WORD_BYTES; bytes -= WORD_BYTES) {
            *(word *)(void *)out = four;
            out += WORD_BYTES;
        }
    }
    for (; bytes > 0u; --bytes) {
        *out++ = byte;
    }
    return to;
}

int memcmp(const void *a, const void *b, size_t bytes)
{
    const unsigned char *x = a;
    const unsigned char *y = b;
    for (; bytes > 0u; --bytes, ++x, ++y) {
        if (*x != *y) {
            return (int)*x - (int)*y;
        }
    }
    return 0;
}
