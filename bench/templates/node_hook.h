/* Included before a generated model (cc -include) so that a test on the host sees what each node wrote. */
#ifndef EK_NODE_HOOK_H
#define EK_NODE_HOOK_H

#include <stddef.h>

typedef void (*ek_node_hook)(int index, const void *data, size_t bytes);

void ek_set_node_hook(ek_node_hook hook);
void ek_call_node_hook(int index, const void *data, size_t bytes);

#define EK_AFTER_NODE(index, data, bytes) ek_call_node_hook((index), (data), (bytes))

#endif
