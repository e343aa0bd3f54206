/* The application on the board: one model behind a serial line.
 *
 * It speaks MLPerf Tiny's DUT protocol (commands that end in '%', answers that end in
 * "m-ready"), so that MLCommons' runner can drive it, and commands of edgekiln's own: data,
 * output, about, counters, selftest. The answers to the last four end in '*' and the CRC-32 of
 * what stands before it in the line. SPEC.md describes both.
 *
 * A command is read and obeyed byte by byte: there is no line buffer, and `db` and `data`
 * write into the model's input in the arena. invoke overwrites that input, so only the first
 * inference after a load has a meaning. Its output is kept, and is what `results` and `output`
 * answer; what `infer` runs after it is there to be timed.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ek_app_model.h"
#include "ek_port.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define EK_NOINLINE __attribute__((noinline)) /* for size, except where said otherwise */

/* A run of bytes in the arena. */
struct span {
    uint32_t offset;
    uint32_t bytes;
};

/* An output, and how its codes are printed:
 * value = ((code - zero_point) * multiplier / 2^shift) / 10^decimals. */
struct output {
    struct span span;
    int32_t zero_point;
    int32_t multiplier; /* below 2^23, so that 255 times it fits */
    uint32_t shift;
    uint32_t decimals;
};

static const struct span inputs[] = EK_MODEL_INPUTS;
static const struct output outputs[] = EK_MODEL_OUTPUTS;

static int8_t arena[EK_MODEL_ARENA_BYTES] __attribute__((aligned(16), section(".bss.ek_arena")));
static uint8_t kept_output[EK_MODEL_OUTPUT_BYTES]; /* of the first inference after a load */

static struct {
    uint32_t load_bytes; /* what `db load` announced; 0: no load */
    uint32_t loaded_bytes;
    uint32_t input_crc;
    uint32_t line_crc;
    uint32_t inferences; /* since the load was complete */
    uint8_t command_ended;
} app;

/* ---- CRC-32, the one of zlib and Ethernet ---- */

static EK_NOINLINE uint32_t crc32_update(uint32_t crc, uint8_t byte)
{
    crc ^= byte;
    for (uint32_t bit = 0; bit < 8u; ++bit) {
        crc = (crc >> 1) ^ ((crc & 1u) != 0u ? 0xEDB88320u : 0u);
    }
    return crc;
}

/* ---- Sending ---- */

static void put(char character)
{
    app.line_crc = crc32_update(app.line_crc, (uint8_t)character);
    ek_port_put((uint8_t)character);
}

static void put_text(const char *text)
{
    while (*text != '\0') {
        put(*text++);
    }
}

static EK_NOINLINE void put_hex(uint32_t value, uint32_t digits)
{
    while (digits-- > 0u) {
        const uint32_t digit = (value >> (4u * digits)) & 15u;
        put((char)(digit + (digit < 10u ? (uint32_t)'0' : (uint32_t)'a' - 10u)));
    }
}

/* value / 10^decimals, with at least min_digits digits. */
static EK_NOINLINE void put_decimal(uint32_t value, uint32_t decimals, uint32_t min_digits)
{
    char digits[12];
    uint32_t count = 0;
    do {
        digits[count++] = (char)('0' + (char)(value % 10u));
        value /= 10u;
    } while (value != 0u || count < min_digits);
    while (count-- > 0u) {
        put(digits[count]);
        if (count == decimals && count != 0u) {
            put('.');
        }
    }
}

static EK_NOINLINE void put_number(uint32_t value)
{
    put_decimal(value, 0u, 1u);
}

static EK_NOINLINE void put_line(const char *text)
{
    put_text(text);
    put_text("\r\n");
}

static EK_NOINLINE void put_error(const char *text)
{
    put_text("e-[");
    put_text(text);
    put_line("]");
}

/* A line that holds one number: text, number, end. */
static EK_NOINLINE void put_number_line(const char *text, uint32_t number, const char *end)
{
    put_text(text);
    put_number(number);
    put_line(end);
}

static void begin_checked_line(const char *text)
{
    app.line_crc = 0xFFFFFFFFu;
    put_text(text);
}

static void end_checked_line(void)
{
    put(']');
    const uint32_t crc = ~app.line_crc;
    put('*');
    put_hex(crc, 8u);
    put_line("");
}

