/* A TCG plugin for QEMU's user mode: counts what a process executes in sections of its own choice.
 *
 * Argument: out=FILE.
 *
 * A section begins when the process makes the system call EK_MARK(LOW, HIGH), which no kernel
 * knows, and ends with the next EK_MARK(0, 0). It adds a line to the output, `INSTRUCTIONS OWN
 * DOT_PRODUCTS`: all that was executed, what of it lies at an address from LOW up to HIGH, and
 * what of that is an Advanced SIMD instruction SDOT of aarch64. The end of the call that
 * begins a section and the beginning of the one that ends it are part of the first number.
 *
 * A translation block is executed whole or not at all, unless an instruction in it faults.
 *
 * For what is declared here and for EK_PLUGIN_API and EK_PLUGIN_INLINE see count.c.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define EK_MARK 0x656b /* the number of the system call */

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
typedef uint64_t qemu_plugin_id_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*tb_translated)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*tb_executed)(unsigned int cpu, void *data);
typedef void (*system_call)(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a,
                            uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                            uint64_t h);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_translated callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, system_call callback);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);
#if EK_PLUGIN_INLINE
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, enum qemu_plugin_op op,
                                              void *counter, uint64_t amount);
#else
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, tb_executed callback,
                                          enum qemu_plugin_cb_flags flags, void *data);
#endif

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc,
                               char **argv);

EXPORT int qemu_plugin_version = EK_PLUGIN_API;

/* A translation block. They are never freed: QEMU may run one until the process ends. */
typedef struct block {
    struct block *next;
    uint64_t address;
    uint64_t instructions;
    uint64_t dot_products;
    uint64_t executed; /* since the section began */
} block;

static block *blocks;
static uint64_t low, high;
static int running;
static FILE *out;

/* SDOT by vector and by element. */
static int is_dot_product(uint32_t word)
{
    return (word & 0xBFE0FC00u) == 0x0E809400u || (word & 0xBFC0F400u) == 0x0F80E000u;
}

#if !EK_PLUGIN_INLINE
static void on_executed(unsigned int cpu, void *data)
{
    (void)cpu;
    ((block *)data)->executed += 1;
}
#endif

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb *translated)
{
    block *b = calloc(1, sizeof(*b));
    (void)id;
    if (b == NULL) {
        abort();
    }
    b->address = qemu_plugin_tb_vaddr(translated);
    b->instructions = qemu_plugin_tb_n_insns(translated);
    for (size_t i = 0; i < b->instructions; ++i) {
        uint32_t word = 0;
        const void *at = qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(translated, i));
        if (at != NULL) {
            memcpy(&word, at, sizeof(word));
        }
        b->dot_products += (uint64_t)is_dot_product(word);
    }
    b->next = blocks;
    blocks = b;
#if EK_PLUGIN_INLINE
    qemu_plugin_register_vcpu_tb_exec_inline(translated, QEMU_PLUGIN_INLINE_ADD_U64, &b->executed,
                                             1);
#else
    qemu_plugin_register_vcpu_tb_exec_cb(translated, on_executed, QEMU_PLUGIN_CB_NO_REGS, b);
#endif
}

static void begin(uint64_t from, uint64_t to)
{
    low = from;
    high = to;
    running = 1;
    for (block *b = blocks; b != NULL; b = b->next) {
        b->executed = 0;
    }
}

static void end(void)
{
    uint64_t all = 0;
    uint64_t own = 0;
    uint64_t dot_products = 0;
    for (const block *b = blocks; b != NULL; b = b->next) {
        all += b->executed * b->instructions;
        if (b->address >= low && b->address < high) {
            own += b->executed * b->instructions;
            dot_products += b->executed * b->dot_products;
        }
    }
    running = 0;
    fprintf(out, "%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", all, own, dot_products);
    fflush(out);
}

static void on_system_call(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a,
                           uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                           uint64_t h)
{
    (void)id, (void)cpu, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != EK_MARK) {
        return;
    }
    if (b != 0) {
        begin(a, b);
    } else if (running) {
        end();
    }
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv)
{
    (void)info;
    if (argc == 1 && strncmp(argv[0], "out=", 4) == 0) {
        out = fopen(argv[0] + 4, "w");
    }
    if (out == NULL) {
        fprintf(stderr, "sections: out= cannot be used\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
