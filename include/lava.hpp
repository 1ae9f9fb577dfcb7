/*
 * lava.hpp - the C ABI of lava.h and lava_methods.h for C++17: memory that frees itself, spans, and exceptions.
 *
 * Header only. It adds nothing to what lava.h computes and costs nothing beyond it; lava.h is the manual. Shapes,
 * params and reports are the C structs, made by the functions of lava.h. A params argument that is left out is the
 * recommended preset, as NULL is in C.
 *
 *     lava::workspace scratch;
 *     std::vector<float> scores = lava::score(shape, q, k, v, scratch);
 *     lava::kept kept = lava::select(shape, scores, n_entries, scratch);
 *     lava::compact(shape, k, v, kept.rows, kept.cu, k_small, v_small);
 *
 * - A function whose comment names a function of lava.h calls it, throws lava::error with the status that it returns,
 *   and std::bad_alloc if memory runs out. Outputs are then as lava.h says. Functions marked noexcept do not throw. To
 *   do without exceptions and allocations, call the C functions: they throw nothing and mix freely with those here.
 * - Spans, tensors and layers are views: the memory that they are made from must outlive their use. Vectors that are
 *   returned are the caller's.
 * - A span's length is checked against the shape before the C function is called (LAVA_ERR_BUFFER_SIZE).
 * - Threads: as lava.h says of each function. A workspace serves one call at a time.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef LAVA_HPP
#define LAVA_HPP

#include "lava_methods.h"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__GNUC__) && !defined(__cpp_exceptions)
#error "lava.hpp throws; without exceptions, call the functions of lava.h"
#endif

/** All of lava.hpp. */
namespace lava {

/** What a C function refused, as an exception. what() says it in words: function, reason, argument, layer, head. */
class error : public std::runtime_error {
public:
    /** The C function's name and what it reported. */
    error(const char *function, const lava_error &why) : std::runtime_error(words(function, why)), why_(why) {}

    /** One of the LAVA_ERR_ codes. */
    lava_status status() const noexcept { return why_.status; }
    /** The layer, or LAVA_NONE. */
    std::uint32_t layer() const noexcept { return why_.layer; }
    /** The KV head, or LAVA_NONE. */
    std::uint32_t head() const noexcept { return why_.head; }
    /** Name of the argument or field at fault; "" if none is. Static. */
    const char *argument() const noexcept { return why_.argument == nullptr ? "" : why_.argument; }

private:
    static std::string words(const char *function, const lava_error &why) {
        std::string text = std::string(function) + ": " + lava_status_string(why.status);
        if (why.argument != nullptr && why.argument[0] != '\0') text += std::string("; argument: ") + why.argument;
        if (why.layer != LAVA_NONE) text += "; layer " + std::to_string(why.layer);
        if (why.head != LAVA_NONE) text += "; KV head " + std::to_string(why.head);
        return text;
    }

    lava_error why_;
};

/** A view of `size()` elements of T in memory that belongs to someone else, like std::span of C++20. */
template <class T>
class span {
public:
    /** An empty span. */
    constexpr span() noexcept = default;
    /** `size` elements from `data` on. */
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    /** A vector, array, std::span or anything else that std::data and std::size take. */
    template <class Container,
              class = std::enable_if_t<std::is_convertible_v<
                  std::remove_pointer_t<decltype(std::data(std::declval<Container &>()))> (*)[], T (*)[]>>>
    constexpr span(Container &container) noexcept : data_(std::data(container)), size_(std::size(container)) {}

    constexpr T *data() const noexcept { return data_; }            /**< the first element; nullptr for an empty span */
    constexpr std::size_t size() const noexcept { return size_; }   /**< elements */
    constexpr bool empty() const noexcept { return size_ == 0; }    /**< whether there are none */
    constexpr T *begin() const noexcept { return data_; }           /**< as in containers */
    constexpr T *end() const noexcept { return data_ + size_; }     /**< as in containers */
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }   /**< i is below size(); not checked */

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

namespace detail {

/* Throws unless `call(lava_error *)` returns LAVA_OK. */
template <class Call>
void check(const char *function, Call &&call) {
    lava_error why = lava_error_init();
    lava_status status = call(&why);
    if (status != LAVA_OK) {
        why.status = status;
        throw error(function, why);
    }
}

[[noreturn]] inline void refuse(const char *function, lava_status status, const char *argument,
                                std::uint32_t layer = LAVA_NONE) {
    lava_error why = lava_error_init();
    why.status = status;
    why.argument = argument;
    why.layer = layer;
    throw error(function, why);
}

inline void want_size(const char *function, const char *argument, std::uint64_t have, std::uint64_t want,
                      std::uint32_t layer = LAVA_NONE) {
    if (have != want) refuse(function, LAVA_ERR_BUFFER_SIZE, argument, layer);
}

struct release {
    void operator()(void *memory) const noexcept { ::operator delete(memory, std::align_val_t(LAVA_WORKSPACE_ALIGN)); }
};

using aligned = std::unique_ptr<void, release>;

inline aligned allocate(std::size_t size) {
    return aligned(::operator new(size, std::align_val_t(LAVA_WORKSPACE_ALIGN)));
}

}  // namespace detail

/*
 * Layers.
 */

/** lava_n_scores: how many scores a layer has. The shape must be valid. */
inline std::uint64_t n_scores(const lava_shape &shape) noexcept { return lava_n_scores(&shape); }

/**
 * The layers of a model that share a total: a shape for each, or one shape that stands for all. A view.
 *
 * A vector, array or span of lava_shape converts to it implicitly, and so does a single shape: one layer.
 */
class layers {
public:
    /** A shape for each layer. */
    template <class Shapes, class = std::enable_if_t<std::is_constructible_v<span<const lava_shape>, Shapes &>>>
    layers(Shapes &shapes) noexcept
        : shapes_(std::data(shapes)), n_shapes_(std::uint32_t(std::size(shapes))), n_layers_(n_shapes_) {}
    /** `n_layers` layers of this shape. */
    layers(const lava_shape &shape, std::uint32_t n_layers = 1) noexcept
        : shapes_(&shape), n_shapes_(1), n_layers_(n_layers) {}