static EK_NOINLINE void put_time(struct ek_time time)
{
    put_text("m-lap-us-");
    if (time.seconds != 0u) {
        put_number(time.seconds);
        put_decimal(time.microseconds, 0u, 6u);
    } else {
        put_number(time.microseconds);
    }
    put_line("");
}

/* ---- Receiving ---- */

/* The command's next character, or '%' once it has ended. */
static EK_NOINLINE char next_character(void)
{
    if (app.command_ended != 0u) {
        return '%';
    }
    const char character = (char)ek_port_get();
    if (character == '%') {
        app.command_ended = 1u;
    }
    return character;
}

/* Reads up to the next space or the end; keeps what fits, always terminated. */
static EK_NOINLINE void read_word(char *word, uint32_t size)
{
    uint32_t length = 0;
    char character = next_character();
    while (character == ' ' || character == '\r' || character == '\n') {
        character = next_character();
    }
    while (character != ' ' && character != '%') {
        if (length + 1u < size) {
            word[length++] = character;
        }
        character = next_character();
    }
    word[length] = '\0';
}

/* Reads a decimal number. Returns `missing` where there is none, 0 where it is not a number
 * below 10^9. */
static EK_NOINLINE uint32_t read_number(uint32_t missing)
{
    char word[11];
    uint32_t value = 0;
    read_word(word, sizeof word);
    if (word[0] == '\0') {
        return missing;
    }
    for (uint32_t i = 0; word[i] != '\0'; ++i) {
        if (word[i] < '0' || word[i] > '9' || i == 9u) {
            return 0;
        }
        value = value * 10u + (uint32_t)(word[i] - '0');
    }
    return value;
}

/* The value of a hexadecimal digit, or 16. */
static EK_NOINLINE uint32_t hex_value(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return (uint32_t)(digit - '0');
    }
    const char lower = (char)(digit | 0x20);
    if (lower >= 'a' && lower <= 'f') {
        return (uint32_t)(lower - 'a') + 10u;
    }
    return 16u;
}

static int same_text(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        ++a;
        ++b;
    }
    return *a == *b;
}

/* ---- The model ---- */

/* Where byte number `position` of the inputs, one after the other, lies. */
static EK_NOINLINE int8_t *input_byte(uint32_t position)
{
    uint32_t i = 0;
    while (i + 1u < COUNT_OF(inputs) && position >= inputs[i].bytes) {
        position -= inputs[i].bytes;
        ++i;
    }
    return arena + inputs[i].offset + position;
}

/* Not inlined and not last: the label stands where invoke returns to, for the counter. */
static EK_NOINLINE void invoke(void)
{
    EK_MODEL_INVOKE(arena);
    __asm__ volatile(".globl ek_invoke_end\nek_invoke_end:" ::: "memory");
}

static void run_inference(void)
{
    invoke();
    if (app.inferences++ != 0u) {
        return;
    }
    uint8_t *to = kept_output;
    for (uint32_t i = 0; i < COUNT_OF(outputs); ++i) {
        memcpy(to, arena + outputs[i].span.offset, outputs[i].span.bytes);
        to += outputs[i].span.bytes;
    }
}

static int has_result(void)
{
    if (app.inferences == 0u) {
        put_error("No result");
        return 0;
    }
    return 1;
}

static void put_value(const struct output *output, int8_t code)
{
    const int32_t centred = (int32_t)code - output->zero_point;
    const uint32_t magnitude = (uint32_t)(centred < 0 ? -centred : centred);
    const uint32_t half = output->shift != 0u ? 1u << (output->shift - 1u) : 0u;
    const uint32_t value = (magnitude * (uint32_t)output->multiplier + half) >> output->shift;
    if (centred < 0 && value != 0u) {
        put('-');
    }
    put_decimal(value, output->decimals, output->decimals + 1u);
}

static void put_results(void)
{
    const uint8_t *code = kept_output;
    put_text("m-results-[");
    for (uint32_t i = 0; i < COUNT_OF(outputs); ++i) {
        for (uint32_t j = 0; j < outputs[i].span.bytes; ++j) {
            if (code != kept_output) {
                put(',');
            }
            put_value(&outputs[i], (int8_t)*code++);
        }
    }
    put_line("]");
}

/* ---- MLPerf Tiny's commands ---- */

static void do_name(void)
{
    put_line("m-name-dut-[" EK_BOARD_NAME "]");
}

