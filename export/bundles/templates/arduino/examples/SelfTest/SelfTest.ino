// Runs @name@ on an input whose output is known, then again and again with the time it takes.
#include <string.h>

#include <@name@.h>
#include <@name@_selftest.h>

@buffers@

void setup()
{
    Serial.begin(115200);
    while (!Serial) {
    }
    const uint32_t wrong = @name@_selftest(@selftest_arguments@);
    Serial.print("@name@: wrong values in the self-test: ");
    Serial.println((unsigned long)wrong);
}

void loop()
{
    // Put your own data here. The inference overwrites an input that lies in the arena.
@load@
    const unsigned long start = micros();
@invoke@
    const unsigned long end = micros();
@print_outputs@
    Serial.print("microseconds: ");
    Serial.println(end - start);
    delay(1000);
}