    const lava_shape *shapes() const noexcept { return shapes_; }     /**< the first shape */
    std::uint32_t n_shapes() const noexcept { return n_shapes_; }     /**< 1, or n_layers() */
    std::uint32_t n_layers() const noexcept { return n_layers_; }     /**< how many layers there are */
    /** Layer l's shape. l is below n_layers(); not checked. */
    const lava_shape &operator[](std::size_t l) const noexcept { return shapes_[n_shapes_ == 1 ? 0 : l]; }

private:
    const lava_shape *shapes_;
    std::uint32_t n_shapes_, n_layers_;
};

/*
 * Tensors.
 */

/** Typed memory for a tensor: made by f32, f16 and bf16. Void is void, or const void for what is only read. */
template <class Void>
struct elements {
    lava_dtype dtype;    /**< LAVA_F32, LAVA_F16 or LAVA_BF16 */
    Void *data;          /**< the first element */
    std::size_t bytes;   /**< of all elements */
};

/** A C tensor, and whether its elements may be written. A tensor converts to a const_tensor, not the reverse. */
template <class Void>
struct basic_tensor;

/** What const_tensor stands for. */
template <>
struct basic_tensor<const void> {
    lava_tensor c;   /**< what the C functions take */
};

/** What tensor stands for. */
template <>
struct basic_tensor<void> {
    lava_tensor c;   /**< what the C functions take */

