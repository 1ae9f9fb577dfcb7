/*
 * lava_cuda.hpp - lava_cuda.h for C++17: a context that unloads itself, spans, and exceptions. Header only.
 *
 * Experimental: it has not run on a GPU yet.
 *
 * It adds nothing to what lava_cuda.h computes and costs nothing on top; lava_cuda.h is the manual, and its rules hold
 * here. Shapes, params and sequences are the C structs, made by the functions of lava.h and by init; tensors and spans
 * are lava.hpp's.
 *
 *     lava::cuda::context gpu;                                    once, with the engine's CUDA context current
 *     gpu.score_workspace_size(...), then cudaMalloc              once, for the longest prompt
 *     auto s = lava::cuda::init<lava_cuda_score_sequence>();      for each sequence; then set its fields
 *     gpu.score(shape, params, {&s, 1}, workspace, status, stream)
 *     the status word back to the host, lava::cuda::result(word)  when the stream has run the calls
 *
 * - A function that calls one of lava_cuda.h, named in its comment, throws lava::error with the status that the C
 *   function would return. What the kernels find is thrown by result alone, as a fault. What is marked noexcept does
 *   not throw.
 * - Only context's constructor allocates, host memory of a fixed size, and throws std::bad_alloc where it cannot; apart
 *   from it, only an exception's text is allocated. Device memory is always the caller's: the functions that end in
 *   _size tell how much.
 * - Pointers to device memory are plain pointers and never followed. The makers of tensors in lava.hpp take them as
 *   well, and a span of row_start is {pointer, size}.
 * - A stream is a void *, which a cudaStream_t and a CUstream turn into by themselves. No header of CUDA is needed.
 * - Threads: a context serves many at a time, a cascade one.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef LAVA_CUDA_HPP
#define LAVA_CUDA_HPP

#include "lava.hpp"
#include "lava_cuda.h"

namespace lava {
namespace detail {

struct unload {
    void operator()(void *context) const noexcept {
        lava_cuda_destroy(context, nullptr);
        release()(context);
    }
};

/* A number that is too large stays too large. */
template <class T>
std::uint32_t count(span<T> sequences) noexcept {
    return sequences.size() > UINT32_MAX ? UINT32_MAX : static_cast<std::uint32_t>(sequences.size());
}

}  // namespace detail

/** All of lava_cuda.hpp. */
namespace cuda {

/** A struct of lava_cuda.h that begins with struct_size: that is set, and all else 0. */
template <class Struct>
Struct init() noexcept {
    Struct zeroed = {};
    zeroed.struct_size = sizeof(Struct);
    return zeroed;
}

/** Device memory that belongs to someone else: a workspace, or a cascade's state. */
struct device_memory {
    void *data = nullptr;   /**< aligned to LAVA_WORKSPACE_ALIGN */
    std::size_t size = 0;   /**< bytes */
};

/** What the kernels found, as an exception: a lava::error that knows the sequence of the batch as well. */
class fault : public error {
public:
    /** What lava_cuda_result reported. */
    fault(std::uint32_t sequence, const lava_error &why) : error(name(sequence).c_str(), why), sequence_(sequence) {}

    /** The sequence of the batch, or LAVA_NONE for a word that is not a status word. */
    std::uint32_t sequence() const noexcept { return sequence_; }

private:
    static std::string name(std::uint32_t sequence) {
        return sequence == LAVA_NONE ? "lava_cuda_result" : "lava_cuda_result: sequence " + std::to_string(sequence);
    }

