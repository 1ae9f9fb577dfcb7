/*
 * Memory as the system counts it: resident bytes after compression against the budget's arithmetic, and the peak of a prompt
 * that is one ubatch. Each case is a process of its own.
 */
#include "harness.h"

#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint32_t N_PROMPT = 2048;

struct report {
    double before, dense, after, peak;  // MiB: resident before the context, with the prompt, after compression; most at any time
    double bytes_used, bytes_peak, bytes_dense;
    int result;
};

static double status_mib(const char * key) {
    FILE * f = std::fopen("/proc/self/status", "r");
    char line[256];
    double kib = 0;
    while (f && std::fgets(line, sizeof(line), f))
        if (std::strncmp(line, key, std::strlen(key)) == 0) kib = std::atof(line + std::strlen(key));
    if (f) std::fclose(f);
    return kib / 1024;
}

enum how { STOCK, AFTER, CASCADE };

static report run(const std::string & path, how how, double ratio) {
    int ends[2];
    if (pipe(ends) != 0) std::exit(1);
    const pid_t child = fork();
    if (child == 0) {
        start();
        model_ptr model = load(path);
        llama_lava_params params = llama_lava_default_params();
        params.ratio = ratio;
        options o;
        o.n_ctx = N_PROMPT + 256;
        o.n_ubatch = N_PROMPT;
        o.type_k = o.type_v = GGML_TYPE_F32;
        o.lava = how == STOCK ? nullptr : &params;
        report r = {};
        const auto tokens = some_tokens(N_PROMPT, 200);
        context_ptr ctx = open(model.get(), o);
        r.before = status_mib("VmRSS:");
        if (how == CASCADE) llama_lava_compress_next(ctx.get());
        r.result = decode(ctx.get(), tokens.data(), (int) N_PROMPT);
        r.dense = status_mib("VmRSS:");
        if (how == AFTER && r.result == 0) r.result = llama_lava_compress(ctx.get());
        if (how == CASCADE && r.result == 0) r.result = llama_lava_last_result(ctx.get());
        malloc_trim(0);  // what was needed only while compressing
        r.after = status_mib("VmRSS:");
        r.peak = status_mib("VmHWM:");
        const llama_lava_info info = llama_lava_get_info(ctx.get());
        r.bytes_used = (double) info.kv_bytes_used / (1 << 20);
        r.bytes_peak = (double) info.kv_bytes_peak / (1 << 20);
        r.bytes_dense = (double) info.kv_bytes_dense / (1 << 20);
        if (write(ends[1], &r, sizeof(r)) != (ssize_t) sizeof(r)) _exit(1);
        _exit(0);
    }
    report r = {};
    int status = 0;
    close(ends[1]);
    if (read(ends[0], &r, sizeof(r)) != (ssize_t) sizeof(r)) r.result = -100;
    close(ends[0]);
    waitpid(child, &status, 0);
    if (r.result != 0 || status != 0) check(false, "a run that ends well (%d)", r.result);
    return r;
}

int main(int argc, char ** argv) {
    const std::string path = std::string(argc > 1 ? argv[1] : ".") + "/memory.gguf";
    tiny_model tiny;
    tiny.n_layer = 12;
    tiny.n_head = tiny.n_head_kv = 8;
    tiny.write(path);
    const double cache = (double) tiny.n_layer * tiny.n_head_kv * tiny.head_dim * 2 * sizeof(float) * N_PROMPT / (1 << 20);
    const report stock = run(path, STOCK, 1), all = run(path, AFTER, 1);
    std::printf("      K and V of %u tokens: %.1f MiB. Process: stock %.1f MiB, most %.1f; packed, everything kept %.1f, most %.1f\n",
                N_PROMPT, cache, stock.after, stock.peak, all.after, all.peak);
    for (double ratio : { 0.5, 0.2, 0.1 }) {
        const double budget = (double) (uint32_t) (ratio * N_PROMPT) / N_PROMPT * cache;
        for (how how : { AFTER, CASCADE }) {
            const report r = run(path, how, ratio);
            // what everything kept takes more is what was evicted
            const double resident = cache - (all.after - r.after);
            std::printf("      %3.0f%% kept, %s: process %.1f MiB, most %.1f; K and V %.2f MiB, most %.1f\n", ratio * 100.0,
                        how == AFTER ? "compressed at the end" : "while it is evaluated", r.after, r.peak, r.bytes_used, r.bytes_peak);
            check(std::fabs(r.bytes_used - budget) < 0.001 * budget, "the rows are those of the budget: %.2f MiB of %.2f", r.bytes_used, budget);
            check(std::fabs(resident - budget) < 0.05 * budget, "resident K and V are within 5%% of the budget: %.2f MiB of %.2f", resident, budget);
            if (how == CASCADE)
                check(r.peak < stock.peak - 0.5 * cache * (1 - ratio) && r.bytes_peak < cache,
                      "a prompt of one ubatch never has the dense cache: at most %.1f MiB, stock %.1f", r.peak, stock.peak);
        }
    }
    return n_failed > 0;
}
