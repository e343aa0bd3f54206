/* The application on the board: one model behind a serial line.
 *
 * It speaks MLPerf Tiny's DUT protocol (commands that end in '%', answers that end in
 * "m-ready"), so that MLCommons' runner can drive it, and commands of edgekiln's own: data,
 * run, output, about, counters, selftest. The answers to the last five end in '*' and the
 * CRC-32 of what stands before it in the line. SPEC.md describes both.
 *
 * A model that remembers starts anew with each load, unless `stream 1` says that the loads
 * belong together.
 *
 * A command is read and obeyed byte by byte: there is no line buffer, and `db` and `data`
 * write into the model's input in the arena. invoke overwrites that input, so only the first
 * inference after a load has a meaning. Its output is kept, and is what `results` and `output`
 * answer; what `infer` runs after it is there to be timed.
 *
 * For MLPerf Tiny's four models `db` takes what its runner sends: pixels (ic01, vww01), or real
 * numbers, of which `results` tells how well the model reconstructs them (ad01).
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

/* How the values of an output are printed. */
enum { EK_PRINT_CODES, EK_PRINT_INTEGERS, EK_PRINT_REALS };

/* An output, and how its codes are printed:
 * value = ((code - zero_point) * multiplier / 2^shift) / 10^decimals. */
struct output {
    struct span span;
    int32_t zero_point;
    int32_t multiplier; /* below 2^23, so that 255 times it fits */
    uint32_t shift;
    uint32_t decimals;
#if !EK_OUTPUTS_INT8
    uint8_t element_bytes;
    uint8_t is_signed;
    uint8_t prints_as;
#endif
};

static const EK_FLASH struct span inputs[] = EK_MODEL_INPUTS;
static const EK_FLASH struct output outputs[] = EK_MODEL_OUTPUTS;

static int8_t arena[EK_MODEL_ARENA_BYTES] __attribute__((aligned(16), section(".bss.ek_arena")));
static uint8_t kept_output[EK_MODEL_OUTPUT_BYTES]; /* of the first inference after a load */
#if EK_MODEL_STATE_BYTES
static EK_MODEL_STATE state;
static uint8_t is_stream; /* whether a load leaves the state as it is */
static uint32_t steps;    /* inferences since the model forgot */
#endif
#if EK_APP_RECONSTRUCTS
static int32_t real_input[EK_MODEL_INPUT_BYTES]; /* what was loaded as real numbers, Q20 */
static uint32_t real_word;                       /* the bytes of the one that is coming */
#endif

