/* Seconds and microseconds from a 32-bit counter that runs up and wraps. */
#ifndef EK_TICKS_H
#define EK_TICKS_H

#include "ek_port.h"

struct ek_ticks {
    uint32_t last; /* the counter up to which time is accounted for */
    struct ek_time time;
};

/* Brings the time up to date. The counter may have wrapped once since the last call, so this
 * has to be called at least once per 2^32 ticks. per_us: ticks per microsecond, at least 2 (or
 * the microseconds of a whole turn and what is left of a second would not fit in 32 bits). */
static inline struct ek_time ek_ticks_update(struct ek_ticks *ticks, uint32_t now, uint32_t per_us)
{
    const uint32_t microseconds = (now - ticks->last) / per_us;
    ticks->last += microseconds * per_us;
    ticks->time.microseconds += microseconds;
    while (ticks->time.microseconds >= 1000000u) {
        ticks->time.microseconds -= 1000000u;
        ticks->time.seconds += 1u;
    }
    return ticks->time;
}

#endif