    /** The same memory, read only. */
    operator basic_tensor<const void>() const noexcept { return {c}; }
};

/** A view that may be written. */
using tensor = basic_tensor<void>;
/** A view that is only read. */
using const_tensor = basic_tensor<const void>;

/** `count` floats; binary32. */
inline elements<void> f32(float *data, std::size_t count) noexcept { return {LAVA_F32, data, count * 4}; }
/** The same, read only. */
inline elements<const void> f32(const float *data, std::size_t count) noexcept { return {LAVA_F32, data, count * 4}; }
/** `count` binary16 numbers, as their bits. */
inline elements<void> f16(std::uint16_t *data, std::size_t count) noexcept { return {LAVA_F16, data, count * 2}; }
/** The same, read only. */
inline elements<const void> f16(const std::uint16_t *data, std::size_t count) noexcept {
    return {LAVA_F16, data, count * 2};
}
/** `count` bfloat16 numbers, as their bits. */
inline elements<void> bf16(std::uint16_t *data, std::size_t count) noexcept { return {LAVA_BF16, data, count * 2}; }
/** The same, read only. */
inline elements<const void> bf16(const std::uint16_t *data, std::size_t count) noexcept {
    return {LAVA_BF16, data, count * 2};
}

/** The elements of a vector, array or span of float. */
template <class Container>
auto f32(Container &container) noexcept -> decltype(f32(std::data(container), std::size(container))) {
    return f32(std::data(container), std::size(container));
}
/** The elements of a vector, array or span of uint16_t. */
template <class Container>
auto f16(Container &container) noexcept -> decltype(f16(std::data(container), std::size(container))) {
    return f16(std::data(container), std::size(container));
}
/** The elements of a vector, array or span of uint16_t. */
template <class Container>
auto bf16(Container &container) noexcept -> decltype(bf16(std::data(container), std::size(container))) {
    return bf16(std::data(container), std::size(container));
}

/** Any strides, in elements. */
template <class Void>
basic_tensor<Void> strided(elements<Void> e, std::int64_t stride_token, std::int64_t stride_head,
                           std::int64_t stride_dim) noexcept {
    return {lava_tensor_init(e.dtype, const_cast<void *>(e.data), e.bytes, stride_token, stride_head, stride_dim)};
}

/** [n_tokens, n_heads, dim] without gaps. */
template <class Void>
basic_tensor<Void> token_major(elements<Void> e, std::uint32_t n_heads, std::uint32_t dim) noexcept {
    return strided(e, std::int64_t(n_heads) * dim, dim, 1);
}

/** [n_heads, room, dim] without gaps: each head has room for `room` tokens. */
template <class Void>
basic_tensor<Void> head_major(elements<Void> e, std::uint32_t room, std::uint32_t dim) noexcept {
    return strided(e, dim, std::int64_t(room) * dim, 1);
}

/** [n_heads, dim, room] without gaps: the elements of a row are `room` apart. Each head has room for `room` tokens. */
template <class Void>
basic_tensor<Void> transposed(elements<Void> e, std::uint32_t room, std::uint32_t dim) noexcept {
    return strided(e, 1, std::int64_t(room) * dim, room);
}

/** Rows of dim elements, head h from row row_start[h] on: a compressed cache. row_start is a view, such as of kept::cu. */
template <class Void>
basic_tensor<Void> ragged(elements<Void> e, span<const std::uint32_t> row_start, std::uint32_t dim) noexcept {
    return {lava_tensor_ragged(e.dtype, const_cast<void *>(e.data), e.bytes, row_start.data(), dim)};
}

/*
 * The calls.
 */

/** Scratch memory, aligned as lava.h asks. Grows to what each call needs; nothing is kept in it between calls. */
class workspace {
public:
    /** At least `size` bytes; earlier contents are lost. Throws std::bad_alloc. */
    void *reserve(std::size_t size) {
        if (size > size_ || memory_ == nullptr) {
            memory_.reset();
            size_ = 0;
            memory_ = detail::allocate(size);
            size_ = size;
        }
        return memory_.get();
    }
    void *data() const noexcept { return memory_.get(); }     /**< the memory; nullptr before the first use */
    std::size_t size() const noexcept { return size_; }       /**< its bytes now */

private:
    detail::aligned memory_;
    std::size_t size_ = 0;
};

/** Share `index` of `count` of the work, by KV heads. The default is all of it. */
struct part {
    std::uint32_t index = 0;   /**< below count */
    std::uint32_t count = 1;   /**< parts in all, at least 1 */
};

/** lava_budget_from_ratio: tokens per KV head per layer that a ratio of the tokens means. */
inline std::uint32_t budget_from_ratio(const lava_shape &shape, double ratio,
                                       const lava_select_params &params = lava_select_params_default()) {
    std::uint32_t budget = 0;
    detail::check("lava_budget_from_ratio",
                  [&](lava_error *e) { return lava_budget_from_ratio(&shape, &params, ratio, &budget, e); });
    return budget;
}

/** lava_total_entries: prefix entries that a budget means for these layers. */
inline std::uint64_t total_entries(const layers &model, std::uint32_t budget) {
    std::uint64_t total = 0;
    detail::check("lava_total_entries", [&](lava_error *e) {
        return lava_total_entries(model.shapes(), model.n_shapes(), model.n_layers(), budget, &total, e);
    });
    return total;
}

/**
 * lava_score: writes a part's scores.
 *
 * q [min(window, n_tokens), n_q_heads, head_dim_k], k [rows, n_kv_heads, head_dim_k], v [rows, n_kv_heads, head_dim_v].
 * scores: n_scores(shape) floats for all heads, head after head, whatever the part.
 * lse: nullptr, or f32 [min(window, n_tokens), n_q_heads, 1].
 * To score without V (LAVA_VALUE_NONE), call lava_score.
 */
inline void score(const lava_shape &shape, const const_tensor &q, const const_tensor &k, const const_tensor &v,
                  span<float> scores, workspace &scratch, const lava_score_params &params = lava_score_params_default(),
                  part p = {}, const const_tensor *lse = nullptr) {
    std::size_t size = 0;
    detail::check("lava_score_workspace_size",
                  [&](lava_error *e) { return lava_score_workspace_size(&shape, &params, &size, e); });
    detail::want_size("lava_score", "scores", scores.size(), n_scores(shape), shape.layer);
    void *memory = scratch.reserve(size);
    detail::check("lava_score", [&](lava_error *e) {
        return lava_score(&shape, &params, &q.c, &k.c, &v.c, lse == nullptr ? nullptr : &lse->c, p.index, p.count,
                          memory, size, scores.data(), e);
    });
}

/** The same, all parts, into a vector of n_scores(shape) floats. */
inline std::vector<float> score(const lava_shape &shape, const const_tensor &q, const const_tensor &k,
                                const const_tensor &v, workspace &scratch,
                                const lava_score_params &params = lava_score_params_default(),
                                const const_tensor *lse = nullptr) {
    std::size_t size = 0;  // an invalid shape is refused here, before its scores are allocated
    detail::check("lava_score_workspace_size",
                  [&](lava_error *e) { return lava_score_workspace_size(&shape, &params, &size, e); });
    std::vector<float> scores(static_cast<std::size_t>(n_scores(shape)));
    score(shape, q, k, v, span<float>(scores), scratch, params, {}, lse);
    return scores;
}

/** What entropy() says about a layer. */
struct entropy_and_mass {
    double entropy;   /**< in [0, 1]: its weight for layer_entries() */
    double mass;      /**< sum of its scores */
};

/** lava_entropy: the layer's weight, in [0, 1], and the sum of its n_scores(shape) scores. */
inline entropy_and_mass entropy(const lava_shape &shape, span<const float> scores) {
    detail::want_size("lava_entropy", "scores", scores.size(), n_scores(shape), shape.layer);
    entropy_and_mass out = {0, 0};
    detail::check("lava_entropy",
                  [&](lava_error *e) { return lava_entropy(&shape, scores.data(), &out.entropy, &out.mass, e); });
    return out;
}

/** lava_layer_entries: each layer's prefix entries, if layers share a total in proportion to weights, one for each. */
inline std::vector<std::uint64_t> layer_entries(const layers &model, span<const double> weights, std::uint64_t total,
                                                const lava_select_params &params = lava_select_params_default()) {
    detail::want_size("lava_layer_entries", "weights", weights.size(), model.n_layers());
    std::vector<std::uint64_t> entries(model.n_layers());
    detail::check("lava_layer_entries", [&](lava_error *e) {
        return lava_layer_entries(model.shapes(), model.n_shapes(), model.n_layers(), &params, weights.data(), total,
                                  entries.data(), e);
    });
    return entries;
}

/** What one sort over the model gives each layer, and each of its heads. */
struct entries_of_model {
    std::vector<std::uint64_t> layers;      /**< each layer's prefix entries, for select */
    std::vector<double> head_weights;       /**< a number for each KV head, layer after layer */
    std::vector<std::size_t> first_head;    /**< each layer's first in head_weights */

