/*
 * lava.h - KV-cache compression for inference engines (LAVa, arXiv 2509.09754).
 *
 * Made by cbindgen from src/ffi; `UPDATE_HEADER=1 cargo test --test header` makes it anew. Edit the comments there.
 *
 * The way of the data, per layer:
 *
 *     Q, K, V      --lava_score-->          scores        one f32 per KV head and prefix token
 *     scores       --lava_entropy-->        weight        of the layer
 *     weights      --lava_layer_budgets-->  budgets       integers that sum to the total exactly
 *     scores       --lava_select-->         kept_indices, cu_kept
 *     K, V         --lava_compact-->        the smaller cache
 *     new queries  --lava_attend-->         attention over it, where the engine has none for heads of unlike length
 *
 * A cascade (lava_cascade_*) does the third and fourth step for all layers so far whenever another layer's scores arrive.
 *
 * LAVa is one point of a frame, scorer x head budgets x layer budgets. The options make the others: lava_score_params_snapkv and
 * its neighbours; head floors, head_min and head_weights of lava_select_params; and in place of lava_entropy's weights equal ones,
 * lava_pyramid_weights, lava_preference, weights from elsewhere, or one sort over all layers (lava_global_budgets).
 *
 * Rules for all functions:
 *
 * - Memory is the caller's. Nothing is allocated, nothing is kept between calls but what the machine was found to be able
 *   to, and there are no threads, I/O or callbacks. A function that needs scratch memory has a _workspace_size function beside it.
 * - Structs are made by the inline functions at the end of this header, which set struct_size. A library that is newer
 *   than this header takes the smaller struct; one that is older takes a larger one if what it does not know is zero.
 * - Counts are uint32_t or uint64_t, strides int64_t in elements, sizes size_t in bytes. Positions and counts are
 *   exact; scores and outputs are f32.
 * - Every call that can fail returns LAVA_OK or a LAVA_ERR_ code, and writes a lava_error if it is given one. Nothing is
 *   written to a cache unless the call succeeds. Other outputs: as each comment says.
 * - A pointer must lead to as much memory as its comment says for as long as the call lasts. NULL and misaligned
 *   pointers and overlapping arrays are found and refused; a pointer that is simply wrong is not. Structs are copied
 *   before anything is written. Any call may return LAVA_ERR_ALIGNMENT, and LAVA_ERR_STRUCT_SIZE for its lava_error,
 *   also where its own comment does not say so.
 * - Calls with different outputs may run at the same time; inputs may be shared. Work that splits takes (part, n_parts):
 *   each part is a call of its own, on any thread and in any order, and the results are the same bits for every n_parts.
 *   A part that has not run leaves its heads' outputs as they were.
 * - What a workspace contains is neither needed before a call nor kept behind it. What a cascade's state contains is
 *   believed: only lava_cascade_init and lava_cascade_push may write it.
 * - Not promised: the bits of scores and attention outputs across machines, versions and layouts of the same numbers (they
 *   agree within rounding). Given the scores, everything after them is the same bits everywhere.
 * - "Budget" is tokens per KV head, window included, where a person sets it (uint32_t; lava_total_entries), and prefix
 *   entries of a layer over all its heads where a stage uses it (uint64_t; lava_layer_budgets, lava_select).
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LAVA_H
#define LAVA_H


#include <stddef.h>
#include <stdint.h>

/**
 * Largest of the neighbourhood, clipped at both ends of the prefix.
 */
#define LAVA_POOL_MAX 0

/**
 * Mean of the neighbourhood; positions outside the prefix count as zero.
 */
#define LAVA_POOL_AVG 1

/**
 * The largest over the query heads of a group.
 */
#define LAVA_GROUP_MAX 0

/**
 * The mean over the query heads of a group.
 */
#define LAVA_GROUP_MEAN 1

/**
 * The value norm's maximum runs over the prefix, as in the authors' released code.
 */
#define LAVA_VALUES_PREFIX 0

/**
 * The value norm's maximum runs over all tokens, as in the paper's text.
 */
#define LAVA_VALUES_ALL 1

/**
 * An entry's attention: the mean over the window's queries. LAVa, SnapKV, Ada-KV, PyramidKV, VATP, CAOTE, TOVA.
 */
#define LAVA_ATTENTION_MEAN 0

/**
 * The mean of the squares. KV-Compress (arXiv 2410.00161).
 */
#define LAVA_ATTENTION_SQUARED 1

/**
 * The mean plus gamma times the variance over the window's queries (divided by window - 1). CAKE (arXiv 2503.12491).
 */
#define LAVA_ATTENTION_MEAN_VARIANCE 2

/**
 * a[0] = A[0], a[j] = decay * A[j] + (1 - decay) * a[j - 1] over the window's queries. ReST-KV (arXiv 2605.08840); with a decay of 1
 * the last query alone, SAGE-KV (arXiv 2503.08879).
 */
#define LAVA_ATTENTION_EXPONENTIAL 3

/**
 * None: position + 1, so that the newest win. q and k are not looked at. StreamingLLM (arXiv 2309.17453). f32 tells positions apart
 * up to 2^24.
 */
#define LAVA_ATTENTION_RECENCY 4

/**
 * Attention is multiplied by the largest L1 norm among the head's values. LAVa.
 */
#define LAVA_VALUE_HEAD_MAX 0

/**
 * By nothing. v is not looked at, and may be NULL.
 */
#define LAVA_VALUE_NONE 1

/**
 * By the L1 norm of the entry's own value, behind pooling and reduction. VATP (arXiv 2406.12335).
 */
#define LAVA_VALUE_TOKEN 2

/**
 * a becomes a / (1 - a) * |o - v|, o = sum of a * v over all tokens: what evicting the entry alone does to the output, for
 * each query head before pooling. With LAVA_ATTENTION_MEAN and _EXPONENTIAL only. CAOTE (arXiv 2504.14051), ReST-KV.
 */
#define LAVA_VALUE_OUTPUT 3

/**
 * Layers share the total in proportion to the entropies of their scores. LAVa.
 */
#define LAVA_LAYERS_ENTROPY 0

/**
 * In equal parts.
 */
#define LAVA_LAYERS_EQUAL 1

/**
 * In proportion to weights that lava_cascade_push_weighted takes.
 */
#define LAVA_LAYERS_WEIGHTS 2

/**
 * The heads of all layers compete for the total, as those of one layer do for its budget: one sort over the model.
 */
#define LAVA_LAYERS_GLOBAL 3

/**
 * No head is promised anything: the layer's largest scores win.
 */
#define LAVA_FLOOR_NONE 0

/**
 * Each head's top floor(alpha * budget / n_kv_heads) entries are kept first, the rest compete.
 */
#define LAVA_FLOOR_GUARANTEED 1

/**
 * Head counts are h * (1 - alpha) + alpha * budget / n_kv_heads, rounded so that they sum exactly. Takes time that grows with the
 * square of n_kv_heads.
 */
#define LAVA_FLOOR_AFFINE 2

/**
 * Alignment that workspaces and cascade states need, in bytes. Memory from malloc has it.
 */