static void do_profile(void)
{
    put_line("m-profile-[ULPMark for tinyML Firmware V0.0.1]"); /* the API's, not ours */
    put_line("m-model-[" EK_MODEL_NAME "]");
}

static void do_timestamp(void)
{
    put_time(ek_port_now());
}

static void db_load(void)
{
    const uint32_t bytes = read_number(0u);
    app.load_bytes = 0;
    app.inferences = 0;
    if (bytes != EK_MODEL_INPUT_BYTES) {
        put_number_line("e-[The model takes ", EK_MODEL_INPUT_BYTES, " bytes]");
        return;
    }
    app.load_bytes = bytes;
    app.loaded_bytes = 0;
    app.input_crc = 0xFFFFFFFFu;
    put_number_line("m-[Expecting ", bytes, " bytes]");
}

/* Whether more of the input may come; says so where not. */
static int can_store(void)
{
    if (app.loaded_bytes == app.load_bytes) {
        put_error("Command 'db load' must come first");
        return 0;
    }
    return 1;
}

/* Appends to the input. Returns 1 when it is complete; what follows is disregarded. */
static int store(uint8_t byte)
{
    *input_byte(app.loaded_bytes) = (int8_t)byte;
    app.input_crc = crc32_update(app.input_crc, byte);
    if (++app.loaded_bytes != app.load_bytes) {
        return 0;
    }
    put_line("m-load-done");
    return 1;
}

static void db_store(char first)
{
    char character = first;
    if (!can_store()) {
        return;
    }
    while (character != '%' && character != ' ') {
        const uint32_t high = hex_value(character);
        const uint32_t low = hex_value(next_character());
        if (high > 15u || low > 15u) {
            app.load_bytes = 0;
            app.loaded_bytes = 0;
            put_error("Invalid hex digits");
            return;
        }
        if (store((uint8_t)(high * 16u + low))) {
            return;
        }
        character = next_character();
    }
}

static void db_print(void)
{
    if (app.inferences != 0u) {
        put_error("Overwritten by infer");
        return;
    }
    for (uint32_t i = 0; i < app.load_bytes; ++i) {
        if (i % 8u == 0u) {
            put_text("m-buffer-");
        }
        put_hex(i < app.loaded_bytes ? (uint8_t)*input_byte(i) : 0u, 2u);
        if (i % 8u == 7u || i + 1u == app.load_bytes) {
            put_line("");
        } else {
            put('-');
        }
    }
}

/* The first letter tells: neither 'l' nor 'p' is a hexadecimal digit. */
static void do_db(void)
{
    char rest[5];
    char first = next_character();
    while (first == ' ') {
        first = next_character();
    }
    if (first == 'l' || first == 'p') {
        read_word(rest, sizeof rest);
        if (first == 'l' && same_text(rest, "oad")) {
            db_load();
            return;
        }
        if (first == 'p' && same_text(rest, "rint")) {
            db_print();
            return;
        }
    }
    if (first == '%') {
        put_error("Command 'db' requires a subcommand");
        return;
    }
    db_store(first);
}

static void do_infer(void)
{
    uint32_t count = read_number(1u);
    uint32_t warmups = read_number(10u); /* the default of MLPerf Tiny's reference code */
    if (count == 0u) {
        put_error("Inference iterations must be >0");
        return;
    }
    if (app.load_bytes == 0u || app.loaded_bytes != app.load_bytes) {
        put_error("No complete input is loaded");
        return;
    }
    put_number_line("m-warmup-start-", warmups, "");
    while (warmups-- > 0u) {
        run_inference();
    }
    put_line("m-warmup-done");
    put_number_line("m-infer-start-", count, "");
    const struct ek_time start = ek_port_now();
    while (count-- > 0u) {
        run_inference();
    }
    const struct ek_time end = ek_port_now();
    put_time(start);
    put_time(end);
    put_line("m-infer-done");
    put_results();
}

static void do_results(void)
{
    if (has_result()) {
        put_results();
    }
}

/* ---- Our own commands ---- */

/* `data BYTES`: what `db HEX` does in half the time. The bytes come as they are, but for '%'
 * and '}': those are sent as '}' and the byte with its bit 5 flipped. */
