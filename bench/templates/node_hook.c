/* Passes every node's output on to the function which the test has set. Host only: it keeps state. */
#include "node_hook.h"

static ek_node_hook current_hook = NULL;

void ek_set_node_hook(ek_node_hook hook)
{
    current_hook = hook;
}

void ek_call_node_hook(int index, const void *data, size_t bytes)
{
    if (current_hook != NULL) {
        current_hook(index, data, bytes);
    }
}
