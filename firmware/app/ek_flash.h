/* Texts and constant tables on processors whose loads do not reach flash. There EK_FLASH is a
 * part of a pointer's type, as in the model's code (ek_common.h); elsewhere it is nothing. */
#ifndef EK_FLASH_H
#define EK_FLASH_H

#if defined(__AVR__)
#ifndef EK_FLASH
#define EK_FLASH __flash
#endif
/* A literal: an array in flash, and a pointer to it. */
#define EK_TEXT(literal)                                   \
    (__extension__({                                       \
        static const EK_FLASH char ek_literal[] = literal; \
        &ek_literal[0];                                    \
    }))
#else
#ifndef EK_FLASH
#define EK_FLASH
#endif
#define EK_TEXT(literal) (literal)
#endif

#endif