    std::uint32_t sequence_;
};

/** lava_cuda_result: throws a fault, unless the word of calls that the stream has run says that nothing went wrong. */
inline void result(std::uint64_t word) {
    lava_error why = lava_error_init();
    std::uint32_t sequence = LAVA_NONE;
    if (lava_cuda_result(word, &sequence, &why) != LAVA_OK) throw fault(sequence, why);
}

/**
 * The kernels, loaded into a CUDA context, and the calls that launch them.
 *
 * Not to be copied. It can be moved, also while its kernels run; calls with what was moved from throw LAVA_ERR_NULL.
 * Workspaces, status and stream are the same everywhere: as lava_cuda.h says of lava_cuda_score.
 */
class context {
public:
    /** lava_cuda_init: for the CUDA context that is current on this thread. */
    context() {
        std::size_t size = lava_cuda_context_size();
        detail::aligned memory = detail::allocate(size);
        detail::check("lava_cuda_init", [&](lava_error *e) { return lava_cuda_init(memory.get(), size, e); });
        memory_.reset(memory.release());
    }
    context(context &&) noexcept = default;              /**< calls with what was moved from throw */
    context &operator=(context &&) noexcept = default;   /**< the same; unloads what was here, as the destructor does */
    context(const context &) = delete;
    context &operator=(const context &) = delete;
    /** lava_cuda_destroy. Where another CUDA context is current, or none, the kernels stay for as long as theirs;
        destroy() says so. */
    ~context() = default;

    /** lava_cuda_destroy: later calls throw LAVA_ERR_STATE. If this throws LAVA_ERR_CONTEXT, nothing has changed. */
    void destroy() {
        detail::check("lava_cuda_destroy", [&](lava_error *e) { return lava_cuda_destroy(memory_.get(), e); });
    }

    /** What the C functions take; its place does not change when the context is moved. */
    const void *c() const noexcept { return memory_.get(); }

    /** lava_cuda_score_workspace_size. */
    std::size_t score_workspace_size(const lava_shape &shape, const lava_score_params &params,
                                     std::uint32_t n_sequences) const {
        return size("lava_cuda_score_workspace_size", lava_cuda_score_workspace_size, &shape, &params, n_sequences);
    }
    /** lava_cuda_score. */
    void score(const lava_shape &shape, const lava_score_params &params, span<const lava_cuda_score_sequence> sequences,
               device_memory workspace, std::uint64_t *status, void *stream) const {
        launch("lava_cuda_score", lava_cuda_score, sequences, workspace, status, stream, &shape, &params);
    }

    /** lava_cuda_attention_stats_workspace_size. */
    std::size_t attention_stats_workspace_size(const lava_shape &shape, const lava_score_params &params,
                                               std::uint32_t n_sequences) const {
        return size("lava_cuda_attention_stats_workspace_size", lava_cuda_attention_stats_workspace_size, &shape,
                    &params, n_sequences);
    }
    /** lava_cuda_attention_stats. */
    void attention_stats(const lava_shape &shape, const lava_score_params &params,
                         span<const lava_cuda_stats_sequence> sequences, device_memory workspace,
                         std::uint64_t *status, void *stream) const {
        launch("lava_cuda_attention_stats", lava_cuda_attention_stats, sequences, workspace, status, stream, &shape,
               &params);
    }

    /** lava_cuda_preference. workspace: 24 bytes for each sequence; may be {} for a single one. */
    void preference(const lava_shape &shape, double tau1, double tau2,
                    span<const lava_cuda_preference_sequence> sequences, device_memory workspace,
                    std::uint64_t *status, void *stream) const {
        launch("lava_cuda_preference", lava_cuda_preference, sequences, workspace, status, stream, &shape, tau1, tau2);
    }

    /** lava_cuda_mean_over_heads. workspace: 16 bytes for each sequence; may be {} for a single one. */
    void mean_over_heads(const lava_shape &shape, span<const lava_cuda_mean_sequence> sequences,
                         device_memory workspace, std::uint64_t *status, void *stream) const {
        launch("lava_cuda_mean_over_heads", lava_cuda_mean_over_heads, sequences, workspace, status, stream, &shape);
    }

    /** lava_cuda_entropy_workspace_size. */
    std::size_t entropy_workspace_size(const lava_shape &shape, std::uint32_t n_sequences) const {
        return size("lava_cuda_entropy_workspace_size", lava_cuda_entropy_workspace_size, &shape, n_sequences);
    }
    /** lava_cuda_entropy. */
    void entropy(const lava_shape &shape, span<const lava_cuda_entropy_sequence> sequences, device_memory workspace,
                 std::uint64_t *status, void *stream) const {
        launch("lava_cuda_entropy", lava_cuda_entropy, sequences, workspace, status, stream, &shape);
    }

