/*
 * Functions that LLVM's instrumentation calls for mem*, which gcc's ThreadSanitizer runtime lacks. They call mem* itself, which the
 * runtime intercepts and checks.
 */
#include <string.h>

void *__tsan_memcpy(void *to, const void *from, size_t n);
void *__tsan_memmove(void *to, const void *from, size_t n);
void *__tsan_memset(void *to, int byte, size_t n);

void *__tsan_memcpy(void *to, const void *from, size_t n) {
    return memcpy(to, from, n);
}

void *__tsan_memmove(void *to, const void *from, size_t n) {
    return memmove(to, from, n);
}

void *__tsan_memset(void *to, int byte, size_t n) {
    return memset(to, byte, n);
}
