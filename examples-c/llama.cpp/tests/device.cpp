/*
 * A cache that is not in host memory, as on a GPU: a server of ggml's RPC backend in a child process plays the device. Attention is
 * the padded one, on the device; scoring and moving go through copies.
 */
#include "oracle.h"

#include "ggml-cpu.h"
#include "ggml-rpc.h"

#include <csignal>
#include <unistd.h>

static const uint32_t N_PROMPT = 200, N_STEPS = 20;

int main(int argc, char ** argv) {
    const std::string path = std::string(argc > 1 ? argv[1] : ".") + "/device.gguf";
    const std::string endpoint = "127.0.0.1:" + std::to_string(20000 + getpid() % 30000);
    const pid_t server = fork();
    if (server == 0) {
        std::freopen("/dev/null", "w", stdout);
        std::freopen("/dev/null", "w", stderr);
        ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        ggml_backend_rpc_start_server(endpoint.c_str(), nullptr, 1, 1, &cpu);
        _exit(0);
    }
    tiny_model tiny;
    tiny.write(path);
    start();
    ggml_backend_reg_t reg = nullptr;
    for (int i = 0; i < 50 && (!reg || ggml_backend_reg_dev_count(reg) == 0); i++) {
        usleep(100000);
        reg = ggml_backend_rpc_add_server(endpoint.c_str());
    }
    if (!reg || ggml_backend_reg_dev_count(reg) == 0) {
        check(false, "a server of ggml's RPC backend at %s", endpoint.c_str());
        kill(server, SIGTERM);
        return 1;
    }
    ggml_backend_dev_t devices[] = { ggml_backend_reg_dev_get(reg, 0), nullptr };
    llama_model_params mp = llama_model_default_params();
    mp.devices = devices;
    mp.n_gpu_layers = 99;
    model_ptr on_device(llama_model_load_from_file(path.c_str(), mp)), on_host = load(path);
    const auto tokens = some_tokens(N_PROMPT + 2 * N_STEPS, tiny.n_vocab);

    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 })
        for (bool flash : { true, false }) {
            if (type == GGML_TYPE_Q8_0 && !flash) continue;
            floats first[2], second[2];
            kept_rows rows[2];
            bool done = true;
            for (int i = 0; i < 2; i++) {
                llama_lava_params p = llama_lava_default_params();
                p.budget = 80;
                p.n_reserve = 7;
                p.attn = i == 0 ? LLAMA_LAVA_ATTN_PADDED : LLAMA_LAVA_ATTN_AUTO;
                options o;
                o.type_k = o.type_v = type;
                o.flash = flash;
                o.lava = &p;
                context_ptr ctx = open((i == 0 ? on_host : on_device).get(), o);
                llama_lava_compress_next(ctx.get());
                done = done && decode(ctx.get(), tokens.data(), (int) N_PROMPT) == 0 && llama_lava_last_result(ctx.get()) == 0;
                first[i] = steps(ctx.get(), tokens, N_PROMPT, N_STEPS);
                llama_lava_set_budget(ctx.get(), 60, 0);
                done = done && llama_lava_compress(ctx.get()) == 0;
                rows[i] = all_positions(ctx.get());
                second[i] = steps(ctx.get(), tokens, N_PROMPT + N_STEPS, N_STEPS);
                llama_memory_clear(llama_get_memory(ctx.get()), true);
                done = done && decode(ctx.get(), tokens.data(), (int) N_PROMPT) == 0;
            }
            const double off = std::max(apart(first[0], first[1]), apart(second[0], second[1]));
            check(done && rows[0] == rows[1] && off < 1e-5, "%-4s flash %-3s on a device: compressed twice, grown and cleared; the same rows, logits at most %.1e apart",
                  ggml_type_name(type), flash ? "on" : "off", off);
        }
    llama_lava_params p = llama_lava_default_params();
    p.attn = LLAMA_LAVA_ATTN_RAGGED;
    context_ptr ctx = open(on_device.get(), {});
    log_text.clear();
    check_refused(llama_lava_enable(ctx.get(), p) == -2, "ragged attention on a device", "host memory");
    ctx.reset();
    on_device.reset();
    kill(server, SIGTERM);
    return n_failed > 0;
}
