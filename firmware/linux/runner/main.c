/* A model as a program for Linux, with no dependency but the C library, into which it is linked.
 *
 *   edgekiln-model --selftest           run the golden pair, compare every byte
 *   edgekiln-model --stream             inputs from stdin, outputs to stdout, until stdin ends
 *   edgekiln-model --measure W N S      the same, each input by itself; then W inferences of the
 *                                       golden input and up to N that are timed, for about S
 *                                       seconds; what they took as a last line of JSON
 *   edgekiln-model [--top K] [--json] [FILE ...]
 *                                       classify the inputs in the files, or in stdin
 *
 * An input is the model's input tensors one after the other as raw bytes, in its own codes; an
 * output likewise. A file holds one input or several.
 *
 * Exit code: 0, 1 the self-test failed, 2 wrong usage or a file that cannot be used.
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ek_run_model.h"

typedef struct {
    size_t offset;
    size_t bytes;
} tensor_span;

typedef struct {
    size_t top;
    int json;
} print_options;

static const tensor_span inputs[] = EK_RUN_INPUTS;
static const tensor_span outputs[] = EK_RUN_OUTPUTS;
static const void *const golden_inputs[] = EK_RUN_GOLDEN_INPUTS;
static const void *const golden_outputs[] = EK_RUN_GOLDEN_OUTPUTS;

/* So many inferences are timed even when they take longer than asked for. */
#define EK_LEAST_RUNS 20u

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int8_t ek_arena[EK_RUN_ARENA_BYTES] __attribute__((aligned(64)));
static uint8_t input_bytes[EK_RUN_INPUT_BYTES];
static uint8_t output_bytes[EK_RUN_OUTPUT_BYTES];
EK_RUN_DEFINE_STATE

static void load_inputs(void)
{
    size_t at = 0;
    for (size_t i = 0; i < COUNT(inputs); i++) {
        memcpy(ek_arena + inputs[i].offset, input_bytes + at, inputs[i].bytes);
        at += inputs[i].bytes;
    }
}

static void store_outputs(void)
{
    size_t at = 0;
    for (size_t i = 0; i < COUNT(outputs); i++) {
        memcpy(output_bytes + at, ek_arena + outputs[i].offset, outputs[i].bytes);
        at += outputs[i].bytes;
    }
}

/* Runs the model on input_bytes; the outputs are in output_bytes afterwards. */
static void infer(void)
{
    load_inputs();
    EK_RUN_INVOKE(ek_arena);
    store_outputs();
}

static void take_golden_inputs(void)
{
    size_t at = 0;
    for (size_t i = 0; i < COUNT(inputs); i++) {
        memcpy(input_bytes + at, golden_inputs[i], inputs[i].bytes);
        at += inputs[i].bytes;
    }
}

/* Returns how many bytes of the golden output differ. */
static size_t selftest(void)
{
    size_t at = 0;
    size_t wrong = 0;
    take_golden_inputs();
    EK_RUN_RESET();
    infer();
    for (size_t i = 0; i < COUNT(outputs); i++) {
        const uint8_t *golden = golden_outputs[i];
        for (size_t j = 0; j < outputs[i].bytes; j++) {
            wrong += output_bytes[at + j] != golden[j];
        }
        at += outputs[i].bytes;
    }
    return wrong;
}

/* Reads one input. Returns 1, 0 at the end of the file, or -1 when the last one is cut short. */
static int read_input(FILE *file)
{
    const size_t got = fread(input_bytes, 1, sizeof input_bytes, file);
    if (got == sizeof input_bytes) {
        return 1;
    }
    return got == 0 && !ferror(file) ? 0 : -1;
}

static double output_value(size_t index)
{
    EK_RUN_OUTPUT_TYPE code;
    memcpy(&code, output_bytes + index * sizeof code, sizeof code);
    return ((double)code - EK_RUN_OUTPUT_ZERO_POINT) * EK_RUN_OUTPUT_SCALE;
}

/* Prints the classes with the highest scores; of equal scores the lower class comes first. */
static void print_classes(const char *file, unsigned long number, const print_options *options)
{
    static uint8_t shown[EK_RUN_OUTPUT_LEN];
    const size_t top = options->top < EK_RUN_OUTPUT_LEN ? options->top : EK_RUN_OUTPUT_LEN;

    memset(shown, 0, sizeof shown);
    if (options->json) {
        printf("{\"input\": %lu, \"classes\": [", number);
    } else {
        printf("%s %lu:", file, number);
    }
    for (size_t rank = 0; rank < top; rank++) {
        size_t best = EK_RUN_OUTPUT_LEN;
        for (size_t i = 0; i < EK_RUN_OUTPUT_LEN; i++) {
            if (!shown[i] && (best == EK_RUN_OUTPUT_LEN || output_value(i) > output_value(best))) {
                best = i;
            }
        }
        shown[best] = 1;
        if (options->json) {
            printf("%s{\"class\": %zu, \"score\": %.9g}", rank ? ", " : "", best,
                   output_value(best));
        } else {
            printf(" %zu=%.6g", best, output_value(best));
        }
    }
    puts(options->json ? "]}" : "");
}

static int stream(void)
{
    int more = 0;
    EK_RUN_RESET();
    while ((more = read_input(stdin)) > 0) {
        infer();
        if (fwrite(output_bytes, 1, sizeof output_bytes, stdout) != sizeof output_bytes ||
            fflush(stdout) != 0) {
            return 2;
        }
    }
    return more < 0 ? 2 : 0;
}

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* Returns the number behind a word that begins a line of a file, or 0 where there is none. */
static unsigned long read_kib(const char *path, const char *word)
{
    char line[128];
    unsigned long number = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return 0;
    }
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, word, strlen(word)) == 0) {
            number = strtoul(line + strlen(word), NULL, 10);
        }
    }
    fclose(file);
    return number;
}

