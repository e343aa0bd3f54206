/* The port of the machine that edgekiln runs on: standard input and output as the UART. */
#define _POSIX_C_SOURCE 199309L

#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "ek_port.h"

static struct timespec started;

void ek_port_init(void)
{
    (void)clock_gettime(CLOCK_MONOTONIC, &started);
}

uint8_t ek_port_get(void)
{
    uint8_t byte = 0;
    if (read(STDIN_FILENO, &byte, 1) != 1) {
        exit(EXIT_SUCCESS); /* whoever drove us has gone */
    }
    return byte;
}

void ek_port_put(uint8_t byte)
{
    if (write(STDOUT_FILENO, &byte, 1) != 1) {
        exit(EXIT_FAILURE);
    }
}

struct ek_time ek_port_now(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t nanoseconds = (int64_t)(now.tv_sec - started.tv_sec) * 1000000000;
    nanoseconds += (int64_t)now.tv_nsec - (int64_t)started.tv_nsec;
    const struct ek_time time = {
        .seconds = (uint32_t)(nanoseconds / 1000000000),
        .microseconds = (uint32_t)(nanoseconds % 1000000000 / 1000),
    };
    return time;
}

uint32_t ek_port_stack_peak(void)
{
    return 0; /* not measured */
}
