/*
 * A small reader of .safetensors files, for the examples in this folder.
 *
 * Why it is here: no C library for the format is maintained well enough to depend on, and the examples need little of
 * it. The format: a u64 (little-endian) with the header's length, the header as JSON, then the tensors' bytes:
 *
 *     { "__metadata__": {"key": "text", ...},
 *       "name": {"dtype": "F16", "shape": [1024, 2, 32], "data_offsets": [begin, end]}, ... }
 *
 * What it does: reads the whole file into memory, checks every entry once (element type, sizes, bounds, alignment), and
 * finds tensors and metadata by name. What it does not do: write, map files into memory, big-endian machines, escapes
 * (\) in names and texts, more than ST_MAX_DIMS dimensions, or element types other than F32, F16, BF16 and I32. It
 * refuses those, saying so on stderr. Compiles as C11 and as C++17.
 */
#ifndef ST_SAFETENSORS_H
#define ST_SAFETENSORS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ST_MAX_DIMS 4
#define ST_MAX_HEADER (100u << 20)  /* the format's own limit, about */

typedef enum { ST_F32, ST_F16, ST_BF16, ST_I32 } st_dtype;

typedef struct {
    const char *name;
    st_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[ST_MAX_DIMS];
    const void *data;  /* into the file's memory, aligned to its element; valid until st_close */
    size_t size;       /* bytes */
} st_tensor;

typedef struct {
    const char *key, *text;
} st_metadata;

typedef struct {
    unsigned char *bytes;  /* the file */
    size_t size;
    unsigned char *data;  /* the part after the header */
    size_t data_size;
    st_tensor *tensors;
    size_t n_tensors;
    st_metadata *metadata;
    size_t n_metadata;
    const char *path;
} st_file;

/* The header, being read. Once `wrong` is set, nothing moves any more. */
typedef struct {
    char *at, *end;
    const char *wrong;
} st_cursor;

static inline void st_wrong(st_cursor *c, const char *what) {
    if (c->wrong == NULL) c->wrong = what;
}

static inline bool st_peek(st_cursor *c, char want) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r')) c->at++;
    return c->wrong == NULL && c->at < c->end && *c->at == want;
}

static inline bool st_accept(st_cursor *c, char want) {
    if (!st_peek(c, want)) return false;
    c->at++;
    return true;
}

static inline void st_expect(st_cursor *c, char want, const char *otherwise) {
    if (!st_accept(c, want)) st_wrong(c, otherwise);
}

/* A string, in place: its closing quote becomes its terminating zero. */
static inline const char *st_string(st_cursor *c) {
    st_expect(c, '"', "a string is missing in the header");
    char *begin = c->at;
    while (c->wrong == NULL) {
        if (c->at == c->end) st_wrong(c, "a string in the header does not end");
        else if (*c->at == '"') { *c->at++ = '\0'; return begin; }
        else if (*c->at == '\\') st_wrong(c, "escapes in strings are not supported");
        else if ((unsigned char) *c->at < 0x20) st_wrong(c, "a control character in a string");
        else c->at++;
    }
    return "";
}

static inline uint64_t st_number(st_cursor *c) {
    uint64_t value = 0;
    st_peek(c, '0');
    char *begin = c->at;
    for (; c->wrong == NULL && c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
        uint64_t digit = (uint64_t) (*c->at - '0');
        if (value > (UINT64_MAX - digit) / 10) st_wrong(c, "a number in the header is too large");
        else value = value * 10 + digit;
    }
    if (c->at == begin) st_wrong(c, "a number is missing in the header");
    return value;
}

/* [number, number, ...] */
static inline uint32_t st_numbers(st_cursor *c, uint64_t *out, uint32_t room) {
    uint32_t n = 0;
    st_expect(c, '[', "a list is missing in the header");
    if (st_accept(c, ']')) return 0;
    do {
        if (n == room) st_wrong(c, "a list in the header has too many entries");
        else out[n++] = st_number(c);
    } while (st_accept(c, ','));
    st_expect(c, ']', "a list in the header does not end");
    return c->wrong == NULL ? n : 0;
}

/* {"dtype": .., "shape": .., "data_offsets": ..}, in any order, each once. */
static inline st_tensor st_read_tensor(st_cursor *c, const st_file *file, const char *name) {
    static const struct { const char *name; st_dtype dtype; size_t size; } dtypes[] = {
        {"F32", ST_F32, 4}, {"F16", ST_F16, 2}, {"BF16", ST_BF16, 2}, {"I32", ST_I32, 4}};
    st_tensor t;
    memset(&t, 0, sizeof(t));
    t.name = name;
    const char *dtype = NULL;
    uint64_t offsets[2] = {0, 0};
    unsigned seen = 0;
    st_expect(c, '{', "a tensor's entry is not an object");
    do {
        const char *field = st_string(c);
        st_expect(c, ':', "a colon is missing in the header");
        unsigned bit = 0;
        if (strcmp(field, "dtype") == 0) {
            bit = 1;
            dtype = st_string(c);
        } else if (strcmp(field, "shape") == 0) {
            bit = 2;
            t.n_dims = st_numbers(c, t.shape, ST_MAX_DIMS);
        } else if (strcmp(field, "data_offsets") == 0) {
            bit = 4;
            if (st_numbers(c, offsets, 2) != 2) st_wrong(c, "data_offsets are not two numbers");
        } else {
            st_wrong(c, "a tensor has an unknown field");
        }
        if (seen & bit) st_wrong(c, "a tensor has a field twice");
        seen |= bit;
    } while (st_accept(c, ','));
    st_expect(c, '}', "a tensor's entry does not end");
    if (seen != 7) st_wrong(c, "a tensor lacks its dtype, shape or data_offsets");
    if (c->wrong != NULL) return t;

    size_t i = 0, n_dtypes = sizeof(dtypes) / sizeof(dtypes[0]);
    while (i < n_dtypes && strcmp(dtype, dtypes[i].name) != 0) i++;
    if (i == n_dtypes) {
        st_wrong(c, "a tensor's element type is none of F32, F16, BF16, I32");
        return t;
    }
    t.dtype = dtypes[i].dtype;
    uint64_t size = dtypes[i].size;
    for (uint32_t d = 0; d < t.n_dims; d++) {
        if (t.shape[d] != 0 && size > UINT64_MAX / t.shape[d]) {
            st_wrong(c, "a tensor's shape is too large");
            return t;
        }
        size *= t.shape[d];
    }
    if (offsets[0] > offsets[1] || offsets[1] > file->data_size) {
        st_wrong(c, "a tensor lies outside the file (is it cut short?)");
    } else if (offsets[1] - offsets[0] != size) {
        st_wrong(c, "a tensor's shape and data_offsets do not agree");
    } else if ((uintptr_t) (file->data + offsets[0]) % dtypes[i].size != 0) {
        st_wrong(c, "a tensor is not aligned to its elements");
    } else {
        t.data = file->data + offsets[0];
        t.size = (size_t) size;
    }
    return t;
}