    /** Layer l's, for lava_select_params::head_weights. l is below the number of layers; not checked. */
    const double *heads(std::size_t l) const noexcept { return head_weights.data() + first_head[l]; }
};

/**
 * lava_global_entries: one sort over all layers' scores, which are stored one layer after the other.
 *
 * For each layer l, select with layers[l], and with heads(l) as head_weights in the same params, keeps exactly those.
 */
inline entries_of_model global_entries(const layers &model, span<const float> scores, std::uint64_t total,
                                       workspace &scratch,
                                       const lava_select_params &params = lava_select_params_default()) {
    std::size_t size = 0, n_heads = 0;
    detail::check("lava_global_entries_workspace_size", [&](lava_error *e) {
        return lava_global_entries_workspace_size(model.shapes(), model.n_shapes(), model.n_layers(), &size, e);
    });
    entries_of_model out;
    std::uint64_t want = 0;
    for (std::uint32_t l = 0; l < model.n_layers(); l++) {
        out.first_head.push_back(n_heads);
        n_heads += model[l].n_kv_heads;
        want += n_scores(model[l]);
    }
    detail::want_size("lava_global_entries", "scores", scores.size(), want);
    out.layers.resize(model.n_layers());
    out.head_weights.resize(n_heads);
    void *memory = scratch.reserve(size);
    detail::check("lava_global_entries", [&](lava_error *e) {
        return lava_global_entries(model.shapes(), model.n_shapes(), model.n_layers(), &params, scores.data(), total,
                                   memory, size, out.layers.data(), out.head_weights.data(), e);
    });
    return out;
}

/** What a layer keeps. */
struct kept {
    std::vector<std::uint32_t> indices;  /**< true token positions, ascending per head, head after head */
    std::vector<std::uint32_t> rows;     /**< for compact: which rows of the cache these are */
    std::vector<std::uint32_t> cu;       /**< n_kv_heads + 1: head h's are indices[cu[h]] up to indices[cu[h + 1]] */
    lava_selection selection;            /**< counts, mass, evicted share */

