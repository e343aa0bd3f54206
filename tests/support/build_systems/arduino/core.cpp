/* The core's main, which runs loop once. */
#include <Arduino.h>

StandInSerial Serial;

unsigned long micros()
{
    static unsigned long now = 0;
    return now += 7;
}

void delay(unsigned long) {}

int main()
{
    setup();
    loop();
    return 0;
}
