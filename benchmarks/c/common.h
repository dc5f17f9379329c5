/* What the reference server and the load generator have in common: the record, the clock, WebSocket frames. */

#ifndef COMMON_H
#define COMMON_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A mark tells when and as which change a record was published, and can be found in any framing:
   '@', six digits of the change's number, nineteen of nanoseconds of CLOCK_MONOTONIC. */
#define MARK '@'
#define MARK_DIGITS 25
#define NUMBER_DIGITS 6
#define RECORD_SIZE 200 /* bytes of a record as compact JSON */
#define RECORDS 100     /* distinct records */

static inline uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void die(const char *what, const char *detail) {
    printf("{\"error\": \"%s %s\"}\n", what, detail);
    fflush(stdout);
    exit(1);
}

/* A record of RECORD_SIZE bytes; `room` is empty or a further field with its comma. Returns its length. */
static inline size_t write_record(char *out, const char *id, const char *room, unsigned number, uint64_t at) {
    int length = sprintf(out, "{\"id\":\"%s\",%s\"mark\":\"%c%06u%019llu\",\"note\":null,\"pad\":\"", id, room, MARK, number % 1000000,
                         (unsigned long long)at);
    int pad = RECORD_SIZE - length - 2;
    if (pad < 0) die("record", "is larger than it should be");
    memset(out + length, 'x', (size_t)pad);
    memcpy(out + length + pad, "\"}", 3);
    return RECORD_SIZE;
}

/* The head of an RFC 6455 frame; `mask` is its bit 0x80 or 0. Returns its length without the masking key. */
static inline size_t write_head(uint8_t *out, uint8_t opcode, size_t length, uint8_t mask) {
    out[0] = 0x80 | opcode;
    if (length < 126) {
        out[1] = (uint8_t)(mask | length);
        return 2;
    }
    if (length < 65536) {
        out[1] = mask | 126;
        out[2] = (uint8_t)(length >> 8);
        out[3] = (uint8_t)length;
        return 4;
    }
    out[1] = mask | 127;
    for (int i = 0; i < 8; i++) out[2 + i] = (uint8_t)((uint64_t)length >> (56 - 8 * i));
    return 10;
}

#endif