    /** Head h's positions. h is below n_kv_heads; not checked. */
    span<const std::uint32_t> head(std::uint32_t h) const noexcept {
        return {indices.data() + cu[h], std::size_t(cu[h + 1] - cu[h])};
    }
};

/** lava_select: the best `n_entries` prefix entries by n_scores(shape) scores, and every head's window. */
inline kept select(const lava_shape &shape, span<const float> scores, std::uint64_t n_entries, workspace &scratch,
                   const lava_select_params &params = lava_select_params_default()) {
    std::size_t size = 0;
    std::uint64_t n_kept = 0;
    detail::check("lava_select_workspace_size",
                  [&](lava_error *e) { return lava_select_workspace_size(&shape, &size, e); });
    detail::want_size("lava_select", "scores", scores.size(), n_scores(shape), shape.layer);
    detail::check("lava_n_kept", [&](lava_error *e) { return lava_n_kept(&shape, n_entries, &n_kept, e); });
    kept out;
    out.indices.resize(static_cast<std::size_t>(n_kept));
    out.rows.resize(static_cast<std::size_t>(n_kept));
    out.cu.resize(std::size_t(shape.n_kv_heads) + 1);
    out.selection = lava_selection_init();
    void *memory = scratch.reserve(size);
    detail::check("lava_select", [&](lava_error *e) {
        return lava_select(&shape, &params, scores.data(), n_entries, memory, size, out.indices.data(), n_kept,
                           out.cu.data(), out.rows.data(), &out.selection, e);
    });
    return out;
}

/** lava_entries_for_share: the fewest entries with which at most `epsilon`, in [0, 1], of the score mass is evicted. */
inline std::uint64_t entries_for_share(const lava_shape &shape, span<const float> scores, double epsilon,
                                       workspace &scratch) {
    detail::want_size("lava_entries_for_share", "scores", scores.size(), n_scores(shape), shape.layer);
    std::size_t size = 0;
    std::uint64_t n_entries = 0;
    detail::check("lava_entries_for_share_workspace_size",
                  [&](lava_error *e) { return lava_entries_for_share_workspace_size(&size, e); });
    void *memory = scratch.reserve(size);
    detail::check("lava_entries_for_share", [&](lava_error *e) {
        return lava_entries_for_share(&shape, scores.data(), epsilon, memory, size, &n_entries, e);
    });
    return n_entries;
}

/**
 * lava_compact: gathers kept rows of K and V into another cache, or in place.
 *
 * rows: kept::rows, or a cascade layer's: cu_kept's last entry is its length. cu_kept: n_kv_heads + 1 entries.
 * cu_rows: empty if each head has the rows that the shape says, else n_kv_heads + 1 entries. For a cache of keys only,
 * call lava_compact.
 */
inline void compact(const lava_shape &shape, const const_tensor &k_src, const const_tensor &v_src,
                    span<const std::uint32_t> rows, span<const std::uint32_t> cu_kept, const tensor &k_dst,
                    const tensor &v_dst, span<const std::uint32_t> cu_rows = {}, part p = {}) {
    const std::uint64_t n_cu = std::uint64_t(shape.n_kv_heads) + 1;
    detail::want_size("lava_compact", "cu_kept", cu_kept.size(), n_cu, shape.layer);
    detail::want_size("lava_compact", "rows", rows.size(), cu_kept[shape.n_kv_heads], shape.layer);
    if (!cu_rows.empty()) detail::want_size("lava_compact", "cu_rows", cu_rows.size(), n_cu, shape.layer);
    detail::check("lava_compact", [&](lava_error *e) {
        return lava_compact(&shape, &k_src.c, &v_src.c, cu_rows.empty() ? nullptr : cu_rows.data(), rows.data(),
                            cu_kept.data(), &k_dst.c, &v_dst.c, p.index, p.count, e);
    });
}

/** A layer of a cascade after a push: views into the cascade, valid until its next push or its end. */
struct cascade_layer {
    bool unchanged;                            /**< nothing was evicted since the caller last compacted it */
    span<const std::uint32_t> kept_indices;    /**< true token positions, as kept::indices */
    span<const std::uint32_t> cu_kept;         /**< n_kv_heads + 1 */
    span<const std::uint32_t> rows;            /**< for compact: rows of the caller's cache, as kept::rows */
    span<const std::uint32_t> cu_rows;         /**< for compact: n_kv_heads + 1, the rows of that cache */
    std::uint64_t n_entries;                   /**< prefix entries kept */
    double entropy;                            /**< normalised entropy of the scores */
    double mass;                               /**< sum of all its scores */
    double evicted_share;                      /**< of the mass, what was evicted up to now */
};

/**
 * lava_cascade_*: compresses while the layers arrive. Owns its state.
 *
 * It cannot be copied. It can be moved: the state stays where it is in memory, and so do the views of its layers.
 */
class cascade {
public:
    /** total: prefix entries to keep over all layers. how: how they share it, and after which pushes the caller evicts.
        All are copied. */
    cascade(const layers &model, std::uint64_t total, const lava_select_params &params = lava_select_params_default(),
            const lava_cascade_params &how = lava_cascade_params_default()) {
        detail::check("lava_cascade_state_size", [&](lava_error *e) {
            return lava_cascade_state_size(model.shapes(), model.n_shapes(), model.n_layers(), total, &params, &how,
                                           &size_, e);
        });
        for (std::uint32_t l = 0; l < model.n_layers(); l++) n_heads_.push_back(model[l].n_kv_heads);
        state_ = detail::allocate(size_);
        detail::check("lava_cascade_init", [&](lava_error *e) {
            return lava_cascade_init(model.shapes(), model.n_shapes(), model.n_layers(), total, &params, &how,
                                     state_.get(), size_, e);
        });
    }
    cascade(cascade &&) noexcept = default;              /**< push and layer of a moved-from cascade throw */
    cascade &operator=(cascade &&) noexcept = default;   /**< the same */
    cascade(const cascade &) = delete;
    cascade &operator=(const cascade &) = delete;