#define LAVA_WORKSPACE_ALIGN 16

/**
 * Largest head_dim_k and head_dim_v.
 */
#define LAVA_MAX_HEAD_DIM 576

/**
 * Largest pool_kernel.
 */
#define LAVA_MAX_POOL_KERNEL 127

/**
 * Most layers that share a total.
 */
#define LAVA_MAX_LAYERS 1024

/**
 * In lava_error: no layer or head is to blame.
 */
#define LAVA_NONE UINT32_MAX

/**
 * Result of every call that can fail: LAVA_OK, or one of the negative LAVA_ERR_ codes.
 */
typedef int32_t lava_status;

/**
 * Sizes of one attention layer.
 */
typedef struct lava_shape {
    /**
     * sizeof(lava_shape); lava_shape_init sets it.
     */
    uint32_t struct_size;
    /**
     * Index of the layer. Only used to name it in errors.
     */
    uint32_t layer;
    /**
     * N: tokens in the cache, window included. For lava_attend: the number of new queries.
     */
    uint32_t n_tokens;
    /**
     * Query heads, a multiple of n_kv_heads. Query head h reads KV head h / (n_q_heads / n_kv_heads).
     */
    uint32_t n_q_heads;
    /**
     * KV heads. n_kv_heads * n_tokens must be below 2^32.
     */
    uint32_t n_kv_heads;
    /**
     * Elements of a query and of a key, 1 to LAVA_MAX_HEAD_DIM.
     */
    uint32_t head_dim_k;
    /**
     * Elements of a value, 1 to LAVA_MAX_HEAD_DIM.
     */
    uint32_t head_dim_v;
    /**
     * w: the last tokens of the prompt. Their queries score the others; they are always kept. At least 1, and
     * n_q_heads * window below 2^32. The prefix is the n_tokens - window tokens before it, or nothing if the window is
     * longer.
     */
    uint32_t window;
} lava_shape;

/**
 * Why a call was refused. Every call takes one, or NULL. It is written on success too. That it shares no memory with the other
 * arguments is not checked.
 */
typedef struct lava_error {
    /**
     * sizeof(lava_error), set by the caller.
     */
    uint32_t struct_size;
    /**
     * What the call returned.
     */
    lava_status status;
    /**
     * The layer, or LAVA_NONE.
     */
    uint32_t layer;
    /**
     * The KV head, or LAVA_NONE.
     */
    uint32_t head;
    /**
     * Name of the argument or field at fault, static; "" on success.
     */
    const char *argument;
    /**
     * The status in words, static.
     */
    const char *message;
} lava_error;

/**
 * Options of lava_score. lava_score_params_default gives the preset that measures best, lava_score_params_init LAVa's,
 * lava_score_params_snapkv and its neighbours those of other papers.
 */
typedef struct lava_score_params {
    /**
     * sizeof(lava_score_params).
     */
    uint32_t struct_size;
    /**
     * LAVA_POOL_MAX or LAVA_POOL_AVG: how attention is smoothed along the tokens.
     */
    int32_t pool;
    /**
     * Width of the pooling, odd, 1 (none) to LAVA_MAX_POOL_KERNEL. The paper's is 7.
     */
    uint32_t pool_kernel;
    /**
     * LAVA_GROUP_MAX or LAVA_GROUP_MEAN: how the query heads of a KV head become one score.
     */
    int32_t group_reduce;
    /**
     * LAVA_VALUES_PREFIX or LAVA_VALUES_ALL: the tokens whose values enter the norm.
     */
    int32_t value_span;
    /**
     * Sliding-window attention: each query sees this many keys, its own included. 0: all earlier ones.
     */
    uint32_t sliding_window;
    /**
     * Factor on q.k. 0: 1 / sqrt(head_dim_k).
     */
    float scale;
    /**
     * Logits become softcap * tanh(logit / softcap). 0: no cap.
     */
    float softcap;
    /**
     * One of LAVA_ATTENTION_: what becomes of the window's attention to an entry.
     */
    int32_t attention;
    /**
     * One of LAVA_VALUE_: what that is multiplied by.
     */
    int32_t value_weight;
    /**
     * Of LAVA_ATTENTION_MEAN_VARIANCE, not negative.
     */
    float gamma;
    /**
     * Of LAVA_ATTENTION_EXPONENTIAL, the newest query's weight, above 0 and at most 1. 0: 1.
     */
    float decay;
    /**
     * A factor on all scores of the layer, not negative. It decides nothing inside a layer; under LAVA_LAYERS_GLOBAL and in
     * lava_global_budgets it is the layer's weight. 0: 1.
     */
    float weight;
    /**
     * So many times a head's mean score is added to all its scores: what nobody has looked at yet may still be looked at, more
     * so in heads that are much looked at. Not negative.
     */
    float smoothing;
} lava_score_params;

/**
 * Element type of a tensor: LAVA_F32, LAVA_F16 or LAVA_BF16.
 */
typedef int32_t lava_dtype;

/**
 * A caller's buffer, seen as [rows, heads, dim].
 *
 * Element c of row r of head h is at
 *     data + (row_start ? row_start[h] : 0) * stride_token + h * stride_head + r * stride_token + c * stride_dim,
 * strides in elements. Rows are tokens in a dense cache, kept tokens in a compressed one. So
 *     token-major  [n_tokens, n_heads, dim]: stride_token = n_heads * dim, stride_head = dim, stride_dim = 1
 *     head-major   [n_heads, n_tokens, dim]: stride_token = dim, stride_head = n_tokens * dim, stride_dim = 1
 *     transposed   [n_heads, dim, n_tokens]: stride_token = 1, stride_head = dim * n_tokens, stride_dim = n_tokens
 *     ragged       rows of dim elements, head h from row row_start[h] on: stride_token = dim, stride_head = 0,
 *                  stride_dim = 1
 * Strides are positive; one that is never used (over one element or none) may be anything. No two elements may share
 * memory. How many rows and heads there are, the call that takes the tensor says.
 */
typedef struct lava_tensor {
    /**
     * sizeof(lava_tensor); lava_tensor_init sets it.
     */
    uint32_t struct_size;
    /**
     * LAVA_F32, LAVA_F16 or LAVA_BF16.
     */
    lava_dtype dtype;
    /**
     * First element, aligned to the element's size. Tensors that a call only reads are never written.
     */
    void *data;
    /**
     * Bytes that may be accessed from data on. Every element is checked to lie within; without row_start as if every head
     * had as many rows as the longest.
     */
    size_t size;
    /**
     * Elements from one row of a head to the next.
     */
    int64_t stride_token;
    /**
     * Elements from one head to the next; 0 where row_start is given.
     */
    int64_t stride_head;
    /**
     * Elements from one element of a row to the next.
     */
    int64_t stride_dim;
    /**
     * NULL, or one first row per head, ascending, the heads' rows not overlapping (else LAVA_ERR_OVERLAP).
     */
    const uint32_t *row_start;
} lava_tensor;

/**
 * Options of lava_select and of a cascade. lava_select_params_default gives the preset that measures best; the others are
 * lava_select_params_paper (all zero, as lava_select_params_init), _released and _equal.
 */
