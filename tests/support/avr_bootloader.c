/* An Arduino board in libsimavr: its bootloader, an empty flash, USART0 on a terminal.
 *
 *     avr_bootloader MCU HZ BOOTLOADER.bin ORIGIN TERMINAL DUMP
 *
 * While there is no program the board is as after a press of its reset button, which keeps the
 * bootloader waiting: a terminal cannot press it. A line on stdout says when it first waits. The
 * flash is written to DUMP when the terminal hangs up.
 */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <simavr/avr_uart.h>
#include <simavr/sim_avr.h>
#include <simavr/sim_irq.h>

enum { MCUSR = 0x54, EXTRF = 2, CHUNK_BYTES = 16, IDLE_MS = 5 };

static avr_t *avr;
static int terminal, hung_up, is_ready;
static avr_cycle_count_t next_look, last_sent;

static void send(struct avr_irq_t *irq, uint32_t value, void *param)
{
    const uint8_t byte = (uint8_t)value;
    (void)irq;
    (void)param;
    last_sent = avr->cycle;
    while (write(terminal, &byte, 1) < 0) {
    }
}

/* Called when the receiver was found empty. A board that waits does so fifty times slower than on a
 * desk: its bootloader's watchdog must not bite because the other side was not scheduled. */
static void receive(struct avr_irq_t *irq, uint32_t value, void *param)
{
    struct pollfd wanted = {terminal, POLLIN, 0};
    uint8_t bytes[CHUNK_BYTES];
    ssize_t count = 0;
    (void)irq;
    (void)param;
    if (value == 0 || avr->cycle < next_look) {
        return;
    }
    if (!is_ready) {
        is_ready = puts("ready") >= 0 && fflush(stdout) == 0;
    }
    const avr_cycle_count_t tick = avr->frequency / 10000u;
    const int idle = avr->cycle > last_sent + 10u * tick;
    next_look = avr->cycle + tick;
    if (poll(&wanted, 1, idle ? IDLE_MS : 0) <= 0) {
        return;
    }
    if ((wanted.revents & POLLIN) != 0) {
        count = read(terminal, bytes, sizeof bytes);
    }
    hung_up = count <= 0;
    for (ssize_t i = 0; i < count; ++i) {
        avr_raise_irq(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_INPUT), bytes[i]);
    }
}

static int transfer(const char *path, const char *mode, uint32_t origin)
{
    FILE *file = fopen(path, mode);
    size_t bytes = 0;
    if (file == NULL) {
        return -1;
    }
    if (mode[0] == 'r') {
        bytes = fread(avr->flash + origin, 1, avr->flashend + 1u - origin, file);
    } else {
        bytes = fwrite(avr->flash, 1, avr->flashend + 1u, file);
    }
    return fclose(file) == 0 && bytes != 0 ? 0 : -1;
}

int main(int argc, char **argv)
{
    uint32_t flags = 0; /* no copy on stdout, no naps */
    uint32_t origin;
    if (argc != 7) {
        return 2;
    }
    avr = avr_make_mcu_by_name(argv[1]);
    if (avr == NULL) {
        return 2;
    }
    avr_init(avr);
    avr->frequency = (uint32_t)strtoul(argv[2], NULL, 10);
    avr->log = LOG_ERROR;
    origin = (uint32_t)strtoul(argv[4], NULL, 0);
    terminal = (int)strtol(argv[5], NULL, 10);
    memset(avr->flash, 0xFF, avr->flashend + 1u);
    if (transfer(argv[3], "rb", origin) != 0) {
        return 2;
    }
    avr->codeend = avr->flashend;
    avr->reset_pc = origin;
    avr->pc = origin;
    avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &flags);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUTPUT), send,
                            NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUT_XON),
                            receive, NULL);
    while (!hung_up) {
        if (avr->pc == origin && avr->flash[0] == 0xFF) {
            avr->data[MCUSR] = EXTRF;
        }
        if (avr_run(avr) == cpu_Crashed) {
            return 1;
        }
    }
    return transfer(argv[6], "wb", 0) == 0 ? 0 : 1;
}