    /** The next layer's n_scores(shape) scores, with its shape again. The cascade is unchanged if this throws. */
    void push(const lava_shape &shape, span<const float> scores) { push_as(shape, scores, nullptr); }

    /** The same with the layer's weight, under LAVA_LAYERS_WEIGHTS. */
    void push(const lava_shape &shape, span<const float> scores, double weight) { push_as(shape, scores, &weight); }

    /** What a layer that was pushed keeps now. */
    cascade_layer layer(std::uint32_t index) const {
        lava_cascade_layer c = lava_cascade_layer_init();
        detail::check("lava_cascade_get",
                      [&](lava_error *e) { return lava_cascade_get(state_.get(), size_, index, &c, e); });
        std::size_t n_heads = n_heads_[index], n_cu = n_heads + 1, n_kept = n_heads == 0 ? 0 : c.cu_kept[n_heads];
        return {c.unchanged != 0, {c.kept_indices, n_kept}, {c.cu_kept, n_cu}, {c.rows, n_kept}, {c.cu_rows, n_cu},
                c.n_entries, c.entropy, c.mass, c.evicted_share};
    }

    /** Bytes of state. */
    std::size_t size() const noexcept { return size_; }

private:
    void push_as(const lava_shape &shape, span<const float> scores, const double *weight) {
        detail::want_size("lava_cascade_push", "scores", scores.size(), n_scores(shape), shape.layer);
        detail::check("lava_cascade_push", [&](lava_error *e) {
            return lava_cascade_push(state_.get(), size_, &shape, scores.data(), weight, e);
        });
    }