typedef struct lava_select_params {
    /**
     * sizeof(lava_select_params).
     */
    uint32_t struct_size;
    /**
     * LAVA_FLOOR_NONE, LAVA_FLOOR_GUARANTEED or LAVA_FLOOR_AFFINE.
     */
    int32_t head_floor;
    /**
     * In [0, 1], taken in billionths: the floor's share of the budget. Not used by LAVA_FLOOR_NONE.
     */
    double alpha;
    /**
     * NULL, or prefix_len bytes: a token whose byte is not zero is kept in every head. Protected tokens count toward
     * the budget.
     */
    const uint8_t *protected_mask;
    /**
     * So many first tokens are kept in every head. They count toward the budget.
     */
    uint32_t n_sink;
    /**
     * Each head's best so many entries, the protected ones among them, are kept before any compete. They count toward the
     * budget.
     */
    uint32_t head_min;
    /**
     * NULL, or head budgets from outside: n_kv_heads weights, for a cascade [n_layers, n_kv_heads], finite and not negative. Heads
     * share the layer's budget in proportion, with the rules of lava_layer_budgets, instead of competing; the floors do nothing
     * then. Counts that sum to the budget are taken exactly.
     */
    const double *head_weights;
    /**
     * One of LAVA_LAYERS_: how the layers of a cascade share its total. Not used by lava_select and lava_global_budgets.
     */
    int32_t layer_budgets;
    /**
     * Pushes of a cascade from one eviction to the next: the caller compacts all layers so far after pushes evict_every,
     * 2 * evict_every, ... and after the last one, and at no other time. 0 and 1: after each push; n_layers or more: only at the
     * end. What is kept does not depend on it. Not used by lava_select and lava_global_budgets.
     */
    uint32_t evict_every;
} lava_select_params;

/**
 * What lava_select did.
 */
typedef struct lava_selection {
    /**
     * sizeof(lava_selection), set by the caller.
     */
    uint32_t struct_size;
    /**
     * 1 if nothing was evicted, else 0.
     */
    uint32_t everything_kept;
    /**
     * Kept rows over all heads, windows included: cu_kept[n_kv_heads].
     */
    uint64_t n_kept;
    /**
     * Kept prefix entries: the budget asked for, or all there are.
     */
    uint64_t budget;
    /**
     * Sum of the layer's scores.
     */
    double mass;
    /**
     * Share of mass that was evicted, in [0, 1]. Up to a constant the paper's bound on the change of the layer's
     * attention output.
     */
    double evicted_share;
} lava_selection;

/**
 * What a layer of a cascade holds after a push. The pointers lead into the state and are good until the next push.
 */
typedef struct lava_cascade_layer {
    /**
     * sizeof(lava_cascade_layer), set by the caller.
     */
    uint32_t struct_size;
    /**
     * 1 if nothing of this layer has been evicted since the caller last compacted it: no row moves.
     */
    uint32_t unchanged;
    /**
     * True token positions kept by each head, ascending, window included.
     */
    const uint32_t *kept_indices;
    /**
     * Exclusive prefix sum of the kept counts, n_kv_heads + 1 entries.
     */
    const uint32_t *cu_kept;
    /**
     * For lava_compact: which rows are kept of those that the caller's cache holds, as the last eviction left it (see evict_every
     * of lava_select_params). Of a layer pushed since then: token positions.
     */
    const uint32_t *rows;
    /**
     * Exclusive prefix sum of the row counts of that cache, n_kv_heads + 1 entries.
     */
    const uint32_t *cu_rows;
    /**
     * Prefix entries kept. After the last push exactly the layer's budget; before, at most one more than its share plus
     * what a head floor may still ask for.
     */
    uint64_t budget;
    /**
     * Normalised entropy of the layer's scores.
     */
    double entropy;
    /**
     * Sum of the layer's scores.
     */
    double mass;
    /**
     * Share of mass evicted so far.
     */
    double evicted_share;
} lava_cascade_layer;

/**
 * Options of lava_attend. lava_attend_params_init gives causal attention without cap or sliding window.
 */
typedef struct lava_attend_params {
    /**
     * sizeof(lava_attend_params).
     */
    uint32_t struct_size;
    /**
     * 1: each head's last rows are the new queries' own, so that query t sees all rows but the last n_tokens - 1 - t.
     * 0: every query sees every row.
     */
    uint32_t causal;
    /**
     * Factor on q.k. 0: 1 / sqrt(head_dim_k).
     */
    float scale;
    /**
     * Logits become softcap * tanh(logit / softcap). 0: no cap.
     */
    float softcap;
    /**
     * Each query sees the last so many positions, its own included. 0: all. Needs kept_indices and cu_kept. With causal
     * 1 a query's own position is that of its row, with 0 query t stands t behind the position after the last row.
     */
    uint32_t sliding_window;
    /**
     * Position of each head's first row behind its kept ones; later rows count on from there.
     */
    uint32_t n_base;
    /**
     * NULL, or the positions of each head's first rows, ascending. That they ascend is not checked: others give another mask, and
     * nothing worse.
     */
    const uint32_t *kept_indices;
    /**
     * NULL, or their prefix sum, n_kv_heads + 1 entries.
     */
    const uint32_t *cu_kept;
} lava_attend_params;

/**
 * The call did what it says.
 */
#define LAVA_OK 0

/**
 * A pointer that must not be NULL is NULL.
 */
#define LAVA_ERR_NULL -1

/**
 * A struct_size is smaller than the first version of its struct, or bytes behind what this library knows are not zero.
 */
#define LAVA_ERR_STRUCT_SIZE -2

/**
 * An option is out of range.
 */
#define LAVA_ERR_ARGUMENT -3

/**
 * Sizes do not fit together.
 */
#define LAVA_ERR_SHAPE -4

/**
 * A stride is zero, negative, or lets two elements share memory.
 */
#define LAVA_ERR_STRIDE -5

/**
 * A pointer is not aligned to its element, or a workspace or state not to LAVA_WORKSPACE_ALIGN.
 */
#define LAVA_ERR_ALIGNMENT -6

/**
 * An output shares memory with another argument.
 */
#define LAVA_ERR_OVERLAP -7

/**
 * A buffer is smaller than its shape and strides need.
 */
#define LAVA_ERR_BUFFER_SIZE -8

/**
 * The workspace or state is smaller than its size function says.
 */
#define LAVA_ERR_WORKSPACE -9

/**
 * A size does not fit its type; n_kv_heads * n_tokens must be below 2^32.
 */
#define LAVA_ERR_OVERFLOW -10

/**
 * An element type that is unknown or not accepted here.
 */
#define LAVA_ERR_DTYPE -11

/**
 * The budget is smaller than the window, or than the protected entries.
 */
#define LAVA_ERR_BUDGET -12

/**
 * NaN or infinity in the input, or a score that overflows. lava_error names the layer and the head.
 */
#define LAVA_ERR_NONFINITE -13

/**
 * Kept indices that do not ascend or lie outside the cache, or prefix sums that decrease.
 */
#define LAVA_ERR_INDICES -14

/**
 * A cascade that is not initialised, already complete, or has no such layer yet.
 */
