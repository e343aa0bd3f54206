/* Runs @name@ on an input whose output is known, and prints what it says. */
#include <stdio.h>
#include <string.h>

#include "@name@.h"
#include "@name@_selftest.h"

@buffers@

int main(void)
{
    const uint32_t wrong = @name@_selftest(@selftest_arguments@);
    printf("@name@: %lu wrong values in the self-test\n", (unsigned long)wrong);

    /* Put your own data here. The inference overwrites an input that lies in the arena. */
@load@
@invoke@
@printf_outputs@
    return wrong == 0u ? 0 : 1;
}