static inline void st_close(st_file *file) {
    free(file->metadata);
    free(file->tensors);
    free(file->bytes);
    memset(file, 0, sizeof(*file));
}

/* One more entry of `size` bytes for an array of n: its capacity is the next power of two. */
static inline void *st_grow(st_cursor *c, void *array, size_t n, size_t size) {
    if ((n & (n - 1)) != 0) return array;
    void *grown = realloc(array, (n == 0 ? 1 : 2 * n) * size);
    if (grown == NULL) st_wrong(c, "out of memory");
    return grown == NULL ? array : grown;
}

static inline const char *st_read_all(st_file *file, FILE *stream) {
    size_t room = 1u << 20;
    for (;;) {
        unsigned char *grown = (unsigned char *) realloc(file->bytes, room);
        if (grown == NULL) return "out of memory";
        file->bytes = grown;
        file->size += fread(file->bytes + file->size, 1, room - file->size, stream);
        if (ferror(stream)) return "cannot be read";
        if (file->size < room) return NULL;
        if (room > SIZE_MAX / 2) return "is too large";
        room *= 2;
    }
}

/* Opens a file; false, with the reason on stderr, if that fails. `path` must outlive it. Close it with st_close. */
static inline bool st_open(st_file *file, const char *path) {
    memset(file, 0, sizeof(*file));
    file->path = path;
    FILE *stream = fopen(path, "rb");
    if (stream == NULL) {
        fprintf(stderr, "cannot open %s: %s%s\n", path, strerror(errno),
                path[0] == '/' ? "" : " (run this from the project's root)");
        return false;
    }
    const char *wrong = st_read_all(file, stream);
    fclose(stream);

    uint64_t header_size = 0;
    if (wrong == NULL && file->size < 8) wrong = "is too short to be a safetensors file";
    if (wrong == NULL) {
        for (int i = 7; i >= 0; i--) header_size = header_size << 8 | file->bytes[i];
        if (header_size > ST_MAX_HEADER || header_size > file->size - 8) wrong = "is not a safetensors file, or is cut short";
    }
    if (wrong == NULL) {
        file->data = file->bytes + 8 + header_size;
        file->data_size = file->size - 8 - (size_t) header_size;
        st_cursor c = {(char *) file->bytes + 8, (char *) file->data, NULL};
        st_expect(&c, '{', "the header is not an object");
        if (!st_accept(&c, '}')) {
            do {
                const char *name = st_string(&c);
                st_expect(&c, ':', "a colon is missing in the header");
                if (strcmp(name, "__metadata__") != 0) {
                    file->tensors = (st_tensor *) st_grow(&c, file->tensors, file->n_tensors, sizeof(st_tensor));
                    st_tensor tensor = st_read_tensor(&c, file, name);
                    if (c.wrong == NULL) file->tensors[file->n_tensors++] = tensor;
                    continue;
                }
                st_expect(&c, '{', "__metadata__ is not an object");
                if (st_accept(&c, '}')) continue;
                do {
                    st_metadata entry = {st_string(&c), NULL};
                    st_expect(&c, ':', "a colon is missing in the header");
                    entry.text = st_string(&c);
                    file->metadata = (st_metadata *) st_grow(&c, file->metadata, file->n_metadata, sizeof(st_metadata));
                    if (c.wrong == NULL) file->metadata[file->n_metadata++] = entry;
                } while (st_accept(&c, ','));
                st_expect(&c, '}', "__metadata__ does not end");
            } while (st_accept(&c, ','));
            st_expect(&c, '}', "the header does not end");
        }
        st_peek(&c, '\0');  /* skips the padding */
        if (c.at != c.end) st_wrong(&c, "something follows the header's object");
        wrong = c.wrong;
    }
    if (wrong != NULL) {
        fprintf(stderr, "%s: %s\n", path, wrong);
        st_close(file);
        return false;
    }
    return true;
}

/* NULL if none has that name. */
static inline const st_tensor *st_find(const st_file *file, const char *name) {
    for (size_t i = 0; i < file->n_tensors; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

/* NULL if none has that name. */
static inline const char *st_text(const st_file *file, const char *key) {
    for (size_t i = 0; i < file->n_metadata; i++)
        if (strcmp(file->metadata[i].key, key) == 0) return file->metadata[i].text;
    return NULL;
}

#endif