#define LAVA_ERR_STATE -15

/**
 * A bug in the library. Please report it.
 */
#define LAVA_ERR_INTERNAL -16

/**
 * Of lava_cuda.h: no libcuda, or one that is too old, finds no device or does not take the kernels.
 */
#define LAVA_ERR_DRIVER -17

/**
 * Of lava_cuda.h: no CUDA context is current on the calling thread, or another than lava_cuda_init saw.
 */
#define LAVA_ERR_CONTEXT -18

/**
 * Of lava_cuda.h: the driver refused a launch.
 */
#define LAVA_ERR_LAUNCH -19

/**
 * Of lava_cuda.h: this build has no kernels, or none for these options.
 */
#define LAVA_ERR_UNSUPPORTED -20

/**
 * IEEE 754 binary32.
 */
#define LAVA_F32 0

/**
 * IEEE 754 binary16.
 */
#define LAVA_F16 1

/**
 * bfloat16.
 */
#define LAVA_BF16 2

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version as a number: major * 10000 + minor * 100 + patch. Any thread.
 */
uint32_t lava_version(void);

/**
 * The version as text, static, such as "0.1.0". Any thread.
 */
const char *lava_version_string(void);

/**
 * A status in words, static, never NULL; "unknown status" for a number that is none. Any thread.
 */
const char *lava_status_string(lava_status status);

/**
 * Name of the kernels that this machine gets, static, such as "avx2" or "scalar". Any thread.
 */
const char *lava_backend_name(void);

/**
 * Prefix entries that a budget means for a whole model: (budget - window) * n_layers * n_kv_heads, at most all there are.
 *
 * budget: average number of tokens kept per KV head per layer, window included. At least the window
 *     (LAVA_ERR_BUDGET), unless the window covers all tokens.
 * total: receives the number; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, BUDGET. Any thread.
 */
lava_status lava_total_entries(const struct lava_shape *shape,
                               uint32_t budget,
                               uint32_t n_layers,
                               uint64_t *total,
                               struct lava_error *error);

/**
 * The budget that a ratio of the tokens means: floor(ratio * n_tokens).
 *
 * ratio: in [0, 1]; the budget must not be below the window (LAVA_ERR_BUDGET).
 * budget: receives tokens per KV head per layer, window included; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ARGUMENT, BUDGET. Any thread.
 */
lava_status lava_budget_from_ratio(const struct lava_shape *shape,
                                   double ratio,
                                   uint32_t *budget,
                                   struct lava_error *error);

/**
 * Bytes of workspace that each part of lava_score needs: at most a tenth of the layer's K and V in f16, from about a
 * thousand tokens on (the queries of one head and one block of keys must fit).
 *
 * size: receives the bytes; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ARGUMENT. Any thread.
 */
lava_status lava_score_workspace_size(const struct lava_shape *shape,
                                      const struct lava_score_params *params,
                                      size_t *size,
                                      struct lava_error *error);

/**
 * Scores the prefix of one layer: window attention, pooled, reduced over each group, times the value norm.
 *
 *     scores[g][i] = vmax[g] * max_{h in group g} pool(mean_j softmax_i(scale * q_j.k_i))
 *
 * This is LAVa's score, the default; params make it another paper's.
 *
 * q:   [min(window, n_tokens), n_q_heads, head_dim_k], the last window queries of the prompt, after RoPE.
 * k:   [n_tokens, n_kv_heads, head_dim_k], after RoPE.
 * v:   [n_tokens, n_kv_heads, head_dim_v].
 * lse: NULL, or f32 [min(window, n_tokens), n_q_heads, 1]: natural log-sum-exp of each query's scaled, capped, masked logits over all
 *      keys it sees, as flash attention returns it. Saves a pass and the memory for it. It is believed: a wrong one gives
 *      wrong scores.
 * part, n_parts: this call does share `part` of `n_parts` of the KV heads: n_kv_heads * part / n_parts up to
 *      n_kv_heads * (part + 1) / n_parts. Parts may run at the same time, each with a workspace of its own. The scores
 *      are the same bits for every n_parts. More parts than KV heads leave some with nothing to do.
 * workspace: lava_score_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN; contents neither needed nor kept.
 * scores: f32 [n_kv_heads, n_tokens - window] for all heads, without gaps, of which the part writes its own. All are
 *      finite and not negative. On error the part's own may be partly written. Where the window covers all
 *      tokens nothing is written, and scores may be NULL.
 * Errors: NULL, STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, OVERFLOW, DTYPE,
 *      NONFINITE (naming the layer and one of the heads at fault). Inputs may share memory with each other, outputs with
 *      nothing. Any thread.
 */
lava_status lava_score(const struct lava_shape *shape,
                       const struct lava_score_params *params,
                       const struct lava_tensor *q,
                       const struct lava_tensor *k,
                       const struct lava_tensor *v,
                       const struct lava_tensor *lse,
                       uint32_t part,
                       uint32_t n_parts,
                       void *workspace,
                       size_t workspace_size,
                       float *scores,
                       struct lava_error *error);

/**
 * Gives all heads the mean of their scores, in place. With equal head budgets (LAVA_FLOOR_AFFINE, alpha 1) they then keep the same
 * tokens: TOVA's one set for all heads (arXiv 2401.06104).
 *
 * scores: f32 [n_kv_heads, n_tokens - window], finite.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, NONFINITE. Untouched on error. Any thread.
 */
lava_status lava_mean_over_heads(const struct lava_shape *shape,
                                 float *scores,
                                 struct lava_error *error);

/**
 * How the window looks at the prefix, two numbers per KV head: what lava_preference makes a layer's weight of.
 *
 *     entropy  = sum over heads, window and prefix of -A ln A
 *     variance = sum over heads and prefix of the variance of A over the window, divided by window - 1
 *
 * where heads are the query heads of the KV head.
 *
 * Another pass over K beside lava_score's.
 *
 * params: scale, softcap and sliding_window are used.
 * q, k, lse, part, n_parts, workspace: as in lava_score; lava_score_workspace_size of any params with these will do.
 * stats: [n_kv_heads, 2] doubles, entropy and variance, for all heads, of which the part writes its own. On error the part's own
 *     may be partly written.
 * Errors: as lava_score. Any thread.
 */
lava_status lava_attention_stats(const struct lava_shape *shape,
                                 const struct lava_score_params *params,
                                 const struct lava_tensor *q,
                                 const struct lava_tensor *k,
                                 const struct lava_tensor *lse,
                                 uint32_t part,
                                 uint32_t n_parts,
                                 void *workspace,
                                 size_t workspace_size,
                                 double *stats,
                                 struct lava_error *error);

/**
 * CAKE's weight of a layer (arXiv 2503.12491): (sum of entropies)^(1/tau1) * (sum of variances)^(1/tau2).
 *
 * stats: [n_kv_heads, 2] from lava_attention_stats.
 * tau1, tau2: above 0, chosen per model; 1 says nothing in particular.
 * weight: receives it, for lava_layer_budgets or lava_cascade_push_weighted; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, OVERLAP, ARGUMENT, NONFINITE. Any thread.
 */