static struct {
    uint32_t load_bytes; /* what `db load` announced; 0: no load */
    uint32_t loaded_bytes;
    uint32_t input_crc;
    uint32_t line_crc;
    uint32_t inferences; /* since the load was complete */
    uint32_t elapsed_us; /* what the last `infer` or `run` timed */
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

/* Texts are literals, which stay in flash. Each function that takes them has a macro of its name
 * less the last word, which makes the literal. */
static void put_text_of(const EK_FLASH char *text)
{
    while (*text != '\0') {
        put(*text++);
    }
}
#define put_text(literal) put_text_of(EK_TEXT(literal))

/* A word in RAM. */
static void put_word(const char *word)
{
    while (*word != '\0') {
        put(*word++);
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

static EK_NOINLINE void put_line_of(const EK_FLASH char *text)
{
    put_text_of(text);
    put_text("\r\n");
}
#define put_line(literal) put_line_of(EK_TEXT(literal))

static EK_NOINLINE void put_error_of(const EK_FLASH char *text)
{
    put_text("e-[");
    put_text_of(text);
    put_line("]");
}
#define put_error(literal) put_error_of(EK_TEXT(literal))

/* A line that holds one number: text, number, end. */
static EK_NOINLINE void put_number_line_of(const EK_FLASH char *text, uint32_t number,
                                           const EK_FLASH char *end)
{
    put_text_of(text);
    put_number(number);
    put_line_of(end);
}
#define put_number_line(literal, number, end) \
    put_number_line_of(EK_TEXT(literal), number, EK_TEXT(end))

static void begin_checked_line_of(const EK_FLASH char *text)
{
    app.line_crc = 0xFFFFFFFFu;
    put_text_of(text);
}
#define begin_checked_line(literal) begin_checked_line_of(EK_TEXT(literal))

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

static int same_text(const char *a, const EK_FLASH char *b)
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
#if EK_MODEL_STATE_BYTES
    EK_MODEL_INVOKE(arena, &state);
#else
    EK_MODEL_INVOKE(arena);
#endif
    __asm__ volatile(".globl ek_invoke_end\nek_invoke_end:" ::: "memory");
}

#if EK_MODEL_STATE_BYTES
static void forget(void)
{
    EK_MODEL_RESET(&state);
    steps = 0;
}
#endif

static EK_NOINLINE void run_inference(void)
{
    invoke();
    (void)ek_port_now();
#if EK_MODEL_STATE_BYTES
    ++steps;
#endif
    if (app.inferences++ != 0u) {
        return;
    }
    uint8_t *to = kept_output;
    for (uint32_t i = 0; i < COUNT_OF(outputs); ++i) {
        memcpy(to, arena + outputs[i].span.offset, (size_t)outputs[i].span.bytes);
        to += outputs[i].span.bytes;
    }
}

/* Runs inferences between two looks at the clock. */
static EK_NOINLINE void time_inferences(uint32_t count, struct ek_time times[2])
{
    times[0] = ek_port_now();
    while (count-- > 0u) {
        run_inference();
    }
    times[1] = ek_port_now();
    app.elapsed_us = (times[1].seconds - times[0].seconds) * 1000000u;
    app.elapsed_us += times[1].microseconds - times[0].microseconds;
}

static int has_input(void)
{
    if (app.load_bytes == 0u || app.loaded_bytes != app.load_bytes) {
        put_error("No complete input is loaded");
        return 0;
    }
    return 1;
}

static int has_result(void)
{
    if (app.inferences == 0u) {
        put_error("No result");
        return 0;
    }
    return 1;
}

#if EK_OUTPUTS_INT8 || EK_HAS_CODES
#if EK_OUTPUTS_INT8
typedef uint32_t product;
#else
typedef uint64_t product;
#endif

static void put_code(const EK_FLASH struct output *output, int32_t code)
{
    const int32_t centred = code - output->zero_point;
    const uint32_t magnitude = (uint32_t)(centred < 0 ? -centred : centred);
    const uint32_t half = output->shift != 0u ? (uint32_t)1 << (output->shift - 1u) : 0u;
    const product scaled = (product)magnitude * (uint32_t)output->multiplier + half;
    const uint32_t value = (uint32_t)(scaled >> output->shift);
    if (centred < 0 && value != 0u) {
        put('-');
    }
    put_decimal(value, output->decimals, output->decimals + 1u);
}
#endif

#if EK_OUTPUTS_INT8
#define ELEMENT_BYTES(output) 1u

static void put_value(const EK_FLASH struct output *output, const uint8_t *bytes)
{
    put_code(output, (int8_t)*bytes);
}
#else
#define ELEMENT_BYTES(output) ((output)->element_bytes)

#if EK_HAS_CODES || EK_HAS_INTEGERS
static int64_t read_integer(const EK_FLASH struct output *output, const uint8_t *bytes)
{
    const uint64_t sign = (uint64_t)1 << (8u * output->element_bytes - 1u);
    uint64_t value = 0;
    for (uint32_t i = output->element_bytes; i-- > 0u;) {
        value = (value << 8) | bytes[i];
    }
    return (int64_t)(output->is_signed != 0u ? (value ^ sign) - sign : value);
}
#endif

#if EK_HAS_INTEGERS
static void put_integer(int64_t value)
{
    char digits[20];
    uint32_t count = 0;
    uint64_t magnitude = value < 0 ? 0u - (uint64_t)value : (uint64_t)value;
    do {
        digits[count++] = (char)('0' + (char)(magnitude % 10u));
        magnitude /= 10u;
    } while (magnitude != 0u);
    if (value < 0) {
        put('-');
    }
    while (count-- > 0u) {
        put(digits[count]);
    }
}
#endif

#if EK_HAS_REALS
static uint32_t divide_rounding(uint32_t value, uint32_t divisor)
{
    return value / divisor + (value % divisor >= (divisor + 1u) / 2u ? 1u : 0u);
}

/* A finite number other than 0 as mantissa * 10^exponent with seven digits, right to the sixth:
 * factors of 2 are traded for factors of 10 in a word that is kept full. Returns the exponent. */
static int32_t to_decimal(uint32_t bits, uint32_t *mantissa)
{
    const uint32_t biased = (bits >> 23) & 0xFFu;
    uint32_t value = (bits & 0x7FFFFFu) | (biased != 0u ? 0x800000u : 0u);
    int32_t binary = (int32_t)(biased != 0u ? biased : 1u) - 150;
    int32_t decimal = 0;
    uint32_t divisor = 1;
    for (; binary > 0; --binary) {
        if (value >= 0x80000000u) {
            value = divide_rounding(value, 10u);
            ++decimal;
        }
        value <<= 1;
    }
    while (binary < 0) {
        if (value < 0xFFFFFFFFu / 10u) {
            value *= 10u;
            --decimal;
        } else {
            value = divide_rounding(value, 2u);
            ++binary;
        }
    }
    while (value / divisor >= 10000000u) {
        divisor *= 10u;
        ++decimal;
    }
    *mantissa = divide_rounding(value, divisor);
    return decimal;
}

static void put_real(uint32_t bits)
{
    const uint32_t size = bits & 0x7FFFFFFFu;
    uint32_t mantissa = 0;
    int32_t exponent = -3;
    if (bits != size) {
        put('-');
    }
    if (size >= 0x7F800000u) {
        put_text_of(size == 0x7F800000u ? EK_TEXT("inf") : EK_TEXT("nan"));
        return;
    }
    if (size != 0u) {
        exponent = to_decimal(size, &mantissa);
    }
    if (exponent <= 0 && exponent >= -9) {
        put_decimal(mantissa, (uint32_t)-exponent, (uint32_t)-exponent + 1u);
        return;
    }
    put_decimal(mantissa, 6u, 7u);
    exponent += 6;
    put('e');
    if (exponent < 0) {
        put('-');
    }
    put_number((uint32_t)(exponent < 0 ? -exponent : exponent));
}
#endif

static void put_value(const EK_FLASH struct output *output, const uint8_t *bytes)
{
#if EK_HAS_REALS
    if (output->prints_as == EK_PRINT_REALS) {
        uint32_t bits;
        memcpy(&bits, bytes, sizeof bits);
        put_real(bits);
    }
#endif
#if EK_HAS_INTEGERS
    if (output->prints_as == EK_PRINT_INTEGERS) {
        put_integer(read_integer(output, bytes));
    }
#endif
#if EK_HAS_CODES
    if (output->prints_as == EK_PRINT_CODES) {
        put_code(output, (int32_t)read_integer(output, bytes));
    }
#endif
}
#endif

/* ---- Real numbers for a model that reconstructs its input ---- */

#if EK_APP_RECONSTRUCTS
#define Q20_MAX 0x3FFFFFFF /* just below 1024, which no feature reaches */

/* A float32 in Q20, rounded; saturates. */
static int32_t to_q20(uint32_t bits)
{
    const uint32_t exponent = (bits >> 23) & 0xFFu;
    const uint32_t mantissa = (bits & 0x7FFFFFu) | 0x800000u;
    uint32_t value = 0;
    if (exponent >= 137u) {
        value = Q20_MAX;
    } else if (exponent >= 130u) {
        value = mantissa << (exponent - 130u);
    } else if (exponent > 105u) {
        value = ((mantissa >> (129u - exponent)) + 1u) >> 1;
    }
    return (bits >> 31) != 0u ? -(int32_t)value : (int32_t)value;
}

/* value * multiplier / 2^shift, halves away from zero. */
static int32_t scale(int32_t value, uint32_t multiplier, uint32_t shift)
{
    const uint32_t magnitude = (uint32_t)(value < 0 ? -value : value);
    const uint64_t rounded = (uint64_t)magnitude * multiplier + ((uint64_t)1 << (shift - 1u));
    const int32_t scaled = (int32_t)(rounded >> shift);
    return value < 0 ? -scaled : scaled;
}

/* Puts a byte of the load in its place: of codes, or of real numbers that become codes. */
static void place_byte(uint32_t position, uint8_t byte)
{
    if (app.load_bytes == EK_MODEL_INPUT_BYTES) {
        *input_byte(position) = (int8_t)byte;
        return;
    }
    real_word = (real_word >> 8) | ((uint32_t)byte << 24);
    if (position % 4u == 3u) {
        const int32_t value = to_q20(real_word);
        const int32_t code = EK_INPUT_ZERO_POINT + scale(value, EK_INPUT_MULTIPLIER, EK_INPUT_SHIFT);
        const int32_t low = code < -128 ? -128 : code;
        real_input[position / 4u] = value;
        *input_byte(position / 4u) = (int8_t)(low > 127 ? 127 : low);
    }
}

/* The mean of the squared differences between the output and the input, in thousandths. */
static uint32_t reconstruction_error(void)
{
    uint64_t sum = 0; /* Q32 */
    for (uint32_t i = 0; i < EK_MODEL_INPUT_BYTES; ++i) {
        const int32_t centred = (int8_t)kept_output[i] - EK_OUTPUT_ZERO_POINT;
        const int32_t output = scale(centred, EK_OUTPUT_MULTIPLIER, EK_OUTPUT_SHIFT);
        const int32_t difference = output - real_input[i];
        const uint32_t size = (uint32_t)(difference < 0 ? -difference : difference) >> 4;
        sum += (uint64_t)size * size;
    }
    return (uint32_t)((sum / EK_MODEL_INPUT_BYTES * 1000u + 0x80000000u) >> 32);
}
#else
static void place_byte(uint32_t position, uint8_t byte)
{
    *input_byte(position) = (int8_t)byte;
}
#endif

/* ---- Results ---- */

static void put_results(void)
{
    const uint8_t *value = kept_output;
    put_text("m-results-[");
#if EK_APP_RECONSTRUCTS
    if (app.load_bytes != EK_MODEL_INPUT_BYTES) {
        put_decimal(reconstruction_error(), 3u, 4u);
        put_line("]");
        return;
    }
#endif
    for (uint32_t i = 0; i < COUNT_OF(outputs); ++i) {
        for (uint32_t j = 0; j < outputs[i].span.bytes; j += ELEMENT_BYTES(&outputs[i])) {
            if (value != kept_output) {
                put(',');
            }
            put_value(&outputs[i], value);
            value += ELEMENT_BYTES(&outputs[i]);
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
    if (bytes != EK_MODEL_INPUT_BYTES && bytes != EK_MODEL_INPUT_BYTES * EK_APP_ELEMENT_BYTES) {
        put_number_line("e-[The model takes ", EK_MODEL_INPUT_BYTES, " bytes]");
        return;
    }
    app.load_bytes = bytes;
    app.loaded_bytes = 0;
    app.input_crc = 0xFFFFFFFFu;
#if EK_MODEL_STATE_BYTES
    if (is_stream == 0u) {
        forget();
    }
#endif
    put_number_line("m-[Expecting ", bytes, " bytes]");
}

/* Whether more of the input may come; says so where not. */
static int can_store(void)
{
    if (app.loaded_bytes == app.load_bytes) {
        put_error("db load comes first");
        return 0;
    }
    return 1;
}

/* Appends to the input. Returns 1 when it is complete; what follows is disregarded. */
static int store(uint8_t byte)
{
    place_byte(app.loaded_bytes, byte);
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
            put_error("Not hex");
            return;
        }
        if (store((uint8_t)((high * 16u + low) ^ EK_APP_DB_XOR))) {
            return;
        }
        character = next_character();
    }
}

static void db_print(void)
{
    if (app.inferences != 0u || app.load_bytes > EK_MODEL_INPUT_BYTES) {
        put_error("Overwritten");
        return;
    }
    for (uint32_t i = 0; i < app.load_bytes; ++i) {
        if (i % 8u == 0u) {
            put_text("m-buffer-");
        }
        put_hex(i < app.loaded_bytes ? (uint8_t)*input_byte(i) ^ EK_APP_DB_XOR : 0u, 2u);
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
        if (first == 'l' && same_text(rest, EK_TEXT("oad"))) {
            db_load();
            return;
        }
        if (first == 'p' && same_text(rest, EK_TEXT("rint"))) {
            db_print();
            return;
        }
    }
    if (first == '%') {
        put_error("db what?");
        return;
    }
    db_store(first);
}

static void do_infer(void)
{
    uint32_t count = read_number(1u);
    uint32_t warmups = read_number(10u); /* the default of MLPerf Tiny's reference code */
    if (count == 0u) {
        put_error("No inferences");
        return;
    }
    if (!has_input()) {
        return;
    }
    put_number_line("m-warmup-start-", warmups, "");
    while (warmups-- > 0u) {
        run_inference();
    }
    put_line("m-warmup-done");
    put_number_line("m-infer-start-", count, "");
    struct ek_time times[2];
    time_inferences(count, times);
    put_time(times[0]);
    put_time(times[1]);
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

static EK_NOINLINE void put_field_of(const EK_FLASH char *name, uint32_t value)
{
    put_text_of(name);
    put_number(value);
}
#define put_field(literal, value) put_field_of(EK_TEXT(literal), value)

/* `runs` tells a host what it cannot see on a bad line: whether an inference was done twice. */
static void do_output(void)
{
    if (!has_result()) {
        return;
    }
    begin_checked_line("m-output-[input_crc=");
    put_hex(~app.input_crc, 8u);
#if EK_MODEL_STATE_BYTES
    put_field(",runs=", steps);
#else
    put_field(",runs=", app.inferences);
#endif
    put_field(",us=", app.elapsed_us);
    put_text(",data=");
    for (uint32_t i = 0; i < EK_MODEL_OUTPUT_BYTES; ++i) {
        put_hex(kept_output[i], 2u);
    }
    end_checked_line();
}

/* What `infer 1 0` and `output` do, without numbers that the line could change. */
static void do_run(void)
{
    struct ek_time times[2];
    if (!has_input()) {
        return;
    }
    if (app.inferences != 0u) {
        put_error("Overwritten");
        return;
    }
    time_inferences(1u, times);
    do_output();
}

static void do_about(void)
{
    static const EK_FLASH uint8_t digest[32] = EK_MODEL_SHA256;
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

#if EK_MODEL_STATE_BYTES
/* `stream 1`: the loads that follow belong together, `stream 0`: each stands for itself. The
 * model forgets what was before either, and the load. */
static void do_stream(void)
{
    is_stream = read_number(1u) != 0u ? 1u : 0u;
    app.load_bytes = 0;
    app.loaded_bytes = 0;
    app.inferences = 0;
    forget();
    put_number_line("m-stream-", is_stream, "");
}
#endif

#if EK_APP_SELFTEST
/* Runs the golden pair that the compiler made; what was loaded is lost. */
static void do_selftest(void)
{
    static const void *const golden_inputs[] = EK_MODEL_GOLDEN_INPUTS;
    static const void *const golden_outputs[] = EK_MODEL_GOLDEN_OUTPUTS;
    uint32_t mismatched = 0;
    app.load_bytes = 0;
    app.loaded_bytes = 0;
    app.inferences = 0;
    for (uint32_t i = 0; i < COUNT_OF(inputs); ++i) {
        memcpy(arena + inputs[i].offset, golden_inputs[i], (size_t)inputs[i].bytes);
    }
#if EK_MODEL_STATE_BYTES
    forget();
#endif
    invoke();
    for (uint32_t i = 0; i < COUNT_OF(outputs); ++i) {
        const int8_t *golden = golden_outputs[i];
        for (uint32_t j = 0; j < outputs[i].span.bytes; ++j) {
            mismatched += arena[outputs[i].span.offset + j] != golden[j] ? 1u : 0u;
        }
    }
#if EK_MODEL_STATE_BYTES
    forget();
#endif
    begin_checked_line("m-selftest-[");
    put_field("mismatched_bytes=", mismatched);
    end_checked_line();
}
#endif

static void do_help(void);

static const EK_FLASH struct command {
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
    {"run", do_run},
    {"output", do_output},
    {"about", do_about},
    {"counters", do_counters},
#if EK_MODEL_STATE_BYTES
    {"stream", do_stream},
#endif
#if EK_APP_SELFTEST
    {"selftest", do_selftest},
#endif
    {"help", do_help},
};

static void do_help(void)
{
    for (uint32_t i = 0; i < COUNT_OF(commands); ++i) {
        put_line_of(commands[i].name);
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
            put_word(word);
            put_line("]");
        }
    }
    while (next_character() != '%') {
    }
    put_line("m-ready");
}

void ek_report_fault(const EK_FLASH char *what, uint32_t pc, uint32_t status)
{
    put_text("\r\ne-[");
    put_text_of(what);
    put_text(" pc=");
    put_hex(pc, 8u);
    put_text(" status=");
    put_hex(status, 8u);
    put_line("]");
}

int main(void)
{
    ek_port_init();
    put_line("m-timestamp-mode-performance\r\nm-init-done\r\nm-ready");
    for (;;) {
        obey_command();
    }
}
