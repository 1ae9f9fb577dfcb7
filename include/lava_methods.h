/*
 * lava_methods.h - other methods over lava.h: presets of their scores, further queries, statistics, layer weights.
 *
 * Made by cbindgen from src/ffi/methods.rs; `UPDATE_HEADER=1 cargo test --test header` rewrites it. Edit the comments there.
 *
 * LAVa is one point of a frame, scorer x head budgets x layer budgets; these are others. The functions are in the same library and
 * follow lava.h's rules. What each paper leaves open, and what is done here, is in docs/methods.md.
 *
 *     method          lava_score with                  heads                       layers
 *     SnapKV          lava_score_params_snapkv         lava_select_params_equal    equal
 *     Ada-KV          the same, LAVA_GROUP_MEAN        LAVA_FLOOR_AFFINE 0.2       equal
 *     PyramidKV       the same, window 8               lava_select_params_equal    lava_pyramid_weights
 *     CAKE            lava_score_params_cake           lava_select_params_equal    lava_attention_stats, lava_preference
 *     TOVA            lava_score_params_tova           lava_mean_over_heads, lava_select_params_equal, layers equal
 *     StreamingLLM    lava_score_params_streaming      lava_select_params_equal, n_sink 4, layers equal
 *     KV-Compress     lava_score_params_kv_compress    one sort over the model: lava_global_entries
 *     VATP, CAOTE, ReST-KV, SAGE-KV: lava_score_params_ with their names, any budgets
 *
 * And one of our own, for what is asked later: the window knows only what the prompt's last lines looked at. lava_pick_queries finds those
 * of the prompt's queries that look for what no other does, lava_rotate turns them to the position after it, lava_score_queries scores by
 * these too, lava_smooth adds half a head's mean, and all heads compete (lava_global_entries). examples-c/ask_again.c does so.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LAVA_METHODS_H
#define LAVA_METHODS_H

#include "lava.h"


/// For attention of lava_score_params: the mean of the squares (KV-Compress, arXiv 2410.00161).
#define LAVA_ATTENTION_SQUARED 1

/// The mean plus gamma times the variance over the window's queries, divided by window - 1 (CAKE, arXiv 2503.12491).
#define LAVA_ATTENTION_MEAN_VARIANCE 2
/// a[0] = A[0], a[j] = decay * A[j] + (1 - decay) * a[j - 1] over the window's queries (ReST-KV, arXiv 2605.08840). With a decay of 1
/// the last query alone (SAGE-KV, arXiv 2503.08879).
#define LAVA_ATTENTION_EXPONENTIAL 3
/// None: position + 1, so that the newest win; q and k are not looked at (StreamingLLM, arXiv 2309.17453). Exact up to 2^24.
#define LAVA_ATTENTION_RECENCY 4
/// For attention: the 4-norm of the queries', (sum of A^4)^(1/4), between their maximum and their sum. A below 2^-31 counts as 0.
#define LAVA_ATTENTION_NORM4 6

/// For value_weight: attention is multiplied by the L1 norm of the entry's own value, after pooling and reduction (VATP, arXiv 2406.12335).
#define LAVA_VALUE_TOKEN 2
/// a becomes a / (1 - a) * |o - v|, o = sum of a * v over all tokens: what evicting the entry alone does to the output, for
/// each query head before pooling (CAOTE, arXiv 2504.14051; ReST-KV). With LAVA_ATTENTION_MEAN and _EXPONENTIAL only.
#define LAVA_VALUE_OUTPUT 3
/// By the L2 norm of the entry's own value, after pooling and reduction (Expected Attention, arXiv 2510.00636).
#define LAVA_VALUE_TOKEN_L2 4

/// Elements 2i and 2i + 1 of a query are turned together: GPT-J, Llama as Meta published it, most GGUF files of Llama's kind.
#define LAVA_ROPE_PAIRS 0
/// Elements i and i + n_rot / 2: GPT-NeoX, Qwen, all of Hugging Face's models.
#define LAVA_ROPE_HALVES 1

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/// How the window looks at the prefix, two numbers per KV head: what lava_preference makes a layer's weight of.
///
///     entropy  = sum over heads, window and prefix of -A ln A
///     variance = sum over heads and prefix of the variance of A over the window, divided by window - 1
///
/// where heads are the query heads of the KV head. Another pass over K in addition to lava_score's.
///
/// params: may be NULL; scale, softcap, sink_logits, lse_base and backend are used.
/// q, k, lse, part, n_parts, workspace: as in lava_score; lava_score_workspace_size of any params with these is enough.
/// stats: [n_kv_heads, 2] doubles, entropy and variance, for all heads, of which the part writes its own. On error the part's own
///     may be partly written.
/// Errors: as lava_score. Any thread.
lava_status lava_attention_stats(const lava_shape *shape, const lava_score_params *params, const lava_tensor *q,
    const lava_tensor *k, const lava_tensor *lse, uint32_t part, uint32_t n_parts, void *workspace,
    size_t workspace_size, double *stats, lava_error *error);

/// CAKE's weight of a layer (arXiv 2503.12491): (sum of entropies)^(1/tau1) * (sum of variances)^(1/tau2).
///
/// stats: [n_kv_heads, 2] from lava_attention_stats.
/// tau1, tau2: above 0, chosen per model; 1 is neutral.
/// weight: receives it, for lava_layer_entries or lava_cascade_push; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, OVERLAP, ARGUMENT, NONFINITE. Any thread.
lava_status lava_preference(const lava_shape *shape, const double *stats, double tau1, double tau2, double *weight,
    lava_error *error);

/// PyramidKV's weights for lava_layer_entries (arXiv 2406.02069): budgets fall linearly from the first layer to the last.
///
/// prefix_budget: average prefix tokens kept per head: budget - window.
/// prefix_len: all there are: n_tokens - window. No layer gets more.
/// beta: how small the last layer's budget is: prefix_budget / beta. At least 1; published: 20, with a window of 8.
/// weights: [n_layers], receives them; untouched on error.
/// Errors: NULL, ALIGNMENT, SHAPE, ARGUMENT. Any thread.
lava_status lava_pyramid_weights(uint32_t n_layers, uint64_t prefix_budget, uint64_t prefix_len, double beta,
    double *weights, lava_error *error);

/// Bytes of workspace that each part of lava_score_queries needs.
///
/// params, n_queries: as in lava_score_queries.
/// size: receives the bytes; untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ARGUMENT, NONFINITE, UNSUPPORTED. Any thread.
lava_status lava_score_queries_workspace_size(const lava_shape *shape, const lava_score_params *params,
    uint32_t n_queries, size_t *size, lava_error *error);

/// Asks again: scores a layer's prefix by queries that are not the cache's last rows, and joins the result with what scores holds. Each
/// entry gets the larger of the two.
///
/// Each of the queries sees what one at position n_tokens would: every row, the window's too, as far as a sliding window reaches. So
/// they may be the prompt's own, from before RoPE, turned to that position by lava_rotate: what they look at from there is what a later
/// mention of the same things will look at. Their order matters to LAVA_ATTENTION_EXPONENTIAL only.
///
/// Called after lava_score, or with scores set to 0, as often as wanted; then lava_smooth, if at all.
///
/// params: may be NULL: lava_score_params_ask_again(NULL). Else those of lava_score, or such that their scores can be compared. smoothing
///     must be 0 (ARGUMENT).
/// n_queries: at least 1.
/// q: [n_queries, n_q_heads, head_dim_k], after RoPE.
/// k, v, part, n_parts: as in lava_score.
/// workspace: lava_score_queries_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
/// scores: as in lava_score, read and written; finite. On error the part's own may be partly joined.
/// Errors: as lava_score. Any thread.
lava_status lava_score_queries(const lava_shape *shape, const lava_score_params *params, uint32_t n_queries,
    const lava_tensor *q, const lava_tensor *k, const lava_tensor *v, uint32_t part, uint32_t n_parts, void *workspace,
    size_t workspace_size, float *scores, lava_error *error);

/// The same by queries that see what queries at positions of their own would: tokens that only ask and are not kept, or all of a prompt's
/// queries, where each sees what is before it, in instalments as they come.
///
/// positions: u32 [n_queries], ascending, at most n_tokens (ARGUMENT). Each query sees the rows up to its position, as far back as a sliding
///     window reaches, and must see one of each head (ARGUMENT).
/// All else, the workspace's size too: as in lava_score_queries.
/// params: may be NULL.
/// Errors: as lava_score. Any thread.
lava_status lava_score_queries_at(const lava_shape *shape, const lava_score_params *params, uint32_t n_queries,
    const uint32_t *positions, const lava_tensor *q, const lava_tensor *k, const lava_tensor *v, uint32_t part,
    uint32_t n_parts, void *workspace, size_t workspace_size, float *scores, lava_error *error);

/// Which of a layer's queries to ask again with: the rows are cut into n_picked stretches, equal but for one row, and each gives the row
/// least like all others, whose queries look for what no other does; of equals the first.
///
///     novelty[j] = -(sum over query heads of the cosine of q[j] and the mean of q over all rows)
///
/// The same rows on every machine.
///
/// shape: n_q_heads and head_dim_k are used.
/// n_rows: at least 1.
/// q: [n_rows, n_q_heads, head_dim_k], before RoPE. Leave out the prompt's first 4 or so, where attention sinks stand.
/// n_picked: 1 to n_rows (ARGUMENT). 256 do for prompts of 1k to 4k tokens.
/// novelty: f32 [n_rows], receives each row's. On error it may be partly written.
/// picked: u32 [n_picked], receives rows, ascending. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, ARGUMENT, NONFINITE. Any thread.
lava_status lava_pick_queries(const lava_shape *shape, uint32_t n_rows, const lava_tensor *q, uint32_t n_picked,
    float *novelty, uint32_t *picked, lava_error *error);

/// Turns queries from before RoPE to one position, for lava_score_queries: that position is the shape's n_tokens, or a later one.
///
/// Of each pair (x, y) of a query's first n_rot elements x cos - y sin and x sin + y cos are written, times magnitude, the angle being
/// position times the pair's frequency; other elements are copied. What the model does to its keys is in the frequencies:
/// base^(-2i / n_rot), or what YaRN (arXiv 2309.00071), Llama 3 and others make of that.
///
/// shape: n_q_heads and head_dim_k are used.
/// n_queries: at least 1.
/// q: [n_queries, n_q_heads, head_dim_k], before RoPE, after all that the model does to queries before it.
/// frequencies: [n_rot / 2], radians per position, finite.
/// n_rot: even (ARGUMENT), at most head_dim_k (SHAPE). 0: frequencies may be NULL.
/// style: LAVA_ROPE_PAIRS or LAVA_ROPE_HALVES.
/// magnitude: what the model multiplies sines and cosines by: YaRN's attention factor. 0: 1.
/// out: f32 [n_queries, n_q_heads, head_dim_k], any strides. Shares memory with nothing, q included. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, ARGUMENT, NONFINITE (in frequencies; NaN in q becomes
///     NaN in out, which lava_score_queries finds). Any thread.
lava_status lava_rotate(const lava_shape *shape, uint32_t n_queries, const lava_tensor *q, const float *frequencies,
    uint32_t n_rot, int32_t style, float magnitude, uint32_t position, const lava_tensor *out, lava_error *error);

/// Gives all heads the mean of their scores, in place. With equal head budgets (lava_select_params_equal) they then keep the same
/// tokens: TOVA's one set for all heads (arXiv 2401.06104).
///
/// shape: without cu_rows, since heads must have the same tokens (UNSUPPORTED).
/// scores: f32 [n_kv_heads, n_tokens - window], finite.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, NONFINITE, UNSUPPORTED. Untouched on error. Any thread.
lava_status lava_mean_over_heads(const lava_shape *shape, float *scores, lava_error *error);

/// Adds smoothing times a head's mean score to all its scores: what nobody asked about is not nothing. As smoothing of
/// lava_score_params, but after scores were joined, and with what is protected left out of the mean: the first tokens draw so much
/// attention that they would be most of it.
///
/// params: may be NULL; of these n_sink and protected_mask are used: what will be selected with.
/// smoothing: finite, not negative.
/// scores: f32, lava_n_scores(shape) of them, as in lava_score, finite; read and written. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, NONFINITE (naming the head). Any thread.
lava_status lava_smooth(const lava_shape *shape, const lava_select_params *params, float smoothing, float *scores,
    lava_error *error);

/// Raises a head's scores to share times its mean score where they are less: what the window did not look at is not nothing
/// (DefensiveKV, arXiv 2510.13334: a share of 1, the mean over all entries, so params with n_sink 0).
///
/// params: may be NULL; as in lava_smooth.
/// share: finite, not negative.
/// scores: as in lava_smooth. Untouched on error.
/// Errors: as lava_smooth. Any thread.
lava_status lava_clamp(const lava_shape *shape, const lava_select_params *params, float share, float *scores,
    lava_error *error);

/// Gives the first entries of each head by another score the layer's largest score, so that selection takes them before all others: the
/// fewest, the largest first, that hold share of the head's sum of by, but no more than most[head]. Of equals the first.
///
/// Two papers select in two stages. DefensiveKV (arXiv 2510.13334): by is attention's mean, share 0.9. CriticalKV (arXiv 2502.03805): by is
/// any score, most half of each head's budget, and scores are by's times the norms of what the output matrix makes of the values.
///
/// by: f32, lava_n_scores(shape) of them, as in lava_score: finite, not negative (ARGUMENT).
/// share: above 0. 1 or more: most alone counts.
/// most: u32 [n_kv_heads]; may be NULL: share alone counts.
/// scores: f32, lava_n_scores(shape) of them, as in lava_score, finite; read and written. Untouched on error.
/// Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, INDICES, ALIGNMENT, ARGUMENT, OVERLAP, NONFINITE (naming the head). Any thread.
lava_status lava_raise(const lava_shape *shape, const float *by, double share, const uint32_t *most, float *scores,
    lava_error *error);

/// Scores a layer's prefix by its keys alone: those that are unlike the others are kept (KeyDiff, arXiv 2504.15364). Published with equal
/// heads and layers.
///
///     scores[i] = 1 - cos(k[i], sum over the live prefix of k[j] / |k[j]|)
///
/// k, part, n_parts: as in lava_score.
/// scores: as in lava_score, from 0 to 2; of dead rows, and keys of zeros, 0. On error the part's own may be partly written.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, OVERFLOW, INDICES, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, ARGUMENT, NONFINITE (naming the
///     head). Any thread.
lava_status lava_score_keys(const lava_shape *shape, const lava_tensor *k, uint32_t part, uint32_t n_parts,
    float *scores, lava_error *error);

/// Norms of values as they meet the residual stream, for weights of your own: multiply a score by its entry's norm before you select.
///
///     norms[i] = sqrt((v[i] - o)^T G (v[i] - o))      which is |(v[i] - o) W| if G = W W^T
///
/// gram: f32 [n_kv_heads, head_dim_v, head_dim_v], symmetric, the mean of W W^T over the group's query heads, W [head_dim_v, n_embd] being
///     the query head's rows of the output matrix: computed once for a model. May be NULL: the unit matrix, so the L2 norm of v[i] - o.
/// centre: f32 [n_kv_heads, head_dim_v], o: the attention's mean output, say, so that what is like it counts for nothing. May be NULL: 0.
/// v, part, n_parts: as in lava_score.
/// norms: f32, lava_n_scores(shape) of them, laid out as scores; of dead rows 0. On error the part's own may be partly written.
/// Errors: as lava_score_keys. Any thread.
lava_status lava_value_norms(const lava_shape *shape, const float *gram, const float *centre, const lava_tensor *v,
    uint32_t part, uint32_t n_parts, float *norms, lava_error *error);

/// What a layer's queries are like on the whole, turned to positions to come: their mean and their covariance, for lava_score_expected
/// (Expected Attention, arXiv 2510.00636).
///
/// shape: n_q_heads and head_dim_k are used.
/// n_rows: at least 1.
/// q: [n_rows, n_q_heads, head_dim_k], before RoPE. Leave out the prompt's first 4 or so, where attention sinks stand.
/// frequencies, n_rot, style, magnitude: as in lava_rotate.
/// position, n_ahead: the mean rotation is that of so many positions from this one on, usually n_tokens; published: 512. At least 1
///     (ARGUMENT).
/// mean: f64 [n_q_heads, head_dim_k]. On error it may be partly written.
/// covariance: f64 [n_q_heads, head_dim_k, head_dim_k]. On error it may be partly written.
/// Errors: NULL, STRUCT_SIZE, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, DTYPE, OVERFLOW, ARGUMENT, NONFINITE. Any thread.
lava_status lava_query_statistics(const lava_shape *shape, uint32_t n_rows, const lava_tensor *q,
    const float *frequencies, uint32_t n_rot, int32_t style, float magnitude, uint32_t position, uint32_t n_ahead,
    double *mean, double *covariance, lava_error *error);

/// Scores a layer's prefix by the attention that queries are expected to pay which are normally distributed (Expected Attention, arXiv
/// 2510.00636; there 0.02 is added and the sum multiplied by lava_value_norms' L2 norm, and 4 sinks are kept).
///
///     z[h, i]      = s * mean[h] . k[i] + s^2 / 2 * k[i]^T covariance[h] k[i]
///     scores[g, i] = mean over the query heads of a group of softmax over the live prefix of z[h]
///
/// scale: s, above 0; 0 means 1 / sqrt(head_dim_k).
/// mean: f64 [n_q_heads, head_dim_k], from lava_query_statistics.
/// covariance: f64 [n_q_heads, head_dim_k, head_dim_k]; may be NULL: the attention of the mean query.
/// k, part, n_parts: as in lava_score.
/// logits: f64, as many as the head with the most rows has in the prefix; scratch memory, each part's own.
/// scores: as in lava_score; of dead rows 0. On error the part's own may be partly written.
/// Errors: as lava_score_keys. Any thread.
lava_status lava_score_expected(const lava_shape *shape, float scale, const double *mean, const double *covariance,
    const lava_tensor *k, uint32_t part, uint32_t n_parts, double *logits, float *scores, lava_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/// The recommended preset where an engine can say what each query head's output counts: times that, and times the head's mean value norm.
///
/// query_head_weights: NULL, which is lava_score_params_default, or n_q_heads of a layer: the norm of the query head's part of the output
///     matrix over sqrt(head_dim_v) and over the norm of the residual stream that it is added to. Where the model normalises what the
///     matrix makes of the heads (Gemma), the norm's gains are part of the matrix, and the norm that it divides by is divided by.
static inline lava_score_params lava_score_params_weighted(const float *query_head_weights) {
    lava_score_params params = lava_score_params_default();
    params.value_weight = query_head_weights ? LAVA_VALUE_HEAD_MEAN_L2 : LAVA_VALUE_NONE;
    params.query_head_weights = query_head_weights;
    return params;
}

/// Queries that ask again, for lava_score_queries: the 4-norm of their attention; with weights, times these and the head's mean value
/// norm. For a window of 8; then lava_smooth with 0.5.
///
/// query_head_weights: as in lava_score_params_weighted.
static inline lava_score_params lava_score_params_ask_again(const float *query_head_weights) {
    lava_score_params params = lava_score_params_weighted(query_head_weights);
    params.attention = LAVA_ATTENTION_NORM4;
    params.pool = LAVA_POOL_MAX;
    params.pool_kernel = 1;
    params.smoothing = 0;
    return params;
}

/// The window's queries beside those that ask again: the same, and for the seven entries after; they count half.
static inline lava_score_params lava_score_params_ask_window(const float *query_head_weights) {
    lava_score_params params = lava_score_params_ask_again(query_head_weights);
    params.pool = LAVA_POOL_AFTER;
    params.pool_kernel = 8;
    params.weight = 0.5f;
    return params;
}

/// Squared attention times the entry's own value norm, max-pooled over 7: what was recommended before a published model was at hand, and
/// what the CUDA kernels have of it.
static inline lava_score_params lava_score_params_squares(void) {
    lava_score_params params = lava_score_params_lava();
    params.attention = LAVA_ATTENTION_SQUARED;
    params.value_weight = LAVA_VALUE_TOKEN;
    return params;
}

/// SnapKV (arXiv 2404.14469), and with other budgets Ada-KV (2407.11550) and PyramidKV (2406.02069): no value norm.
static inline lava_score_params lava_score_params_snapkv(void) {
    lava_score_params params = lava_score_params_lava();
    params.value_weight = LAVA_VALUE_NONE;
    return params;
}

/// CAKE (arXiv 2503.12491): mean and variance, average-pooled over 5, the group's mean. Published with gamma = 200.
static inline lava_score_params lava_score_params_cake(float gamma) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_MEAN_VARIANCE;
    params.gamma = gamma;
    params.pool = LAVA_POOL_AVG;
    params.pool_kernel = 5;
    params.group_reduce = LAVA_GROUP_MEAN;
    return params;
}

/// TOVA (arXiv 2401.06104): for a window of 1; then lava_mean_over_heads and lava_select_params_equal.
static inline lava_score_params lava_score_params_tova(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.pool_kernel = 1;
    params.group_reduce = LAVA_GROUP_MEAN;
    return params;
}

/// StreamingLLM (arXiv 2309.17453): the newest tokens. Published with 4 sinks.
static inline lava_score_params lava_score_params_streaming(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_RECENCY;
    params.pool_kernel = 1;
    return params;
}

/// VATP (arXiv 2406.12335): attention times the value's own norm. Published with 20 sinks.
static inline lava_score_params lava_score_params_vatp(void) {
    lava_score_params params = lava_score_params_lava();
    params.value_weight = LAVA_VALUE_TOKEN;
    params.pool_kernel = 1;
    return params;
}

/// CAOTE (arXiv 2504.14051) over the window's mean attention.
static inline lava_score_params lava_score_params_caote(void) {
    lava_score_params params = lava_score_params_lava();
    params.value_weight = LAVA_VALUE_OUTPUT;
    params.pool_kernel = 1;
    return params;
}

/// ReST-KV (arXiv 2605.08840), without the output matrix. Published with a decay of 0.3.
static inline lava_score_params lava_score_params_rest_kv(float decay) {
    lava_score_params params = lava_score_params_lava();
    params.attention = LAVA_ATTENTION_EXPONENTIAL;
    params.decay = decay;
    params.value_weight = LAVA_VALUE_OUTPUT;
    return params;
}

/// KV-Compress (arXiv 2410.00161): squared attention; the group's sum, here its mean, which has the same order.
static inline lava_score_params lava_score_params_kv_compress(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_SQUARED;
    params.group_reduce = LAVA_GROUP_MEAN;
    return params;
}

/// SAGE-KV (arXiv 2503.08879): the last query's attention, whatever the window.
static inline lava_score_params lava_score_params_sage_kv(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_EXPONENTIAL;
    params.decay = 1.0f;
    params.pool_kernel = 1;
    return params;
}

/// LAVa as its authors' code has it: an affine floor, alpha = 0.2, here with exact totals.
static inline lava_select_params lava_select_params_lava_released(void) {
    lava_select_params params = lava_select_params_lava();
    params.head_floor = LAVA_FLOOR_AFFINE;
    params.alpha = 0.2;
    return params;
}

#endif /* LAVA_METHODS_H */