static void do_data(void)
{
    if (!can_store()) {
        return;
    }
    for (;;) {
        char character = next_character();
        if (character == '%') {
            return;
        }
        if (character == '}') {
            character = (char)(next_character() ^ 0x20);
        }
        if (store((uint8_t)character)) {
            return;
        }
    }
}

static void do_output(void)
{
    if (!has_result()) {
        return;
    }
    begin_checked_line("m-output-[input_crc=");
    put_hex(~app.input_crc, 8u);
    put_text(",data=");
    for (uint32_t i = 0; i < EK_MODEL_OUTPUT_BYTES; ++i) {
        put_hex(kept_output[i], 2u);
    }
    end_checked_line();
}

static void put_field(const char *name, uint32_t value)
{
    put_text(name);
    put_number(value);
}

static void do_about(void)
{
    static const uint8_t digest[32] = EK_MODEL_SHA256;
    begin_checked_line("m-about-[model=" EK_MODEL_NAME ",sha256=");
    for (uint32_t i = 0; i < sizeof digest; ++i) {
        put_hex(digest[i], 2u);
    }
    put_field(",input_bytes=", EK_MODEL_INPUT_BYTES);
    put_field(",output_bytes=", EK_MODEL_OUTPUT_BYTES);
    end_checked_line();
}

static void do_counters(void)
{
    begin_checked_line("m-counters-[");
    put_field("stack_bytes=", ek_port_stack_peak());
    put_field(",arena_bytes=", EK_MODEL_ARENA_BYTES);
    end_checked_line();
}

#if EK_APP_SELFTEST
/* Runs the golden pair that the compiler made; what was loaded is lost. */
static void do_selftest(void)
{
    static const int8_t *const golden_inputs[] = EK_MODEL_GOLDEN_INPUTS;
    static const int8_t *const golden_outputs[] = EK_MODEL_GOLDEN_OUTPUTS;
    uint32_t mismatched = 0;
    app.load_bytes = 0;
    app.loaded_bytes = 0;
    app.inferences = 0;
    for (uint32_t i = 0; i < COUNT_OF(inputs); ++i) {
        memcpy(arena + inputs[i].offset, golden_inputs[i], inputs[i].bytes);
    }
    invoke();
    for (uint32_t i = 0; i < COUNT_OF(outputs); ++i) {
        for (uint32_t j = 0; j < outputs[i].span.bytes; ++j) {
            mismatched += arena[outputs[i].span.offset + j] != golden_outputs[i][j] ? 1u : 0u;
        }
    }
    begin_checked_line("m-selftest-[");
    put_field("mismatched_bytes=", mismatched);
    end_checked_line();
}
#endif

static void do_help(void);

static const struct command {
    char name[10];
    void (*run)(void);
} commands[] = {
    {"name", do_name},
    {"profile", do_profile},
    {"timestamp", do_timestamp},
    {"db", do_db},
    {"infer", do_infer},
    {"results", do_results},
    {"data", do_data},
    {"output", do_output},
    {"about", do_about},
    {"counters", do_counters},
#if EK_APP_SELFTEST
    {"selftest", do_selftest},
#endif
    {"help", do_help},
};

static void do_help(void)
{
    for (uint32_t i = 0; i < COUNT_OF(commands); ++i) {
        put_line(commands[i].name);
    }
    put_line("db load N | db HEX | db print\r\ninfer N [W]");
}

/* ---- The loop ---- */

static void obey_command(void)
{
    char word[sizeof commands[0].name + 1u];
    uint32_t i = 0;
    app.command_ended = 0;
    read_word(word, sizeof word);
    if (word[0] != '\0') { /* a lone '%' ends what came before it, and is no command */
        while (i < COUNT_OF(commands) && !same_text(word, commands[i].name)) {
            ++i;
        }
        if (i < COUNT_OF(commands)) {
            commands[i].run();
        } else {
            put_text("e-[Unknown command: ");
            put_text(word);
            put_line("]");
        }
    }
    while (next_character() != '%') {
    }
    put_line("m-ready");
}

void ek_report_fault(const char *what, uint32_t pc, uint32_t status)
{
    put_text("\r\ne-[");
    put_text(what);
    put_text(" pc=");
    put_hex(pc, 8u);
    put_text(" status=");
    put_hex(status, 8u);
    put_line("]");
}

int main(void)
{
    ek_port_init();
    put_line("m-init-done\r\nm-ready");
    for (;;) {
        obey_command();
    }
}
