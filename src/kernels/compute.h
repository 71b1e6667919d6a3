/* compute.h - what a struct compute is inside kernels/. */
#pragma once
#include "kernels/kernels.h"
#include "kernels/pool.h"

struct compute {
        struct pool *pool;
        enum isa isa;
        enum activation activation;
};
