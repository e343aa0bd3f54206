/* Runs an image on simavr, its USART0 on a terminal, and counts clock cycles.
 *
 *     run MCU HZ IMAGE TERMINAL [PLAN OUT]
 *
 * IMAGE is the flash from address 0, as plain bytes. TERMINAL is the number of an open file, the
 * end of a pseudo-terminal that is ours. PLAN and OUT are as in qemu/count.c, with cycles for
 * instructions: each inference that returns adds a line to OUT.
 *
 * simavr's own pseudo-terminal has a thread that pumps bytes, and its USART naps after every
 * poll. Here the terminal is looked at when the firmware finds its receiver empty, and while
 * nothing is sent or received that look waits: an idle board costs next to nothing.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <simavr/avr_uart.h>
#include <simavr/sim_avr.h>
#include <simavr/sim_irq.h>

#define MAX_NODES 4096u
#define IDLE_MS 10
#define CHUNK_BYTES 16 /* the USART's queue holds 64 */

static avr_t *avr;
static int terminal;

/* ---- The line ---- */

static avr_cycle_count_t next_look; /* when the terminal is looked at again */
static avr_cycle_count_t last_sent;
static int hung_up;

static void send(struct avr_irq_t *irq, uint32_t value, void *param)
{
    const uint8_t byte = (uint8_t)value;
    (void)irq;
    (void)param;
    last_sent = avr->cycle;
    while (write(terminal, &byte, 1) < 0 && errno == EINTR) {
    }
}

/* Called when the receiver was found empty. Without input the next look is a millisecond of the
 * board's time later, and that millisecond takes ten on the clock on the wall: enough for what
 * the firmware has to do by itself, a watchdog for example. */
static void look(struct avr_irq_t *irq, uint32_t value, void *param)
{
    struct pollfd wanted = {terminal, POLLIN, 0};
    const avr_cycle_count_t millisecond = avr->frequency / 1000u;
    uint8_t bytes[CHUNK_BYTES];
    ssize_t count;
    (void)irq;
    (void)param;
    if (value == 0 || avr->cycle < next_look) {
        return;
    }
    const int idle = avr->cycle > last_sent + millisecond;
    if (poll(&wanted, 1, idle ? IDLE_MS : 0) <= 0 || (wanted.revents & POLLIN) == 0) {
        hung_up = (wanted.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
        next_look = avr->cycle + millisecond;
        return;
    }
    count = read(terminal, bytes, sizeof bytes);
    if (count <= 0) {
        hung_up = count == 0 || errno != EINTR;
        return;
    }
    for (ssize_t i = 0; i < count; ++i) {
        avr_raise_irq(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_INPUT), bytes[i]);
    }
}

static void connect_line(void)
{
    uint32_t flags = 0; /* no copy on stdout, no naps */
    avr_ioctl(avr, AVR_IOCTL_UART_SET_FLAGS('0'), &flags);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUTPUT), send,
                            NULL);
    avr_irq_register_notify(avr_io_getirq(avr, AVR_IOCTL_UART_GETIRQ('0'), UART_IRQ_OUT_XON), look,
                            NULL);
}

/* ---- The counter ---- */

static uint64_t begin_address, end_address;
static uint64_t node_address[MAX_NODES];
static size_t node_count;
static uint8_t *marked; /* whether the plan names an address, by word */
static FILE *out;

/* The inference in progress. */
static int running;
static avr_cycle_count_t started_at, node_started_at;
static avr_cycle_count_t node_cycles[MAX_NODES];
static size_t node_now;

static int read_plan(const char *path)
{
    char word[16];
    FILE *plan = fopen(path, "r");
    int valid = plan != NULL;
    while (valid && fscanf(plan, "%15s", word) == 1) {
        uint64_t address = 0;
        unsigned int index = 0;
        if (strcmp(word, "node") == 0) {
            valid = node_count < MAX_NODES &&
                    fscanf(plan, "%u %" SCNi64, &index, (int64_t *)&address) == 2;
            if (valid) {
                node_address[node_count++] = address;
            }
        } else {
            valid = fscanf(plan, "%" SCNi64, (int64_t *)&address) == 1;
            *(strcmp(word, "begin") == 0 ? &begin_address : &end_address) = address;
        }
        if (valid && address <= avr->flashend) {
            marked[address / 2] = 1;
        }
    }
    if (plan != NULL) {
        fclose(plan);
    }
    return valid && begin_address != end_address ? 0 : -1;
}

/* Called before an instruction that the plan names. A node ends when its address is first
 * reached after its predecessor's end; several may end at one. */
static void count(uint64_t address)
{
    while (running && node_now < node_count && node_address[node_now] == address) {
        node_cycles[node_now++] = avr->cycle - node_started_at;
        node_started_at = avr->cycle;
    }
    if (running && address == end_address) {
        running = 0;
        fprintf(out, "%" PRIu64, avr->cycle - started_at);
        for (size_t i = 0; i < node_now; ++i) {
            fprintf(out, " %" PRIu64, node_cycles[i]);
        }
        fputc('\n', out);
        fflush(out);
    }
    if (address == begin_address) {
        running = 1;
        started_at = avr->cycle;
        node_started_at = avr->cycle;
        node_now = 0;
    }
}

/* ---- The board ---- */

static int load(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t bytes = 0;
    memset(avr->flash, 0xFF, avr->flashend + 1u);
    if (file != NULL) {
        bytes = fread(avr->flash, 1, avr->flashend + 1u, file);
        fclose(file);
    }
    avr->codeend = avr->flashend;
    return bytes != 0 ? 0 : -1;
}

static int fail(const char *what, const char *which)
{
    fprintf(stderr, "%s: %s\n", what, which);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 5 && argc != 7) {
        return fail("usage", "run MCU HZ IMAGE TERMINAL [PLAN OUT]");
    }
    avr = avr_make_mcu_by_name(argv[1]);
    if (avr == NULL) {
        return fail("simavr does not know", argv[1]);
    }
    avr_init(avr);
    avr->frequency = (uint32_t)strtoul(argv[2], NULL, 10);
    avr->log = LOG_ERROR;
    terminal = (int)strtol(argv[4], NULL, 10);
    if (load(argv[3]) != 0) {
        return fail("cannot be read", argv[3]);
    }
    connect_line();
    if (argc == 7) {
        marked = calloc(avr->flashend / 2u + 1u, 1);
        out = fopen(argv[6], "w");
        if (marked == NULL || read_plan(argv[5]) != 0 || out == NULL) {
            return fail("plan or output cannot be used", argv[5]);
        }
        avr->run_cycle_limit = 1; /* one instruction at a time */
        avr->run_cycle_count = 1;
    }
    while (!hung_up) {
        if (marked != NULL && marked[avr->pc / 2u]) {
            count(avr->pc);
        }
        const int state = avr_run(avr);
        if (state == cpu_Done || state == cpu_Crashed) {
            return fail("stopped", state == cpu_Crashed ? "the core crashed" : "the core sleeps");
        }
    }
    return 0;
}
