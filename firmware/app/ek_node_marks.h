/* Included before a model's code: each node's end becomes a label, which a counter in an
 * emulator looks up in the ELF. It takes no space; the memory clobber keeps one node's loads
 * and stores from moving into another. */
#ifndef EK_NODE_MARKS_H
#define EK_NODE_MARKS_H

#define EK_AFTER_NODE(index, data, bytes)                                        \
    __asm__ volatile(".globl ek_after_node_" #index "\nek_after_node_" #index ":" \
                     :                                                           \
                     :                                                           \
                     : "memory")

#endif
