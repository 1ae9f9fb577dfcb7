/*
 * kernels_upload.h - what the kernel of upload.cu is launched with. It puts what the host knows of a batch into device memory: a
 * launch's arguments are copied when it is asked for, so nothing of the host's has to stay, and a captured graph holds them.
 *
 *     lava_upload     1 block     512 threads
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef LAVA_KERNELS_UPLOAD_H
#define LAVA_KERNELS_UPLOAD_H

#include <stdint.h>

/** 8 bytes each. With them the arguments are below the 4096 bytes that every driver takes. */
#define LAVA_UPLOAD_WORDS 500

typedef struct lava_upload_args {
    uint64_t *to;
    uint64_t n_words;
    uint64_t words[LAVA_UPLOAD_WORDS];
} lava_upload_args;

#endif