    /** lava_cuda_layer_entries. workspace: 48 bytes for each sequence; may be {} for a single one. */
    void layer_entries(span<const lava_cuda_entries_sequence> sequences, device_memory workspace, std::uint64_t *status,
                       void *stream) const {
        launch("lava_cuda_layer_entries", lava_cuda_layer_entries, sequences, workspace, status, stream);
    }

    /** lava_cuda_global_entries_workspace_size. */
    std::size_t global_entries_workspace_size(const lava_shape &shape, std::uint32_t n_layers,
                                              std::uint32_t n_sequences) const {
        return size("lava_cuda_global_entries_workspace_size", lava_cuda_global_entries_workspace_size, &shape,
                    n_layers, n_sequences);
    }
    /** lava_cuda_global_entries. */
    void global_entries(const lava_shape &shape, std::uint32_t n_layers, const lava_select_params &params,
                        span<const lava_cuda_global_sequence> sequences, device_memory workspace, std::uint64_t *status,
                        void *stream) const {
        launch("lava_cuda_global_entries", lava_cuda_global_entries, sequences, workspace, status, stream, &shape,
               n_layers, &params);
    }

    /** lava_cuda_select_workspace_size. */
    std::size_t select_workspace_size(const lava_shape &shape, std::uint32_t n_sequences) const {
        return size("lava_cuda_select_workspace_size", lava_cuda_select_workspace_size, &shape, n_sequences);
    }
    /** lava_cuda_select. */
    void select(const lava_shape &shape, const lava_select_params &params,
                span<const lava_cuda_select_sequence> sequences, device_memory workspace, std::uint64_t *status,
                void *stream) const {
        launch("lava_cuda_select", lava_cuda_select, sequences, workspace, status, stream, &shape, &params);
    }

    /** lava_cuda_cascade_push, for sequences side by side; see cascade::next. */
    void cascade_push(span<const lava_cuda_push_sequence> sequences, device_memory workspace, std::uint64_t *status,
                      void *stream) const {
        launch("lava_cuda_cascade_push", lava_cuda_cascade_push, sequences, workspace, status, stream);
    }

    /** lava_cuda_compact_workspace_size. */
    std::size_t compact_workspace_size(std::uint32_t n_sequences) const {
        return size("lava_cuda_compact_workspace_size", lava_cuda_compact_workspace_size, n_sequences);
    }
    /** lava_cuda_compact. */
    void compact(const lava_shape &shape, span<const lava_cuda_compact_sequence> sequences, device_memory workspace,
                 const std::uint64_t *status, void *stream) const {
        launch("lava_cuda_compact", lava_cuda_compact, sequences, workspace, status, stream, &shape);
    }

    /** lava_cuda_attend_workspace_size. */
    std::size_t attend_workspace_size(const lava_shape &shape, std::uint32_t n_queries, std::uint32_t n_sequences,
                                      std::uint64_t total_rows) const {
        return size("lava_cuda_attend_workspace_size", lava_cuda_attend_workspace_size, &shape, n_queries, n_sequences,
                    total_rows);
    }
    /** lava_cuda_attend. */
    void attend(const lava_shape &shape, const lava_attend_params &params, std::uint32_t n_queries,
                span<const lava_cuda_attend_sequence> sequences, device_memory workspace, std::uint64_t *status,
                void *stream) const {
        launch("lava_cuda_attend", lava_cuda_attend, sequences, workspace, status, stream, &shape, &params, n_queries);
    }

private:
    template <class Function, class... Arguments>
    std::size_t size(const char *name, Function *function, Arguments... arguments) const {
        std::size_t bytes = 0;
        detail::check(name, [&](lava_error *e) { return function(c(), arguments..., &bytes, e); });
        return bytes;
    }

    template <class Function, class Sequence, class Word, class... Arguments>
    void launch(const char *name, Function *function, span<const Sequence> sequences, device_memory workspace,
                Word *status, void *stream, Arguments... arguments) const {
        detail::check(name, [&](lava_error *e) {
            return function(c(), arguments..., sequences.data(), detail::count(sequences), workspace.data,
                            workspace.size, status, stream, e);
        });
    }