lava_status lava_preference(const struct lava_shape *shape,
                            const double *stats,
                            double tau1,
                            double tau2,
                            double *weight,
                            struct lava_error *error);

/**
 * Normalised entropy of a layer's scores, the layer's weight when layers share a total.
 *
 *     p = scores / sum(scores)        entropy = -sum(p ln p) / ln(n_kv_heads * prefix_len)
 *
 * scores: f32 [n_kv_heads, n_tokens - window], not negative.
 * entropy: receives a number in [0, 1]; 0 where there is nothing to spread. The same bits on every machine.
 * mass: NULL, or receives sum(scores).
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, OVERLAP, NONFINITE. Outputs untouched on error. Any thread.
 */
lava_status lava_entropy(const struct lava_shape *shape,
                         const float *scores,
                         double *entropy,
                         double *mass,
                         struct lava_error *error);

/**
 * Shares a total among layers in proportion to their weights, as integers.
 *
 * The budgets sum to exactly min(total, sum(capacities)): largest remainder, ties to the lower layer. No layer gets more
 * than its capacity or less than its minimum; what it cannot use goes to the others in proportion. Where all weights are
 * zero, layers share equally.
 *
 * n_layers: 1 to LAVA_MAX_LAYERS.
 * weights: [n_layers], finite, not negative; for LAVa the entropies. Resolved to 2^-52.
 * capacities: [n_layers], prefix entries of each layer (n_kv_heads * prefix_len), below 2^32.
 * minimums: NULL, or [n_layers], such as each layer's protected entries (n_kv_heads times the protected tokens).
 * total: prefix entries over all layers; see lava_total_entries.
 * budgets: [n_layers], receives each layer's prefix entries; untouched on error.
 * Errors: NULL, ALIGNMENT, SHAPE, OVERLAP, OVERFLOW, NONFINITE (naming the layer), BUDGET (minimums do not fit). Any
 *     thread.
 */
lava_status lava_layer_budgets(uint32_t n_layers,
                               const double *weights,
                               const uint64_t *capacities,
                               const uint64_t *minimums,
                               uint64_t total,
                               uint64_t *budgets,
                               struct lava_error *error);

/**
 * PyramidKV's weights for lava_layer_budgets (arXiv 2406.02069): budgets fall linearly from the first layer to the last.
 *
 * prefix_budget: average prefix tokens kept per head: budget - window.
 * prefix_len: all there are: n_tokens - window. No layer gets more.
 * beta: how small the last layer's budget is: prefix_budget / beta. At least 1; published: 20, with a window of 8.
 * weights: [n_layers], receives them; untouched on error.
 * Errors: NULL, ALIGNMENT, SHAPE, ARGUMENT. Any thread.
 */
lava_status lava_pyramid_weights(uint32_t n_layers,
                                 uint64_t prefix_budget,
                                 uint64_t prefix_len,
                                 double beta,
                                 double *weights,
                                 struct lava_error *error);

/**
 * Bytes of workspace that lava_global_budgets needs.
 *
 * size: receives the bytes; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
 */
lava_status lava_global_budgets_workspace_size(const struct lava_shape *shape,
                                               uint32_t n_layers,
                                               size_t *size,
                                               struct lava_error *error);

/**
 * Layer and head budgets by one sort over the whole model: the `total` largest scores win, in whatever layer and head they are. Ties go to
 * the lower layer, then the lower head, then the lower token.
 *
 * For each layer, lava_select with its budget, and its part of head_weights in lava_select_params, keeps exactly those entries. Layer
 * weights go into the scores (lava_score_params.weight).
 *
 * shape: of every layer. n_layers * n_kv_heads * n_tokens must be below 2^32.
 * params: head_min, sinks, the mask and LAVA_FLOOR_GUARANTEED are as in one layer, with total / (n_layers * n_kv_heads) as a
 *     head's share. LAVA_FLOOR_AFFINE and head_weights are refused.
 * scores: f32 [n_layers, n_kv_heads, n_tokens - window], finite.
 * total: prefix entries to keep over all layers; see lava_total_entries.
 * workspace: lava_global_budgets_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
 * budgets: [n_layers], receives each layer's prefix entries, in all min(total, all there are); untouched on error.
 * head_weights: [n_layers, n_kv_heads], receives each head's prefix entries, as doubles; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, BUDGET (below what the heads are promised),
 *     NONFINITE (naming layer and head, or head_weights). Any thread.
 */
lava_status lava_global_budgets(const struct lava_shape *shape,
                                uint32_t n_layers,
                                const struct lava_select_params *params,
                                const float *scores,
                                uint64_t total,
                                void *workspace,
                                size_t workspace_size,
                                uint64_t *budgets,
                                double *head_weights,
                                struct lava_error *error);

/**
 * Rows that lava_select keeps for a layer budget: the entries that kept_indices needs.
 *
 * n_kept: receives min(budget, all) + n_kv_heads * min(window, n_tokens); untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
 */
lava_status lava_n_kept(const struct lava_shape *shape,
                        uint64_t budget,
                        uint64_t *n_kept,
                        struct lava_error *error);

/**
 * Bytes of workspace that lava_select needs.
 *
 * size: receives the bytes; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
 */
lava_status lava_select_workspace_size(const struct lava_shape *shape,
                                       size_t *size,
                                       struct lava_error *error);

/**
 * Keeps a layer's best entries: the `budget` largest scores over all heads, and every head's window.
 *
 * Ties go to the lower head, then to the lower token, so the kept set is a function of the scores: the same on every
 * backend, in every run.
 *
 * scores: f32 [n_kv_heads, n_tokens - window], finite; from lava_score or from anywhere else. NULL will do where the
 *     window covers all tokens.
 * budget: prefix entries to keep in this layer, over all heads. More than there are keeps everything.
 * workspace: lava_select_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
 * kept_indices: receives each head's token positions, ascending, head behind head.
 * kept_capacity: entries that kept_indices has room for, at least what lava_n_kept says.
 * cu_kept: n_kv_heads + 1 entries, receives the exclusive prefix sum of the counts, from 0: head h keeps
 *     kept_indices[cu_kept[h]] up to kept_indices[cu_kept[h + 1]].
 * selection: NULL, or receives what was done, in particular whether nothing was evicted.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, WORKSPACE, BUDGET (below the
 *     protected entries or head_min), NONFINITE. Outputs untouched on error. Any thread.
 */
lava_status lava_select(const struct lava_shape *shape,
                        const struct lava_select_params *params,
                        const float *scores,
                        uint64_t budget,
                        void *workspace,
                        size_t workspace_size,
                        uint32_t *kept_indices,
                        uint64_t kept_capacity,
                        uint32_t *cu_kept,
                        struct lava_selection *selection,
                        struct lava_error *error);

/**
 * Bytes of workspace that lava_budget_for_share needs.
 *
 * size: receives the bytes; untouched on error.
 * Errors: NULL. Any thread.
 */
lava_status lava_budget_for_share_workspace_size(size_t *size, struct lava_error *error);

