/* What the AVR's port may ask of its start-up code. */
#ifndef EK_STACK_H
#define EK_STACK_H

/* Reports on the UART and stops if the stack has met the variables. */
void ek_check_stack(void);

#endif
