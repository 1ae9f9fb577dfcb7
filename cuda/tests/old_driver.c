/* A libcuda that has hardly anything: what lava_cuda_init then says is checked by `make cuda-host-test`. */
int cuInit(unsigned flags) {
    (void) flags;
    return 0;
}