/**
 * The smallest budget of a layer whose evicted share of score mass is at most epsilon, without floors or protected
 * entries: ask for a bound on the loss instead of a size.
 *
 * scores: f32 [n_kv_heads, n_tokens - window], finite, not negative.
 * epsilon: in [0, 1].
 * workspace: lava_budget_for_share_workspace_size bytes, aligned to LAVA_WORKSPACE_ALIGN.
 * budget: receives prefix entries, for lava_select; untouched on error. The share holds to within 1e-12.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ALIGNMENT, ARGUMENT, OVERLAP, WORKSPACE, NONFINITE. Any thread.
 */
lava_status lava_budget_for_share(const struct lava_shape *shape,
                                  const float *scores,
                                  double epsilon,
                                  void *workspace,
                                  size_t workspace_size,
                                  uint64_t *budget,
                                  struct lava_error *error);

/**
 * Evicts: gathers each head's kept rows of K and V, in position order, into another cache or in place.
 *
 * Row rows[cu_kept[h] + r] of head h becomes row r of head h. Keys carry their RoPE; nothing is re-rotated. True positions
 * stay with the caller in kept_indices.
 *
 * shape: n_tokens, n_kv_heads, head_dim_k and head_dim_v are used.
 * k_src, v_src: the caches as they are, [rows, n_kv_heads, head_dim]. v_src and v_dst may both be NULL (a cache of keys only).
 * cu_rows: NULL if each head has n_tokens rows; else n_kv_heads + 1 entries, the prefix sum of each head's rows in
 *     the source (from lava_cascade_get, or the cu_kept of an earlier compression).
 * rows: kept_indices of lava_select, or rows of lava_cascade_get: ascending per head.
 * cu_kept: n_kv_heads + 1 entries.
 * k_dst, v_dst: where the kept rows go, of the source's element type; each head needs room for its kept rows. Any layout:
 *     ragged with row_start = cu_kept is the smallest; ragged with room behind each head lets it grow.
 *     In place is the source's memory, with the same data, dtype, stride_token and stride_dim. Then either the
 *     heads stay where they are (no row_start, or the same): each head's rows move to the front of its own. Or both are
 *     ragged and every row moves to the front of the buffer or stays (the heads close ranks; row_start may lead anywhere
 *     into a larger buffer, such as an arena that layers share): then n_parts must be 1.
 *     Otherwise a destination may not share memory with a source or the other destination; K and V interleaved in one
 *     buffer with the same strides are fine.
 * part, n_parts: as in lava_score: a share of the KV heads. In place each part runs once: a second run would move rows
 *     again. What moves is what the cache holds now; the scores are not looked at.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, STRIDE, ALIGNMENT, ARGUMENT, OVERLAP, BUFFER_SIZE, DTYPE, INDICES. Neither
 *     cache is touched on error. Any thread.
 */
lava_status lava_compact(const struct lava_shape *shape,
                         const struct lava_tensor *k_src,
                         const struct lava_tensor *v_src,
                         const uint32_t *cu_rows,
                         const uint32_t *rows,
                         const uint32_t *cu_kept,
                         const struct lava_tensor *k_dst,
                         const struct lava_tensor *v_dst,
                         uint32_t part,
                         uint32_t n_parts,
                         struct lava_error *error);

/**
 * Bytes of state that a cascade needs: about 12 per prefix entry of the total, and its windows.
 *
 * size: receives the bytes; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW, ARGUMENT, NONFINITE (head_weights), BUDGET (the protected entries or head_min alone
 *     exceed the total). Any thread.
 */
lava_status lava_cascade_state_size(const struct lava_shape *shape,
                                    uint32_t n_layers,
                                    uint64_t total,
                                    const struct lava_select_params *params,
                                    size_t *size,
                                    struct lava_error *error);

/**
 * Starts a cascade: compress while prefilling, layer by layer, instead of at the end.
 *
 * shape: n_tokens, n_kv_heads and window, the same for every layer.
 * n_layers: layers that will be pushed.
 * total: prefix entries to keep over all layers; see lava_total_entries.
 * params: floors, sinks, the protected mask, head weights, how the layers share the total, and how often the caller evicts. All is
 *     copied.
 * state: lava_cascade_state_size bytes, aligned to LAVA_WORKSPACE_ALIGN. The caller owns it and may drop it, start it
 *     again or copy it at any time: it holds no resources and no pointers.
 * Errors: as lava_cascade_state_size, and ALIGNMENT, OVERLAP, WORKSPACE. Any thread, but one call on a state at a time.
 */
lava_status lava_cascade_init(const struct lava_shape *shape,
                              uint32_t n_layers,
                              uint64_t total,
                              const struct lava_select_params *params,
                              void *state,
                              size_t state_size,
                              struct lava_error *error);

/**
 * Takes in the next layer's scores and decides anew what every layer so far keeps.
 *
 * After it, lava_cascade_get says for each layer 0 to l which rows the caller's cache is to keep; lava_compact moves them, at once or
 * as often as evict_every of lava_select_params says.
 * After the last of n_layers pushes the kept sets are exactly, bit for bit, those of lava_layer_budgets and lava_select
 * on all layers at once. Before it, a layer may hold one entry more than its share, so all together at most total + l
 * prefix entries, plus what a head floor may still ask for (alpha of that, and one per head and layer).
 *
 * Under LAVA_LAYERS_GLOBAL the final kept sets are those of lava_global_budgets, and before it all layers hold at most `total`
 * together, plus what a floor or head_min may still ask for.
 *
 * scores: f32 [n_kv_heads, n_tokens - window] of the next layer, not negative.
 * Errors: NULL, STRUCT_SIZE, ALIGNMENT, OVERLAP, WORKSPACE, STATE (not initialised or complete), NONFINITE (naming
 *     layer and head), ARGUMENT (LAVA_LAYERS_WEIGHTS: use lava_cascade_push_weighted). The cascade is unchanged on error. Any
 *     thread, but one call on a state at a time.
 */
lava_status lava_cascade_push(void *state,
                              size_t state_size,
                              const float *scores,
                              struct lava_error *error);

/**
 * The same with the layer's weight, under LAVA_LAYERS_WEIGHTS: for pyramids, CAKE's preference, what was learned.
 *
 * weight: finite, not negative.
 * Errors: as lava_cascade_push; ARGUMENT under any other LAVA_LAYERS_; NONFINITE for the weight.
 */
lava_status lava_cascade_push_weighted(void *state,
                                       size_t state_size,
                                       const float *scores,
                                       double weight,
                                       struct lava_error *error);

/**
 * What layer `layer` keeps after the last push, and how to get there from what the caller's cache holds.
 *
 * out: receives pointers into the state, good until the next push; untouched on error. What they lead to may be read by
 *     several threads at a time. That it lies outside the state is not checked.
 * Errors: NULL, STRUCT_SIZE, ALIGNMENT, WORKSPACE, STATE (not initialised, or that layer was not pushed yet). Any thread,
 *     but one call on a state at a time.
 */
lava_status lava_cascade_get(void *state,
                             size_t state_size,
                             uint32_t layer,
                             struct lava_cascade_layer *out,
                             struct lava_error *error);