    std::unique_ptr<void, detail::unload> memory_;
};

/**
 * lava_cuda_cascade_*: compresses while the layers arrive. The state is the caller's device memory.
 *
 * Not to be copied. It can be moved; calls with what was moved from throw LAVA_ERR_STATE. A layer's pointers stay as
 * they are.
 */
class cascade {
public:
    /** lava_cuda_cascade_state_size. */
    static std::size_t state_size(const lava_shape &shape, std::uint32_t n_layers, std::uint64_t total,
                                  const lava_select_params &params = lava_select_params_default(),
                                  const lava_cascade_params &how = lava_cascade_params_default()) {
        std::size_t size = 0;
        detail::check("lava_cuda_cascade_state_size", [&](lava_error *e) {
            return lava_cuda_cascade_state_size(&shape, n_layers, total, &params, &how, &size, e);
        });
        return size;
    }

    /** lava_cuda_cascade_init. shape: the same for all of n_layers layers. total: prefix entries to keep over all. how:
        how they share it, and after which pushes the caller evicts. */
    cascade(const context &gpu, const lava_shape &shape, std::uint32_t n_layers, std::uint64_t total,
            device_memory state, std::uint64_t *status, void *stream,
            const lava_select_params &params = lava_select_params_default(),
            const lava_cascade_params &how = lava_cascade_params_default()) {
        detail::check("lava_cuda_cascade_init", [&](lava_error *e) {
            return lava_cuda_cascade_init(gpu.c(), &shape, n_layers, total, &params, &how, state.data, state.size, &c_,
                                          status, stream, e);
        });
    }
    /** push and layer of a moved-from cascade throw. */
    cascade(cascade &&from) noexcept : c_(std::exchange(from.c_, init<lava_cuda_cascade>())) {}
    /** The same. */
    cascade &operator=(cascade &&from) noexcept {
        c_ = std::exchange(from.c_, init<lava_cuda_cascade>());
        return *this;
    }
    cascade(const cascade &) = delete;
    cascade &operator=(const cascade &) = delete;

    /** lava_cuda_cascade_workspace_size: for every push. */
    std::size_t workspace_size(const context &gpu, std::uint32_t n_sequences = 1) const {
        std::size_t size = 0;
        detail::check("lava_cuda_cascade_workspace_size", [&](lava_error *e) {
            return lava_cuda_cascade_workspace_size(gpu.c(), &c_, n_sequences, &size, e);
        });
        return size;
    }

    /** The next layer as context::cascade_push takes it; to be used at once, since it points to this cascade. weight:
        as in push. */
    lava_cuda_push_sequence next(const float *scores, const double *weight = nullptr) noexcept {
        lava_cuda_push_sequence s = init<lava_cuda_push_sequence>();
        s.cascade = &c_;
        s.scores = scores;
        s.weight = weight;
        return s;
    }

    /** lava_cuda_cascade_push, for this sequence alone. weight: device memory, under LAVA_LAYERS_WEIGHTS only. */
    void push(const context &gpu, const float *scores, device_memory workspace, std::uint64_t *status, void *stream,
              const double *weight = nullptr) {
        lava_cuda_push_sequence s = next(scores, weight);
        gpu.cascade_push({&s, 1}, workspace, status, stream);
    }

    /** lava_cuda_cascade_get: where a layer that was pushed is once the last push has run. */
    lava_cuda_cascade_layer layer(std::uint32_t index) const {
        lava_cuda_cascade_layer out = init<lava_cuda_cascade_layer>();
        detail::check("lava_cuda_cascade_get",
                      [&](lava_error *e) { return lava_cuda_cascade_get(&c_, index, &out, e); });
        return out;
    }

    /** Layers pushed so far. */
    std::uint32_t n_pushed() const noexcept { return c_.n_pushed; }

private:
    lava_cuda_cascade c_ = init<lava_cuda_cascade>();
};

}  // namespace cuda
}  // namespace lava

#endif