/* Returns the most memory that this process has had, in KiB, or 0 where Linux does not say. Not
 * getrusage: that also counts what the process was before it became this program. The peak is
 * counted in batches of 64 pages, more than there may be here; the other figure is exact, and as
 * nothing is given back, the peak as well. */
static unsigned long peak_memory_kib(void)
{
    const unsigned long peak = read_kib("/proc/self/status", "VmHWM:");
    const unsigned long now = read_kib("/proc/self/smaps_rollup", "Rss:");
    return now > peak ? now : peak;
}

/* Returns what one inference took in ns, without the copies of its inputs and outputs. */
static double time_inference(void)
{
    load_inputs();
    EK_RUN_RESET();
    const double start = now_ns();
    EK_RUN_INVOKE(ek_arena);
    return now_ns() - start;
}

static int measure(unsigned long warmup, unsigned long runs, unsigned long seconds)
{
    int more = 0;
    while ((more = read_input(stdin)) > 0) {
        EK_RUN_RESET();
        infer();
        if (fwrite(output_bytes, 1, sizeof output_bytes, stdout) != sizeof output_bytes) {
            return 2;
        }
    }
    if (more < 0) {
        return 2;
    }
    take_golden_inputs();
    for (unsigned long i = 0; i < warmup; i++) {
        (void)time_inference();
    }
    const double end = now_ns() + (double)seconds * 1e9;
    printf("\n{\"times_ns\": [%.0f", time_inference());
    for (unsigned long i = 1; i < runs && (i < EK_LEAST_RUNS || now_ns() < end); i++) {
        printf(", %.0f", time_inference());
    }
    printf("], \"peak_memory_kib\": %lu}\n", peak_memory_kib());
    return fflush(stdout) == 0 ? 0 : 2;
}

/* Whether what was read begins as .npy files do, which hold more than raw codes. */
static int is_npy(void)
{
    static const uint8_t magic[] = {0x93, 'N', 'U', 'M', 'P', 'Y'};
    return sizeof input_bytes >= sizeof magic && memcmp(input_bytes, magic, sizeof magic) == 0;
}

static int classify(FILE *file, const char *name, const print_options *options)
{
    unsigned long number = 0;
    int more = 0;
    EK_RUN_RESET();
    while ((more = read_input(file)) > 0) {
        if (number == 0 && is_npy()) {
            fprintf(stderr, "edgekiln-model: %s: a .npy file, not raw codes; edgekiln-run reads it\n",
                    name);
            return 2;
        }
        infer();
        print_classes(name, number, options);
        number++;
    }
    if (more < 0 || number == 0) {
        fprintf(stderr, "edgekiln-model: %s: not a whole number of inputs; an input has %lu bytes\n",
                name, (unsigned long)sizeof input_bytes);
        return 2;
    }
    return 0;
}

static int classify_files(char **names, const print_options *options)
{
    if (names[0] == NULL) {
        return classify(stdin, "stdin", options);
    }
    for (; names[0] != NULL; names++) {
        FILE *file = fopen(names[0], "rb");
        if (file == NULL) {
            fprintf(stderr, "edgekiln-model: %s: %s\n", names[0], strerror(errno));
            return 2;
        }
        const int code = classify(file, names[0], options);
        fclose(file);
        if (code != 0) {
            return code;
        }
    }
    return 0;
}

static int usage(void)
{
    fputs("usage: edgekiln-model --selftest | --stream | --measure W N S |\n"
          "       [--top K] [--json] [--] [FILE ...]\n",
          stderr);
    return 2;
}

/* Reads a number above 0 that is not absurd; returns 0 when it is none. */
static unsigned long read_number(const char *text)
{
    char *end = NULL;
    const unsigned long number = strtoul(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' && number <= 1000000000ul ? number : 0;
}

int main(int count, char **arguments)
{
    print_options options = {1, 0};
    int at = 1;

    if (count == 2 && strcmp(arguments[1], "--selftest") == 0) {
        const size_t wrong = selftest();
        printf("%s: %s, %lu bytes differ\n", EK_RUN_NAME, wrong ? "FAILED" : "passed",
               (unsigned long)wrong);
        return wrong != 0;
    }
    if (count == 2 && strcmp(arguments[1], "--stream") == 0) {
        return stream();
    }
    if (count == 5 && strcmp(arguments[1], "--measure") == 0) {
        const unsigned long warmup = read_number(arguments[2]);
        const unsigned long runs = read_number(arguments[3]);
        const unsigned long seconds = read_number(arguments[4]);
        return warmup && runs && seconds ? measure(warmup, runs, seconds) : usage();
    }
    for (; at < count && strncmp(arguments[at], "--", 2) == 0; at++) {
        if (strcmp(arguments[at], "--") == 0) {
            at++;
            break;
        }
        if (strcmp(arguments[at], "--json") == 0) {
            options.json = 1;
        } else if (strcmp(arguments[at], "--top") == 0 && at + 1 < count) {
            options.top = (size_t)read_number(arguments[++at]);
            if (options.top == 0) {
                return usage();
            }
        } else {
            return usage();
        }
    }
    return classify_files(arguments + at, &options);
}