/**
 * Bytes of workspace that each part of lava_attend needs.
 *
 * size: receives the bytes; untouched on error.
 * Errors: NULL, STRUCT_SIZE, SHAPE, OVERFLOW. Any thread.
 */
lava_status lava_attend_workspace_size(const struct lava_shape *shape,
                                       size_t *size,
                                       struct lava_error *error);

/**
 * Attention of new queries over a compressed cache: heads of unlike length, grouped queries.
 *
 * shape: n_tokens is the number of new queries, n_q_heads, n_kv_heads and the head dimensions as ever; window is not
 *     used but must be at least 1.
 * q:   [n_tokens, n_q_heads, head_dim_k], after RoPE.
 * k:   [n_rows[h], n_kv_heads, head_dim_k], usually ragged.
 * v:   [n_rows[h], n_kv_heads, head_dim_v], usually ragged.
 * n_rows: n_kv_heads entries, each head's rows, the new tokens' own included if causal: then at least n_tokens.
 * out: f32 [n_tokens, n_q_heads, head_dim_v]. A query that sees no row gets zeros.
 * lse: NULL, or f32 [n_tokens, n_q_heads, 1]: natural log-sum-exp of each query's logits, for merging with
 *     attention over other rows. -inf where no row is seen.
 * part, n_parts: a share of the KV heads with their query heads; the result is the same bits for every n_parts.
 * workspace: lava_attend_workspace_size bytes, one per part, aligned to LAVA_WORKSPACE_ALIGN.
 * Errors: NULL (kept_indices, with a sliding window), STRUCT_SIZE, ARGUMENT, SHAPE, STRIDE, ALIGNMENT, OVERLAP, BUFFER_SIZE,
 *     WORKSPACE, OVERFLOW, DTYPE, INDICES, NONFINITE (in q, k or v, or a sum over values that overflows; rows that no query sees may
 *     or may not be looked at). The cache is never written; out and lse may be partly written on NONFINITE and are untouched
 *     otherwise. Any thread.
 */
lava_status lava_attend(const struct lava_shape *shape,
                        const struct lava_attend_params *params,
                        const struct lava_tensor *q,
                        const struct lava_tensor *k,
                        const struct lava_tensor *v,
                        const uint32_t *n_rows,
                        const struct lava_tensor *out,
                        const struct lava_tensor *lse,
                        uint32_t part,
                        uint32_t n_parts,
                        void *workspace,
                        size_t workspace_size,
                        struct lava_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#if defined(__cplusplus)
#define LAVA_STATIC_ASSERT(condition, text) static_assert(condition, text)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define LAVA_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#else
#define LAVA_STATIC_ASSERT(condition, text) struct lava_assert_unused
#endif

LAVA_STATIC_ASSERT(sizeof(void *) == 8, "lava.h is for 64-bit machines");
LAVA_STATIC_ASSERT(sizeof(lava_shape) == 32, "lava_shape");
LAVA_STATIC_ASSERT(offsetof(lava_shape, n_tokens) == 8 && offsetof(lava_shape, window) == 28, "lava_shape");
LAVA_STATIC_ASSERT(sizeof(lava_tensor) == 56, "lava_tensor");
LAVA_STATIC_ASSERT(offsetof(lava_tensor, data) == 8 && offsetof(lava_tensor, row_start) == 48, "lava_tensor");
LAVA_STATIC_ASSERT(sizeof(lava_score_params) == 56, "lava_score_params");
LAVA_STATIC_ASSERT(offsetof(lava_score_params, scale) == 24 && offsetof(lava_score_params, weight) == 48,
                   "lava_score_params");
LAVA_STATIC_ASSERT(sizeof(lava_select_params) == 48, "lava_select_params");
LAVA_STATIC_ASSERT(offsetof(lava_select_params, alpha) == 8 && offsetof(lava_select_params, head_weights) == 32,
                   "lava_select_params");
LAVA_STATIC_ASSERT(offsetof(lava_select_params, protected_mask) == 16, "lava_select_params");
LAVA_STATIC_ASSERT(sizeof(lava_selection) == 40, "lava_selection");
LAVA_STATIC_ASSERT(offsetof(lava_selection, evicted_share) == 32, "lava_selection");
LAVA_STATIC_ASSERT(sizeof(lava_cascade_layer) == 72, "lava_cascade_layer");
LAVA_STATIC_ASSERT(offsetof(lava_cascade_layer, evicted_share) == 64, "lava_cascade_layer");
LAVA_STATIC_ASSERT(sizeof(lava_attend_params) == 40, "lava_attend_params");
LAVA_STATIC_ASSERT(offsetof(lava_attend_params, kept_indices) == 24, "lava_attend_params");
LAVA_STATIC_ASSERT(sizeof(lava_error) == 32, "lava_error");
LAVA_STATIC_ASSERT(offsetof(lava_error, message) == 24, "lava_error");

/*
 * Structs, initialised.
 */

#if defined(__cplusplus)
#define LAVA_ZERO {}
#else
#define LAVA_ZERO {0}
#endif

/** Sizes of a layer; 0 for layer until it is set. */
static inline lava_shape lava_shape_init(uint32_t n_tokens, uint32_t n_q_heads, uint32_t n_kv_heads,
                                         uint32_t head_dim_k, uint32_t head_dim_v, uint32_t window) {
    lava_shape shape = LAVA_ZERO;
    shape.struct_size = (uint32_t) sizeof(shape);
    shape.n_tokens = n_tokens;
    shape.n_q_heads = n_q_heads;
    shape.n_kv_heads = n_kv_heads;
    shape.head_dim_k = head_dim_k;
    shape.head_dim_v = head_dim_v;
    shape.window = window;
    return shape;
}

/** A tensor of any strides, in elements, over `size` bytes. For an input, cast const away: it is not written. */
static inline lava_tensor lava_tensor_init(lava_dtype dtype, void *data, size_t size, int64_t stride_token,
                                           int64_t stride_head, int64_t stride_dim) {
    lava_tensor tensor = LAVA_ZERO;
    tensor.struct_size = (uint32_t) sizeof(tensor);
    tensor.dtype = dtype;
    tensor.data = data;
    tensor.size = size;
    tensor.stride_token = stride_token;
    tensor.stride_head = stride_head;
    tensor.stride_dim = stride_dim;
    return tensor;
}

/** [n_tokens, n_heads, dim] without gaps. */
static inline lava_tensor lava_tensor_token_major(lava_dtype dtype, void *data, size_t size, uint32_t n_heads,
                                                  uint32_t dim) {
    return lava_tensor_init(dtype, data, size, (int64_t) n_heads * dim, dim, 1);
}

/** [n_heads, n_tokens, dim] without gaps. */
static inline lava_tensor lava_tensor_head_major(lava_dtype dtype, void *data, size_t size, uint32_t n_tokens,
                                                 uint32_t dim) {
    return lava_tensor_init(dtype, data, size, dim, (int64_t) n_tokens * dim, 1);
}

/** [n_heads, dim, n_tokens] without gaps: V as llama.cpp keeps it without flash attention. */
static inline lava_tensor lava_tensor_transposed(lava_dtype dtype, void *data, size_t size, uint32_t n_tokens,
                                                 uint32_t dim) {
    return lava_tensor_init(dtype, data, size, 1, (int64_t) dim * n_tokens, n_tokens);
}

/** Rows of dim elements without gaps, head h from row row_start[h] on: a compressed cache. */
static inline lava_tensor lava_tensor_ragged(lava_dtype dtype, void *data, size_t size, const uint32_t *row_start,
                                             uint32_t dim) {
    lava_tensor tensor = lava_tensor_init(dtype, data, size, dim, 0, 1);
    tensor.row_start = row_start;
    return tensor;
}

/** Preset `paper`, LAVa's scoring: max-pooling of width 7, maximum over the group, values of the prefix. */
static inline lava_score_params lava_score_params_init(void) {
    lava_score_params params = LAVA_ZERO;
    params.struct_size = (uint32_t) sizeof(params);
    params.pool_kernel = 7;
    return params;
}

/**
 * The default preset, chosen by `make eval`: squared attention, each token's own value norm, one head's mean added.
 *
 * For lava_select_params_default: one sort over all layers. Of the README's table it is the best that was not trained for the model,
 * or as good as it within the confidence interval.
 */
static inline lava_score_params lava_score_params_default(void) {
    lava_score_params params = lava_score_params_init();
    params.attention = LAVA_ATTENTION_SQUARED;
    params.value_weight = LAVA_VALUE_TOKEN;
    params.smoothing = 1;
    return params;
}

/** SnapKV (arXiv 2404.14469), and with other budgets Ada-KV (2407.11550) and PyramidKV (2406.02069): no value norm. */
static inline lava_score_params lava_score_params_snapkv(void) {
    lava_score_params params = lava_score_params_init();
    params.value_weight = LAVA_VALUE_NONE;
    return params;
}

/** CAKE (arXiv 2503.12491): mean and variance, average-pooled over 5, the group's mean. Published with gamma = 200. */
static inline lava_score_params lava_score_params_cake(float gamma) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_MEAN_VARIANCE;
    params.gamma = gamma;
    params.pool = LAVA_POOL_AVG;
    params.pool_kernel = 5;
    params.group_reduce = LAVA_GROUP_MEAN;
    return params;
}

