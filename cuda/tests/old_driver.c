/* A libcuda with almost no functions: `make cuda-host-test` checks what lava_cuda_init then returns. */
int cuInit(unsigned flags) {
    (void) flags;
    return 0;
}
