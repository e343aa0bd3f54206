/* What a sketch of ours uses of Arduino's core, on a computer: Serial prints to standard output. */
#ifndef ARDUINO_H
#define ARDUINO_H

#include <cstdint>
#include <cstdio>

class StandInSerial {
public:
    void begin(unsigned long) {}
    explicit operator bool() const { return true; }
    void print(const char *text) { std::printf("%s", text); }
    void print(long value) { std::printf("%ld", value); }
    void print(int value) { std::printf("%d", value); }
    void println(const char *text) { std::printf("%s\n", text); }
    void println(long value) { std::printf("%ld\n", value); }
    void println(unsigned long value) { std::printf("%lu\n", value); }
};

extern StandInSerial Serial;

unsigned long micros();
void delay(unsigned long milliseconds);
void setup();
void loop();

#endif