    detail::aligned state_;
    std::size_t size_ = 0;
    std::vector<std::uint32_t> n_heads_;
};

/**
 * lava_attend: attention of n_queries new queries over a compressed cache.
 *
 * q [n_queries, n_q_heads, head_dim_k]; k, v usually ragged; n_rows: n_kv_heads entries, each head's rows, the new
 * tokens' own included if params.causal. out: f32 [n_queries, n_q_heads, head_dim_v]. lse: nullptr, or f32
 * [n_queries, n_q_heads, 1].
 */
inline void attend(const lava_shape &shape, std::uint32_t n_queries, const const_tensor &q, const const_tensor &k,
                   const const_tensor &v, span<const std::uint32_t> n_rows, const tensor &out, workspace &scratch,
                   const lava_attend_params &params = lava_attend_params_default(), part p = {},
                   const tensor *lse = nullptr) {
    detail::want_size("lava_attend", "n_rows", n_rows.size(), shape.n_kv_heads, shape.layer);
    std::size_t size = 0;
    detail::check("lava_attend_workspace_size",
                  [&](lava_error *e) { return lava_attend_workspace_size(&shape, n_queries, &size, e); });
    void *memory = scratch.reserve(size);
    detail::check("lava_attend", [&](lava_error *e) {
        return lava_attend(&shape, &params, n_queries, &q.c, &k.c, &v.c, n_rows.data(), &out.c,
                           lse == nullptr ? nullptr : &lse->c, p.index, p.count, memory, size, e);
    });
}

/*
 * Other methods: lava_methods.h has their presets.
 */

/**
 * lava_score_queries: joins a part's scores with those of n_queries queries that are not the cache's last rows, by maximum.
 *
 * q [n_queries, n_q_heads, head_dim_k], after RoPE; all else as in score. params: those of score, without smoothing.
 * To score without V (LAVA_VALUE_NONE), call lava_score_queries.
 */
inline void score_queries(const lava_shape &shape, std::uint32_t n_queries, const const_tensor &q, const const_tensor &k,
                          const const_tensor &v, span<float> scores, workspace &scratch,
                          const lava_score_params &params = lava_score_params_ask_again(nullptr), part p = {}) {
    std::size_t size = 0;
    detail::check("lava_score_queries_workspace_size", [&](lava_error *e) {
        return lava_score_queries_workspace_size(&shape, &params, n_queries, &size, e);
    });
    detail::want_size("lava_score_queries", "scores", scores.size(), n_scores(shape), shape.layer);
    void *memory = scratch.reserve(size);
    detail::check("lava_score_queries", [&](lava_error *e) {
        return lava_score_queries(&shape, &params, n_queries, &q.c, &k.c, &v.c, p.index, p.count, memory, size,
                                  scores.data(), e);
    });
}

/** lava_score_queries_at: the same by queries that see what queries at these ascending positions would, one for each query. */
inline void score_queries_at(const lava_shape &shape, span<const std::uint32_t> positions, const const_tensor &q,
                             const const_tensor &k, const const_tensor &v, span<float> scores, workspace &scratch,
                             const lava_score_params &params = lava_score_params_ask_again(nullptr), part p = {}) {
    std::size_t size = 0;
    // More than 32 bits hold are more than any tensor's rows: refused.
    const std::uint32_t n = static_cast<std::uint32_t>(positions.size() < UINT32_MAX ? positions.size() : UINT32_MAX);
    detail::check("lava_score_queries_workspace_size",
                  [&](lava_error *e) { return lava_score_queries_workspace_size(&shape, &params, n, &size, e); });
    detail::want_size("lava_score_queries_at", "scores", scores.size(), n_scores(shape), shape.layer);
    void *memory = scratch.reserve(size);
    detail::check("lava_score_queries_at", [&](lava_error *e) {
        return lava_score_queries_at(&shape, &params, n, positions.data(), &q.c, &k.c, &v.c, p.index, p.count, memory, size,
                                     scores.data(), e);
    });
}

/** lava_smooth: adds so many times a head's mean to its scores; what params protects is left out of the mean. */
inline void smooth(const lava_shape &shape, float smoothing, span<float> scores,
                   const lava_select_params &params = lava_select_params_default()) {
    detail::want_size("lava_smooth", "scores", scores.size(), n_scores(shape), shape.layer);
    detail::check("lava_smooth",
                  [&](lava_error *e) { return lava_smooth(&shape, &params, smoothing, scores.data(), e); });
}

/** lava_clamp: raises a head's scores to share times its mean; what params protects is left out of the mean. */
inline void clamp(const lava_shape &shape, float share, span<float> scores,
                  const lava_select_params &params = lava_select_params_default()) {
    detail::want_size("lava_clamp", "scores", scores.size(), n_scores(shape), shape.layer);
    detail::check("lava_clamp", [&](lava_error *e) { return lava_clamp(&shape, &params, share, scores.data(), e); });
}

/** lava_raise: of each head the first by another score get the largest. most: one number a KV head, or empty. */
inline void raise(const lava_shape &shape, span<const float> by, double share, span<float> scores,
                  span<const std::uint32_t> most = {}) {
    detail::want_size("lava_raise", "by", by.size(), n_scores(shape), shape.layer);
    detail::want_size("lava_raise", "scores", scores.size(), n_scores(shape), shape.layer);
    if (most.size() != 0) detail::want_size("lava_raise", "most", most.size(), shape.n_kv_heads, shape.layer);
    const std::uint32_t *at_most = most.size() != 0 ? most.data() : nullptr;
    detail::check("lava_raise", [&](lava_error *e) {
        return lava_raise(&shape, by.data(), share, at_most, scores.data(), e);
    });
}

/** How a model turns its queries and keys. */
struct rope {
    span<const float> frequencies;            /**< radians per position, one for two elements of a query */
    std::int32_t style = LAVA_ROPE_HALVES;    /**< or LAVA_ROPE_PAIRS */
    float magnitude = 1;                      /**< YaRN's attention factor */
};

/** lava_pick_queries: rows of q, [n_rows, n_q_heads, head_dim_k] before RoPE, to ask again with. */
inline std::vector<std::uint32_t> pick_queries(const lava_shape &shape, std::uint32_t n_rows, const const_tensor &q,
                                               std::uint32_t n_picked) {
    std::vector<float> novelty(n_rows);
    std::vector<std::uint32_t> picked(n_picked);
    detail::check("lava_pick_queries", [&](lava_error *e) {
        return lava_pick_queries(&shape, n_rows, &q.c, n_picked, novelty.data(), picked.data(), e);
    });
    return picked;
}

/** lava_rotate: queries from before RoPE, turned to one position. out: f32 [n_queries, n_q_heads, head_dim_k]. */
inline void rotate(const lava_shape &shape, std::uint32_t n_queries, const const_tensor &q, const rope &how,
                   std::uint32_t position, const tensor &out) {
    // More than 32 bits hold are too many for any head.
    std::size_t most = LAVA_MAX_HEAD_DIM, n = how.frequencies.size() < most ? how.frequencies.size() : most;
    detail::check("lava_rotate", [&](lava_error *e) {
        return lava_rotate(&shape, n_queries, &q.c, how.frequencies.data(), static_cast<std::uint32_t>(2 * n), how.style,
                           how.magnitude, position, &out.c, e);
    });
}

/** lava_score_keys: a part's scores by its keys alone (KeyDiff). scores: n_scores(shape) of them. */
inline void score_keys(const lava_shape &shape, const const_tensor &k, span<float> scores, part p = {}) {
    detail::want_size("lava_score_keys", "scores", scores.size(), n_scores(shape), shape.layer);
    detail::check("lava_score_keys", [&](lava_error *e) {
        return lava_score_keys(&shape, &k.c, p.index, p.count, scores.data(), e);
    });
}

/** lava_value_norms: norms of a part's values, for weights of your own. gram and centre: NULL, or as the C function has them. */
inline void value_norms(const lava_shape &shape, const const_tensor &v, span<float> norms, const float *gram = nullptr,
                        const float *centre = nullptr, part p = {}) {
    detail::want_size("lava_value_norms", "norms", norms.size(), n_scores(shape), shape.layer);
    detail::check("lava_value_norms", [&](lava_error *e) {
        return lava_value_norms(&shape, gram, centre, &v.c, p.index, p.count, norms.data(), e);
    });
}

/** What a layer's queries are like on the whole. */
struct statistics {
    std::vector<double> mean;       /**< [n_q_heads, head_dim_k] */
    std::vector<double> covariance; /**< [n_q_heads, head_dim_k, head_dim_k] */
};

/** lava_query_statistics: of q, [n_rows, n_q_heads, head_dim_k] before RoPE, turned to n_ahead positions from one on. */
inline statistics query_statistics(const lava_shape &shape, std::uint32_t n_rows, const const_tensor &q, const rope &how,
                                   std::uint32_t position, std::uint32_t n_ahead = 512) {
    std::size_t most = LAVA_MAX_HEAD_DIM, n = how.frequencies.size() < most ? how.frequencies.size() : most;
    std::size_t mean = std::size_t(shape.n_q_heads) * shape.head_dim_k;
    statistics out{std::vector<double>(mean), std::vector<double>(mean * shape.head_dim_k)};
    detail::check("lava_query_statistics", [&](lava_error *e) {
        return lava_query_statistics(&shape, n_rows, &q.c, how.frequencies.data(), static_cast<std::uint32_t>(2 * n),
                                     how.style, how.magnitude, position, n_ahead, out.mean.data(), out.covariance.data(), e);
    });
    return out;
}

/** lava_score_expected: a part's scores by the attention that such queries are expected to pay (Expected Attention). */
inline void score_expected(const lava_shape &shape, const statistics &queries, const const_tensor &k, span<float> scores,
                           float scale = 0, part p = {}) {
    detail::want_size("lava_score_expected", "scores", scores.size(), n_scores(shape), shape.layer);
    std::vector<double> logits(shape.n_tokens);
    detail::check("lava_score_expected", [&](lava_error *e) {
        return lava_score_expected(&shape, scale, queries.mean.data(), queries.covariance.data(), &k.c, p.index, p.count,
                                   logits.data(), scores.data(), e);
    });
}

/** lava_mean_over_heads: all heads get the mean of their scores, n_scores(shape) of them. */
inline void mean_over_heads(const lava_shape &shape, span<float> scores) {
    detail::want_size("lava_mean_over_heads", "scores", scores.size(), n_scores(shape), shape.layer);
    detail::check("lava_mean_over_heads",
                  [&](lava_error *e) { return lava_mean_over_heads(&shape, scores.data(), e); });
}

/** lava_attention_stats: [n_kv_heads, 2], entropy and variance of the window's attention. q, k and lse as in score. */
inline std::vector<double> attention_stats(const lava_shape &shape, const const_tensor &q, const const_tensor &k,
                                           workspace &scratch,
                                           const lava_score_params &params = lava_score_params_default(),
                                           const const_tensor *lse = nullptr) {
    std::size_t size = 0;
    detail::check("lava_score_workspace_size",
                  [&](lava_error *e) { return lava_score_workspace_size(&shape, &params, &size, e); });
    std::vector<double> stats(2 * std::size_t(shape.n_kv_heads));
    void *memory = scratch.reserve(size);
    detail::check("lava_attention_stats", [&](lava_error *e) {
        return lava_attention_stats(&shape, &params, &q.c, &k.c, lse == nullptr ? nullptr : &lse->c, 0, 1, memory, size,
                                    stats.data(), e);
    });
    return stats;
}

/** lava_preference: CAKE's weight of a layer, from its attention_stats. */
inline double preference(const lava_shape &shape, span<const double> stats, double tau1, double tau2) {
    detail::want_size("lava_preference", "stats", stats.size(), 2 * std::uint64_t(shape.n_kv_heads), shape.layer);
    double weight = 0;
    detail::check("lava_preference",
                  [&](lava_error *e) { return lava_preference(&shape, stats.data(), tau1, tau2, &weight, e); });
    return weight;
}

/** lava_pyramid_weights: PyramidKV's, one for each layer, for layer_entries. */
inline std::vector<double> pyramid_weights(std::uint32_t n_layers, std::uint64_t prefix_budget,
                                           std::uint64_t prefix_len, double beta) {
    if (n_layers > LAVA_MAX_LAYERS) detail::refuse("lava_pyramid_weights", LAVA_ERR_SHAPE, "n_layers");
    std::vector<double> weights(n_layers);
    detail::check("lava_pyramid_weights", [&](lava_error *e) {
        return lava_pyramid_weights(n_layers, prefix_budget, prefix_len, beta, weights.data(), e);
    });
    return weights;
}

}  // namespace lava

#endif