/** TOVA (arXiv 2401.06104): for a window of 1; then lava_mean_over_heads and equal head budgets. */
static inline lava_score_params lava_score_params_tova(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.pool_kernel = 1;
    params.group_reduce = LAVA_GROUP_MEAN;
    return params;
}

/** StreamingLLM (arXiv 2309.17453): the newest tokens. Published with 4 sinks. */
static inline lava_score_params lava_score_params_streaming(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_RECENCY;
    params.pool_kernel = 1;
    return params;
}

/** VATP (arXiv 2406.12335): attention times the value's own norm. Published with 20 sinks. */
static inline lava_score_params lava_score_params_vatp(void) {
    lava_score_params params = lava_score_params_init();
    params.value_weight = LAVA_VALUE_TOKEN;
    params.pool_kernel = 1;
    return params;
}

/** CAOTE (arXiv 2504.14051) over the window's mean attention. */
static inline lava_score_params lava_score_params_caote(void) {
    lava_score_params params = lava_score_params_init();
    params.value_weight = LAVA_VALUE_OUTPUT;
    params.pool_kernel = 1;
    return params;
}

/** ReST-KV (arXiv 2605.08840), without the output matrix. Published with a decay of 0.3. */
static inline lava_score_params lava_score_params_rest_kv(float decay) {
    lava_score_params params = lava_score_params_init();
    params.attention = LAVA_ATTENTION_EXPONENTIAL;
    params.decay = decay;
    params.value_weight = LAVA_VALUE_OUTPUT;
    return params;
}

/** KV-Compress (arXiv 2410.00161): squared attention; the group's sum, here its mean, which has the same order. */
static inline lava_score_params lava_score_params_kv_compress(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_SQUARED;
    params.group_reduce = LAVA_GROUP_MEAN;
    return params;
}

/** SAGE-KV (arXiv 2503.08879): the last query's attention, whatever the window. */
static inline lava_score_params lava_score_params_sage_kv(void) {
    lava_score_params params = lava_score_params_snapkv();
    params.attention = LAVA_ATTENTION_EXPONENTIAL;
    params.decay = 1.0f;
    params.pool_kernel = 1;
    return params;
}

/** Preset `paper`: no head floor (alpha = 0). */
static inline lava_select_params lava_select_params_paper(void) {
    lava_select_params params = LAVA_ZERO;
    params.struct_size = (uint32_t) sizeof(params);
    return params;
}

/** Preset `released`: the affine floor of the authors' code, alpha = 0.2, here with exact totals. */
static inline lava_select_params lava_select_params_released(void) {
    lava_select_params params = lava_select_params_paper();
    params.head_floor = LAVA_FLOOR_AFFINE;
    params.alpha = 0.2;
    return params;
}

/** Equal head budgets: SnapKV, PyramidKV, CAKE, TOVA. */
static inline lava_select_params lava_select_params_equal(void) {
    lava_select_params params = lava_select_params_paper();
    params.head_floor = LAVA_FLOOR_AFFINE;
    params.alpha = 1.0;
    return params;
}

/** All options at zero: preset `paper`. */
static inline lava_select_params lava_select_params_init(void) {
    return lava_select_params_paper();
}

/**
 * The default preset, chosen by `make eval`: one sort over all layers, of a tenth of which each head is sure.
 *
 * A cascade does it by itself. At once: lava_global_budgets, and then lava_select with what it gives. The tenth is for models that are
 * unlike the one of that table: no layer is left with its window alone because its scores are small throughout.
 */
static inline lava_select_params lava_select_params_default(void) {
    lava_select_params params = lava_select_params_paper();
    params.head_floor = LAVA_FLOOR_GUARANTEED;
    params.alpha = 0.1;
    params.layer_budgets = LAVA_LAYERS_GLOBAL;
    return params;
}

/** Causal attention, scale 1 / sqrt(head_dim_k). */
static inline lava_attend_params lava_attend_params_init(void) {
    lava_attend_params params = LAVA_ZERO;
    params.struct_size = (uint32_t) sizeof(params);
    params.causal = 1;
    return params;
}

/** An empty report for lava_select. */
static inline lava_selection lava_selection_init(void) {
    lava_selection selection = LAVA_ZERO;
    selection.struct_size = (uint32_t) sizeof(selection);
    return selection;
}

/** An empty report for lava_cascade_get. */
static inline lava_cascade_layer lava_cascade_layer_init(void) {
    lava_cascade_layer layer = LAVA_ZERO;
    layer.struct_size = (uint32_t) sizeof(layer);
    return layer;
}

/** An empty report for any call. */
static inline lava_error lava_error_init(void) {
    lava_error error = LAVA_ZERO;
    error.struct_size = (uint32_t) sizeof(error);
    error.layer = LAVA_NONE;
    error.head = LAVA_NONE;
    return error;
}

#undef LAVA_STATIC_ASSERT
#undef LAVA_ZERO

#endif /* LAVA_H */
