/* A TCG plugin for QEMU: counts the instructions of every inference, and of each of its nodes.
 *
 * Arguments: plan=FILE, out=FILE, and for tests each=on (count instruction by instruction).
 *
 * The plan is text. One line `begin ADDRESS` (invoke's first instruction), one `end ADDRESS`
 * (the one invoke returns to) and any number of `node INDEX ADDRESS`: the first instruction
 * after node INDEX, in the order in which the nodes run. Each inference that returns adds a line to
 * the output: `TOTAL COUNT COUNT …`, one count per node in the plan's order; what is left over
 * is the epilogue after the last node.
 *
 * QEMU's header belongs to no package, so the few functions used are declared here.
 * EK_PLUGIN_API is the version of the interface to claim: 1 before QEMU 9, 2 from there on.
 * EK_PLUGIN_INLINE says whether counters may be added to in generated code, which version 2
 * does another way; without it a callback does it, everywhere and a third slower.
 *
 * Within a translation block instructions follow one another without a branch, so they are
 * counted in runs: a run ends before an instruction that the plan names. The count of a run
 * is added when its first instruction starts. That is exact unless an instruction inside
 * faults, and a fault ends the inference.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_NODES 4096u

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
typedef uint64_t qemu_plugin_id_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*tb_translated)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*insn_executed)(unsigned int cpu, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_translated callback);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, insn_executed callback,
                                            enum qemu_plugin_cb_flags flags, void *data);
#if EK_PLUGIN_INLINE
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *insn,
                                                enum qemu_plugin_op op, void *counter,
                                                uint64_t amount);
#endif

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc,
                               char **argv);

EXPORT int qemu_plugin_version = EK_PLUGIN_API;

static uint64_t executed; /* instructions since start-up */
static uint64_t begin_address, end_address;
static uint64_t node_address[MAX_NODES];
static size_t node_count;
static int each;
static FILE *out;

/* The inference in progress. */
static int running;
static uint64_t started_at, node_started_at;
static uint64_t node_executed[MAX_NODES];
static size_t node_now;

static void on_begin(unsigned int cpu, void *data)
{
    (void)cpu;
    (void)data;
    running = 1;
    started_at = executed;
    node_started_at = executed;
    node_now = 0;
}

/* An address may stand for several nodes (one that needs no instruction), and may be reached
 * more than once (a loop that starts there): each node ends when its address is first
 * reached after its predecessor's end. */
static void on_node(unsigned int cpu, void *data)
{
    const uint64_t address = *(const uint64_t *)data;
    (void)cpu;
    while (running && node_now < node_count && node_address[node_now] == address) {
        node_executed[node_now++] = executed - node_started_at;
        node_started_at = executed;
    }
}

static void on_end(unsigned int cpu, void *data)
{
    (void)cpu;
    (void)data;
    if (!running) {
        return;
    }
    running = 0;
    fprintf(out, "%" PRIu64, executed - started_at);
    for (size_t i = 0; i < node_now; ++i) {
        fprintf(out, " %" PRIu64, node_executed[i]);
    }
    fputc('\n', out);
    fflush(out);
}

#if !EK_PLUGIN_INLINE
static void on_run(unsigned int cpu, void *data)
{
    (void)cpu;
    executed += (uint64_t)(uintptr_t)data;
}
#endif

static void count_run(struct qemu_plugin_insn *first, uint64_t length)
{
#if EK_PLUGIN_INLINE
    qemu_plugin_register_vcpu_insn_exec_inline(first, QEMU_PLUGIN_INLINE_ADD_U64, &executed,
                                               length);
#else
    qemu_plugin_register_vcpu_insn_exec_cb(first, on_run, QEMU_PLUGIN_CB_NO_REGS,
                                           (void *)(uintptr_t)length);
#endif
}

/* Registers what the plan says about one instruction. Returns whether it says anything.
 * Callbacks run before the instruction, and before the run that starts with it is added. */
static int mark(struct qemu_plugin_insn *insn)
{
    const uint64_t address = qemu_plugin_insn_vaddr(insn);
    int marked = 0;
    for (size_t i = 0; i < node_count && !marked; ++i) {
        if (node_address[i] == address) {
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_node, QEMU_PLUGIN_CB_NO_REGS,
                                                   &node_address[i]);
            marked = 1;
        }
    }
    if (address == end_address) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
        marked = 1;
    }
    if (address == begin_address) {
        qemu_plugin_register_vcpu_insn_exec_cb(insn, on_begin, QEMU_PLUGIN_CB_NO_REGS, NULL);
        marked = 1;
    }
    return marked;
}

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    const size_t length = qemu_plugin_tb_n_insns(block);
    struct qemu_plugin_insn *first = NULL;
    uint64_t run = 0;
    (void)id;
    for (size_t i = 0; i < length; ++i) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
        const int marked = mark(insn);
        if (first != NULL && (marked || each)) {
            count_run(first, run);
            first = NULL;
        }
        if (first == NULL) {
            first = insn;
            run = 0;
        }
        ++run;
    }
    if (first != NULL) {
        count_run(first, run);
    }
}

static int read_plan(const char *path)
{
    char word[16];
    FILE *plan = fopen(path, "r");
    if (plan == NULL) {
        return -1;
    }
    while (fscanf(plan, "%15s", word) == 1) {
        uint64_t address = 0;
        unsigned int index = 0;
        if (strcmp(word, "node") == 0 && node_count < MAX_NODES &&
            fscanf(plan, "%u %" SCNi64, &index, (int64_t *)&address) == 2) {
            node_address[node_count++] = address;
        } else if (strcmp(word, "begin") == 0 &&
                   fscanf(plan, "%" SCNi64, (int64_t *)&begin_address) == 1) {
            continue;
        } else if (strcmp(word, "end") == 0 &&
                   fscanf(plan, "%" SCNi64, (int64_t *)&end_address) == 1) {
            continue;
        } else {
            fclose(plan);
            return -1;
        }
    }
    fclose(plan);
    return begin_address != end_address ? 0 : -1;
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv)
{
    int planned = 0;
    (void)info;
    for (int i = 0; i < argc; ++i) {
        if (strncmp(argv[i], "plan=", 5) == 0) {
            planned = read_plan(argv[i] + 5) == 0;
        } else if (strncmp(argv[i], "out=", 4) == 0) {
            out = fopen(argv[i] + 4, "w");
        } else if (strcmp(argv[i], "each=on") == 0) {
            each = 1;
        }
    }
    if (!planned || out == NULL) {
        fprintf(stderr, "count: plan= or out= cannot be used\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    return 0;
}
