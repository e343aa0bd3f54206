/* What the application asks of a board. A port is the file that answers. */
#ifndef EK_PORT_H
#define EK_PORT_H

#include <stdint.h>

#include "ek_flash.h"

/* A moment since start-up: whole seconds and the microseconds after them, below 1000000. */
struct ek_time {
    uint32_t seconds;
    uint32_t microseconds;
};

/* Sets up the UART and a free-running timer. No interrupt may run after it: a handler's
 * instructions and stack would be counted as the model's. */
void ek_port_init(void);

/* Waits for one byte from the UART. */
uint8_t ek_port_get(void);

/* Sends one byte, waiting for room. */
void ek_port_put(uint8_t byte);

/* The time now, never less than before. Called after every inference, so that a short counter
 * can be brought up to date. */
struct ek_time ek_port_now(void);

/* The deepest that the stack has been since start-up, in bytes; 0 where it is not known. */
uint32_t ek_port_stack_peak(void);

/* For ports: reports on the UART, from main.c. */
void ek_report_fault(const EK_FLASH char *what, uint32_t pc, uint32_t status);

/* For ports: the application, from main.c. Never returns on a microcontroller. */
int main(void);

#endif
