// What mock.c and oload.c both need: a clock, and memory that is there or ends the program.

#pragma once

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef unsigned long long u64;

static u64 now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void *must(void *memory) {
    if (!memory) {
        perror(program_invocation_short_name);
        exit(1);
    }
    return memory;
}
