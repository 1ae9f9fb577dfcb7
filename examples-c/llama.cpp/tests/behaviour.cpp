/*
 * What must work works, and what can't is refused with a message and nothing lost.
 */
#include "oracle.h"

static const uint32_t N_PROMPT = 200, N_MORE = 60;

static tiny_model tiny;
static model_ptr model;
static std::vector<llama_token> tokens;

static llama_lava_params some_params() {
    llama_lava_params p = llama_lava_default_params();
    p.budget = 80;
    return p;
}

static context_ptr prompted(const llama_lava_params & params, options o = {}, uint32_t n = N_PROMPT) {
    o.lava = &params;
    context_ptr ctx = open(model.get(), o);
    if (!ctx || decode(ctx.get(), tokens.data(), (int) n) != 0) check(false, "a prompt of %u tokens", n);
    return ctx;
}

static context_ptr compressed(const llama_lava_params & params, options o = {}, uint32_t n = N_PROMPT) {
    context_ptr ctx = prompted(params, o, n);
    if (llama_lava_compress(ctx.get()) != 0) check(false, "compression of %u tokens", n);
    return ctx;
}

// Nothing changed: the same rows, and the same logits as a context to which it didn't happen.
static void check_untouched(llama_context * ctx, const kept_rows & rows, const char * what) {
    context_ptr other = compressed(some_params());
    check(all_positions(ctx) == rows && identical(steps(ctx, tokens, N_PROMPT, 3), steps(other.get(), tokens, N_PROMPT, 3)), "%s: nothing is lost", what);
    llama_memory_seq_rm(llama_get_memory(ctx), 0, N_PROMPT, -1);
}

static void refusals_while_compressed() {
    context_ptr ctx = compressed(some_params());
    llama_memory_t mem = llama_get_memory(ctx.get());
    const kept_rows rows = all_positions(ctx.get());
    log_text.clear();
    check_refused(!llama_memory_seq_rm(mem, 0, 10, 20), "seq_rm of the middle", "can't be removed");
    check_refused(!llama_memory_seq_rm(mem, 0, 0, 20), "seq_rm of the beginning", "can't be removed");
    check_refused(!llama_memory_seq_rm(mem, 0, N_PROMPT - 5, -1), "seq_rm of an end that was compressed", "can't be removed");
    llama_memory_seq_cp(mem, 0, 1, -1, -1);
    check_refused(llama_memory_seq_pos_max(mem, 1) == -1, "seq_cp", "seq_cp can't be done");
    llama_memory_seq_add(mem, 0, 0, -1, 5);
    check_refused(llama_memory_seq_pos_max(mem, 0) == (llama_pos) N_PROMPT - 1, "seq_add", "seq_add can't be done");
    llama_memory_seq_div(mem, 0, 0, -1, 2);
    check_refused(llama_memory_seq_pos_max(mem, 0) == (llama_pos) N_PROMPT - 1, "seq_div", "seq_div can't be done");
    check(!llama_memory_can_shift(mem), "can_shift says no");
    std::vector<uint8_t> bytes(1 << 20);
    check_refused(llama_state_get_size(ctx.get()) == 0, "the size of a state", "state_write can't be done");
    check_refused(llama_state_get_data(ctx.get(), bytes.data(), bytes.size()) == 0, "saving a state", "state_write can't be done");
    check_refused(llama_state_seq_get_data(ctx.get(), bytes.data(), bytes.size(), 0) == 0, "saving a sequence", "state_write can't be done");
    context_ptr dense = prompted(some_params());
    bytes.resize(llama_state_get_size(dense.get()));
    llama_state_get_data(dense.get(), bytes.data(), bytes.size());
    check_refused(llama_state_set_data(ctx.get(), bytes.data(), bytes.size()) == 0, "loading a state", "state_read");
    check_refused(llama_lava_enable(ctx.get(), some_params()) == -3, "enabling twice", "already");
    llama_set_causal_attn(ctx.get(), false);
    check_refused(decode(ctx.get(), &tokens[N_PROMPT], 1) != 0, "attention that is not causal", "is causal");
    llama_set_causal_attn(ctx.get(), true);
    llama_batch batch = llama_batch_get_one(&tokens[N_PROMPT], 1);  // position and sequence below
    llama_pos pos = N_PROMPT;
    int32_t n_seq = 1;
    llama_seq_id seq = 1, * seqs = &seq;
    batch.pos = &pos;
    batch.n_seq_id = &n_seq;
    batch.seq_id = &seqs;
    check(llama_decode(ctx.get(), batch) != 0, "a token of another sequence is refused");
    log_text.clear();
    check_untouched(ctx.get(), rows, "after all of these");
}

static void refusals_of_parameters() {
    options o;
    context_ptr ctx = open(model.get(), o);
    const auto refused = [&](llama_lava_params p, int32_t result, const char * what, const char * message) {
        log_text.clear();
        check_refused(llama_lava_enable(ctx.get(), p) == result, what, message);
    };
    llama_lava_params p = some_params();
    p.budget = 31;
    refused(p, -1, "a budget below the window", "less than the window");
    p.budget = 35;
    refused(p, -1, "a budget below window and sinks", "less than the window");
    p = some_params(), p.budget = 0, p.ratio = 1.5;
    refused(p, -1, "a ratio above 1", "ratio in (0, 1]");
    p = some_params(), p.window = 0;
    refused(p, -1, "no window", "at least 1");
    p = some_params(), p.compress_above = 80;
    refused(p, -1, "compress_above that is the budget", "more than the budget");
    lava_score_params score = lava_score_params_lava();
    score.pool_kernel = 4;
    p = some_params(), p.score = &score;
    refused(p, -1, "an even pool_kernel", "pool_kernel");
    lava_select_params select = lava_select_params_default();
    select.alpha = 2;
    p = some_params(), p.select = &select;
    refused(p, -1, "alpha of 2", "alpha");
    select = lava_select_params_lava_released();
    refused(p, -1, "an affine floor with one sort over all layers", "head_floor");
    select = lava_select_params_default();
    const uint8_t mask[1024] = {};
    select.protected_mask = mask;
    refused(p, -1, "a mask", "masks");
    p = some_params(), p.layers = LAVA_LAYERS_WEIGHTS;
    refused(p, -1, "layers by weights", "layers must be");
    p = some_params(), p.attn = 9;
    refused(p, -1, "an attention that isn't one", "attn must be");
    check_refused(llama_lava_compress(ctx.get()) == -1, "compressing what isn't enabled", "llama_lava_enable");
    decode(ctx.get(), tokens.data(), 10);
    refused(some_params(), -3, "a cache that isn't empty", "not empty");
    const floats l = logits_after(ctx.get(), &tokens[10], 1);
    context_ptr stock = open(model.get(), o);
    decode(stock.get(), tokens.data(), 10);
    check(identical(l, logits_after(stock.get(), &tokens[10], 1)), "a context that was refused goes on as it was");

    o.n_seq_max = 2;
    ctx = open(model.get(), o);
    refused(some_params(), -2, "two sequences", "more than one sequence");
    o = {};
    o.type_k = GGML_TYPE_Q8_0;
    ctx = open(model.get(), o);
    p = some_params(), p.attn = LLAMA_LAVA_ATTN_RAGGED;
    refused(p, -2, "ragged attention over q8_0", "quantized");
    o = {};
    p = some_params(), p.budget = 31;
    o.lava = &p;
    check_refused(!open(model.get(), o), "a context with parameters that make no sense", "less than the window");
}

static void refusals_of_models(const std::string & path) {
    const struct { const char * arch, * message; } kinds[] = {
        { "cohere2", "sliding-window" }, { "refact", "ALiBi" }, { "mamba", "plain KV cache" },
    };
    for (const auto & kind : kinds) {
        tiny_model other;
        other.n_embd = other.n_head * other.head_dim;
        other.write(path, kind.arch);
        model_ptr unfit = load(path);
        context_ptr ctx = open(unfit.get(), {}), stock = open(unfit.get(), {});
        log_text.clear();
        check_refused(llama_lava_enable(ctx.get(), some_params()) == -2, kind.arch, kind.message);
        decode(ctx.get(), tokens.data(), 100);
        decode(stock.get(), tokens.data(), 100);
        check(identical(steps(ctx.get(), tokens, 100, 4), steps(stock.get(), tokens, 100, 4)), "and the context goes on as stock's");
        const llama_lava_params p = some_params();
        options o;
        o.lava = &p;
        log_text.clear();
        check_refused(!open(unfit.get(), o), "a context of it with llama_context_params.lava", kind.message);
    }
    tiny_model many;  // 90 KV heads: their nodes fit into the graph, but not beside its own
    many.n_layer = 30, many.n_head = 9, many.n_head_kv = 3, many.head_dim = 32;
    many.write(path);
    model_ptr large = load(path);
    context_ptr ctx = open(large.get(), {});
    llama_lava_params p = some_params();
    p.attn = LLAMA_LAVA_ATTN_PER_HEAD;
    log_text.clear();
    check_refused(llama_lava_enable(ctx.get(), p) == -2, "a node per head where the graph has no room for so many", "so many heads");
}

static void not_a_number(const std::string & path) {
    tiny_model other;
    const int32_t bad = 50;
    std::vector<llama_token> prompt(tokens.begin(), tokens.begin() + N_PROMPT);
    std::replace(prompt.begin(), prompt.end(), bad, bad + 1);
    prompt[77] = bad;
    other.write(path, "llama", bad);
    model_ptr broken = load(path);
    const llama_lava_params p = some_params();
    options o;
    o.lava = &p;
    context_ptr ctx = open(broken.get(), o);
    decode(ctx.get(), prompt.data(), (int) N_PROMPT);
    log_text.clear();
    check_refused(llama_lava_compress(ctx.get()) == -2 && !llama_lava_get_info(ctx.get()).compressed, "compressing NaN", "NaN");
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    llama_lava_compress_next(ctx.get());
    check(decode(ctx.get(), prompt.data(), (int) N_PROMPT) == 0 && llama_lava_last_result(ctx.get()) == -2 && llama_lava_get_info(ctx.get()).n_evicted == 0,
          "NaN in a cascade: nothing is evicted from the layer on");
    log_text.clear();
    check(decode(ctx.get(), &tokens[0], 1) == 0 && std::isnan(llama_get_logits_ith(ctx.get(), -1)[0]), "NaN in the cache gives NaN logits, as in stock");
    llama_memory_clear(llama_get_memory(ctx.get()), true);
    prompt[77] = bad + 1;
    llama_lava_compress_next(ctx.get());
    check(decode(ctx.get(), prompt.data(), (int) N_PROMPT) == 0 && llama_lava_last_result(ctx.get()) == 0, "cleared, it works again");
}

static void nothing_to_compress() {
    llama_lava_params p = some_params();
    context_ptr ctx = prompted(p, {}, 32);
    check(llama_lava_compress(ctx.get()) == 1 && !llama_lava_get_info(ctx.get()).compressed, "a prompt no longer than the window stays dense");
    p = some_params(), p.budget = 1000;
    ctx = compressed(p);
    const llama_lava_info info = llama_lava_get_info(ctx.get());
    check(info.compressed && info.n_evicted == 0 && info.n_rows == info.n_rows_dense, "a budget above the prompt packs and evicts nothing");
    p = published(), p.budget = 32;
    ctx = compressed(p);
    bool only_window = true;
    for (const auto & layer : all_positions(ctx.get()))
        for (const auto & head : layer) only_window = only_window && head.size() == 32 && head[0] == (llama_pos) N_PROMPT - 32;
    check(only_window, "a budget that is the window keeps the window");
    const kept_rows window = all_positions(ctx.get());
    check(llama_lava_compress(ctx.get()) == 0 && all_positions(ctx.get()) == window, "and again, with nothing to choose from");
    bool every_length = true;
    for (uint32_t n : { 33u, 35u, 36u, 37u, 100u, 179u, 180u, 200u }) {
        p = some_params(), p.budget = 0, p.ratio = 0.2;
        ctx = compressed(p, {}, n);
        const uint32_t due = std::min(n, std::max(36u, n / 5));
        every_length = every_length && llama_lava_get_info(ctx.get()).n_rows == due * 6;
    }
    check(every_length, "a ratio works at every length: never less than the window and the sinks");
    check(llama_lava_set_budget(ctx.get(), 35, 0) == -1 && llama_lava_set_budget(ctx.get(), 38, 0) == 0 && llama_lava_compress(ctx.get()) == 0 &&
          llama_lava_get_info(ctx.get()).n_rows == 38 * 6, "and a budget set afterwards");
    log_text.clear();
}

static void options_of_the_library() {
    llama_lava_params p = some_params();
    lava_select_params select = lava_select_params_default();
    p.select = &select;
    select.n_sink = 5;
    context_ptr ctx = compressed(p);
    bool sinks = true;
    for (const auto & layer : all_positions(ctx.get()))
        for (const auto & head : layer) sinks = sinks && head[0] == 0 && head[4] == 4;
    check(sinks, "n_sink: every head keeps the first tokens");
    p = some_params(), p.layers = LAVA_LAYERS_EQUAL;
    ctx = compressed(p);
    bool equal = true;
    for (const auto & layer : all_positions(ctx.get())) equal = equal && layer[0].size() + layer[1].size() == 2 * 80;
    check(equal, "LAVA_LAYERS_EQUAL: every layer keeps the budget");
    select.alpha = 1;
    p = some_params(), p.select = &select;
    ctx = compressed(p);
    llama_lava_layer layer = {};
    bool floor = llama_lava_get_layer(ctx.get(), 1, &layer) && layer.evicted_share > 0 && layer.evicted_share < 1 && layer.entropy > 0;
    for (const auto & heads : all_positions(ctx.get()))
        floor = floor && std::max(heads[0].size(), heads[1].size()) - std::min(heads[0].size(), heads[1].size()) <= 1;
    check(floor, "a guaranteed floor with alpha 1: heads of a layer keep as much");
    const kept_rows by_default = all_positions(compressed(some_params()).get());
    lava_score_params score = lava_score_params_default();
    select = lava_select_params_default();
    p.score = &score;
    check(all_positions(compressed(p).get()) == by_default, "the recommended preset by name is what NULL means");
    score = lava_score_params_snapkv();
    check(all_positions(compressed(p).get()) != by_default, "and a score of another paper is another");
    check(!llama_lava_get_layer(ctx.get(), 99, &layer) && llama_lava_n_kept(ctx.get(), 0, 9) == -1, "there is no layer 99 and no head 9");
}

static void going_on() {
    // further prompt chunks, of all sizes, are as one token at a time
    context_ptr one = compressed(some_params());
    const floats want = steps(one.get(), tokens, N_PROMPT, N_MORE);
    const uint32_t n_vocab = tiny.n_vocab;
    const floats last(want.end() - n_vocab, want.end());
    for (uint32_t chunk : { 5u, 33u, N_MORE }) {
        for (llama_lava_attn attn : { LLAMA_LAVA_ATTN_RAGGED, LLAMA_LAVA_ATTN_PADDED, LLAMA_LAVA_ATTN_PER_HEAD }) {
            llama_lava_params p = some_params();
            p.attn = attn;
            context_ptr ctx = compressed(p);
            floats got;
            for (uint32_t i = 0; i < N_MORE; i += chunk) got = logits_after(ctx.get(), &tokens[N_PROMPT + i], (int) std::min(chunk, N_MORE - i));
            const double off = apart(got, last);
            check(off < (attn == LLAMA_LAVA_ATTN_RAGGED ? 1e-4 : 3e-2), "chunks of %2u, attention %d: at most %.1e from one by one", chunk, attn, off);
        }
    }
    options small_ubatch;
    small_ubatch.n_ubatch = 16;
    for (llama_lava_attn attn : { LLAMA_LAVA_ATTN_RAGGED, LLAMA_LAVA_ATTN_PADDED }) {
        llama_lava_params p = some_params();
        p.attn = attn;
        context_ptr ctx = compressed(p, small_ubatch);
        context_ptr by_one = compressed(p, small_ubatch);
        const floats one_by_one = steps(by_one.get(), tokens, N_PROMPT, N_MORE);
        const double off = apart(logits_after(ctx.get(), &tokens[N_PROMPT], (int) N_MORE), floats(one_by_one.end() - n_vocab, one_by_one.end()));
        check(off < (attn == LLAMA_LAVA_ATTN_RAGGED ? 1e-4 : 3e-2), "a chunk of several ubatches, attention %d: at most %.1e", attn, off);
    }
    // a reserve that is full grows, and nobody can tell
    llama_lava_params p = some_params();
    p.n_reserve = 3;
    context_ptr small = compressed(p);
    check(identical(steps(small.get(), tokens, N_PROMPT, N_MORE), want), "a reserve of 3 rows grows: identical logits over %u tokens", N_MORE);
    for (llama_lava_attn attn : { LLAMA_LAVA_ATTN_PADDED, LLAMA_LAVA_ATTN_PER_HEAD }) {
        p.attn = attn;
        small = compressed(p);
        p.n_reserve = 256;
        context_ptr large = compressed(p);
        p.n_reserve = 3;
        check(identical(steps(small.get(), tokens, N_PROMPT, N_MORE), steps(large.get(), tokens, N_PROMPT, N_MORE)), "and with attention %d", attn);
    }
    // removing the end
    llama_memory_t mem = llama_get_memory(one.get());
    check(llama_memory_seq_rm(mem, 0, N_PROMPT + 20, -1) && llama_memory_seq_pos_max(mem, 0) == (llama_pos) N_PROMPT + 19, "the end is removed");
    const floats again = steps(one.get(), tokens, N_PROMPT + 20, N_MORE - 20);
    check(identical(again, floats(want.begin() + 20 * n_vocab, want.end())), "and decoded again to the same logits");
    // the context is full
    options o;
    o.n_ctx = 256;
    context_ptr full = compressed(some_params(), o);
    check(decode(full.get(), &tokens[N_PROMPT], 56) == 0 && decode(full.get(), &tokens[0], 1) == 1, "a full context refuses another token");
    // clear: back to dense
    for (bool by_seq_rm : { false, true }) {
        if (by_seq_rm) check(llama_memory_seq_rm(mem, -1, -1, -1), "everything is removed");
        else llama_memory_clear(mem, true);
        context_ptr stock = open(model.get(), {});
        const llama_lava_info info = llama_lava_get_info(one.get());
        check(!info.compressed && info.n_rows == 0 && identical(logits_after(one.get(), tokens.data(), N_PROMPT), logits_after(stock.get(), tokens.data(), N_PROMPT)),
              "cleared, the cache is dense again: stock's logits");
        check(llama_lava_compress(one.get()) == 0 && identical(steps(one.get(), tokens, N_PROMPT, N_MORE), want), "and compressed again as before");
    }
}

static void state() {
    context_ptr from = prompted(some_params());
    std::vector<uint8_t> bytes(llama_state_get_size(from.get()));
    check(llama_state_get_data(from.get(), bytes.data(), bytes.size()) == bytes.size(), "a dense state is saved");
    options o;
    const llama_lava_params p = some_params();
    o.lava = &p;
    context_ptr to = open(model.get(), o);
    check(llama_state_set_data(to.get(), bytes.data(), bytes.size()) == bytes.size(), "and loaded before compression");
    log_text.clear();
    check_refused(llama_lava_compress(to.get()) == -1 && !llama_lava_get_info(to.get()).compressed, "compressing before a window's queries are known", "is not known");
    check(identical(steps(to.get(), tokens, N_PROMPT, 32), steps(from.get(), tokens, N_PROMPT, 32)), "it goes on dense, with the same logits");
    check(llama_lava_compress(to.get()) == 0 && llama_lava_compress(from.get()) == 0 && all_positions(to.get()) == all_positions(from.get()),
          "after a window of tokens it is compressed, to the same rows");
    context_ptr cut = prompted(p);
    llama_memory_seq_rm(llama_get_memory(cut.get()), 0, N_PROMPT - 10, -1);
    log_text.clear();
    check_refused(llama_lava_compress(cut.get()) == -1, "compressing after the window's end was removed", "is not known");
    steps(cut.get(), tokens, N_PROMPT - 10, 10);
    log_text.clear();
    check(llama_lava_compress(cut.get()) == 0, "and goes once it has been decoded again");
}

static void cascade() {
    for (ggml_type type : { GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_Q8_0 })
        for (bool flash : { true, false })
            for (int layers : { LAVA_LAYERS_GLOBAL, LAVA_LAYERS_ENTROPY, LAVA_LAYERS_EQUAL }) {
                if (type == GGML_TYPE_Q8_0 && !flash) continue;
                options o;
                o.type_k = o.type_v = type;
                o.flash = flash;
                llama_lava_params p = some_params();
                lava_select_params select = lava_select_params_lava_released();
                select.n_sink = 2;
                p.layers = layers;
                if (layers == LAVA_LAYERS_ENTROPY) p.select = &select;
                context_ptr after = compressed(p, o);
                o.lava = &p;
                context_ptr during = open(model.get(), o);
                llama_lava_compress_next(during.get());
                decode(during.get(), tokens.data(), (int) N_PROMPT);
                const llama_lava_info a = llama_lava_get_info(after.get()), d = llama_lava_get_info(during.get());
                check(llama_lava_last_result(during.get()) == 0 && d.compressed && all_positions(during.get()) == all_positions(after.get()) &&
                      identical(steps(during.get(), tokens, N_PROMPT, N_MORE), steps(after.get(), tokens, N_PROMPT, N_MORE)),
                      "%-4s flash %-3s layers %d: compressed while evaluated as at the end, to the bit", ggml_type_name(type), flash ? "on" : "off", layers);
                check(d.kv_bytes_peak < a.kv_bytes_peak && a.kv_bytes_peak >= (size_t) a.n_rows_dense * a.kv_bytes_used / a.n_rows, "and its peak is lower: %zu bytes, not %zu", d.kv_bytes_peak, a.kv_bytes_peak);
            }
    options o;
    llama_lava_params p = some_params();
    o.n_ubatch = 64;
    o.lava = &p;
    context_ptr after = compressed(p, o), next = open(model.get(), o);
    llama_lava_compress_next(next.get());
    check(decode(next.get(), tokens.data(), (int) N_PROMPT) == 0 && llama_lava_last_result(next.get()) == 0 && all_positions(next.get()) == all_positions(after.get()),
          "several ubatches: compressed at their end");
    // positions that don't begin at 0 can't be compressed, in a cascade either
    o.n_ubatch = 512;
    context_ptr late = open(model.get(), o);
    llama_batch batch = llama_batch_init((int) N_PROMPT, 0, 1);
    batch.n_tokens = (int) N_PROMPT;
    for (uint32_t i = 0; i < N_PROMPT; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = (llama_pos) i + 5;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i + 1 == N_PROMPT;
    }
    llama_lava_compress_next(late.get());
    log_text.clear();
    check_refused(llama_decode(late.get(), batch) == 0 && llama_lava_last_result(late.get()) == -1 && !llama_lava_get_info(late.get()).compressed,
                  "compressing positions from 5 on", "without gaps");
    llama_batch_free(batch);
    // an abort in the middle of it loses the prompt, as it does in stock, and nothing else
    static int countdown;
    context_ptr aborted = open(model.get(), o);
    for (int at : { 25, 40, 55 }) {  // of the 61 or so that do something
        countdown = at;
        llama_set_abort_callback(aborted.get(), [](void *) { return countdown-- == 0; }, nullptr);
        llama_lava_compress_next(aborted.get());
        const int result = decode(aborted.get(), tokens.data(), (int) N_PROMPT);
        const bool was_aborted = result == 2 && llama_memory_seq_pos_max(llama_get_memory(aborted.get()), 0) == -1 && !llama_lava_get_info(aborted.get()).compressed;
        llama_set_abort_callback(aborted.get(), nullptr, nullptr);
        const bool ok = decode(aborted.get(), tokens.data(), (int) N_PROMPT) == 0 && llama_lava_last_result(aborted.get()) == 0;
        check(was_aborted && ok && all_positions(aborted.get()) == all_positions(after.get()), "aborted at node %d, then evaluated and compressed all the same", at);
        llama_memory_clear(llama_get_memory(aborted.get()), true);
    }
}

/* Which rows a second compression should keep: scores of each head's own rows in double precision. */
static bool best_rows_kept(const witness & w, const kept_rows & before, const kept_rows & after, uint32_t n_window) {
    const size_t n_new = w.layers.at(0).q.size();
    for (const auto & [il, l] : w.layers) {
        double worst_kept = INFINITY, best_gone = -INFINITY;
        for (uint32_t g = 0; g < l.n_head_kv; g++) {
            const auto & rows = before[(size_t) il][g];
            const size_t n = rows.size() - n_window;
            std::vector<double> score(n);
            double vmax = 0;
            for (size_t i = 0; i < n; i++) {
                double norm = 0;
                for (uint32_t e = 0; e < l.dim; e++) norm += std::fabs((double) l.at(true, g, (uint32_t) rows[i], e));
                vmax = std::max(vmax, norm);
            }
            for (uint32_t h = g * l.n_head / l.n_head_kv; h < (g + 1) * l.n_head / l.n_head_kv; h++) {
                std::vector<double> mean(n);
                for (size_t j = 0; j < n_window; j++) {
                    const float * q = l.q[n_new - n_window + j].data() + (size_t) h * l.dim;
                    std::vector<double> p;
                    double sum = 0;
                    for (size_t i = 0; i < n + j + 1; i++) {
                        double logit = 0;
                        for (uint32_t e = 0; e < l.dim; e++) logit += (double) q[e] * (double) l.at(false, g, (uint32_t) rows[i], e);
                        p.push_back(std::exp(logit / std::sqrt((double) l.dim)));
                        sum += p.back();
                    }
                    for (size_t i = 0; i < n; i++) mean[i] += p[i] / sum / n_window;
                }
                for (size_t i = 0; i < n; i++)
                    for (size_t k = i < 3 ? 0 : i - 3; k <= std::min(i + 3, n - 1); k++) score[i] = std::max(score[i], mean[k] * vmax);
            }
            const auto & kept = after[(size_t) il][g];
            for (size_t i = 0; i < n; i++) {
                if (std::binary_search(kept.begin(), kept.end(), rows[i])) worst_kept = std::min(worst_kept, score[i]);
                else best_gone = std::max(best_gone, score[i]);
            }
        }
        if (best_gone > worst_kept * (1 + 1e-5)) return false;
    }
    return true;
}

static void again() {
    // Stock context whose attention is replaced: what the second compression sees, to be scored by plain loops.
    llama_lava_params p = published();
    p.budget = 80;
    options f32;  // rows without rounding: the two go on from their own
    f32.type_k = f32.type_v = GGML_TYPE_F32;
    context_ptr ctx = compressed(p, f32);
    const kept_rows first = all_positions(ctx.get());
    steps(ctx.get(), tokens, N_PROMPT, N_MORE);
    const kept_rows before = all_positions(ctx.get());
    check(llama_lava_compress(ctx.get()) == 0, "a compressed cache is compressed again");
    const kept_rows after = all_positions(ctx.get());
    llama_lava_layer layer = {};
    for (int il = 0; llama_lava_get_layer(ctx.get(), il, &layer); il++)
        check(layer.mass > 0 && layer.entropy > 0.5 && layer.evicted_share > 0 && layer.evicted_share < 0.5, "layer %d: %.1f%% of a mass of %.2f evicted, entropy %.3f",
              il, 100 * layer.evicted_share, layer.mass, layer.entropy);
    size_t n = 0;
    bool subset = true, window = true;
    for (size_t il = 0; il < after.size(); il++)
        for (size_t ih = 0; ih < after[il].size(); ih++) {
            const auto & a = after[il][ih], & b = before[il][ih];
            n += a.size();
            subset = subset && std::includes(b.begin(), b.end(), a.begin(), a.end());
            window = window && std::equal(a.end() - 32, a.end(), b.end() - 32);
        }
    check(n == (size_t) 80 * tiny.n_layer * tiny.n_head_kv && subset && window, "to %zu rows, the budget's arithmetic, among those there were, the last 32 with them", n);

    witness w;
    options o = f32;
    o.cb = witness::callback;
    o.cb_data = &w;
    context_ptr exact = open(model.get(), o);
    decode(exact.get(), tokens.data(), (int) N_PROMPT);
    w.rows = &first;
    w.n_base = N_PROMPT;
    for (uint32_t i = 0; i < N_MORE; i++) w.n_past = N_PROMPT + i, decode(exact.get(), &tokens[N_PROMPT + i], 1);
    check(best_rows_kept(w, before, after, 32), "those with the highest scores over each head's own rows");
    w.rows = &after;
    w.n_base = N_PROMPT + N_MORE;
    floats want;
    for (uint32_t i = 0; i < 6; i++) {
        w.n_past = w.n_base + i;
        const floats l = logits_after(exact.get(), &tokens[w.n_past], 1);
        want.insert(want.end(), l.begin(), l.end());
    }
    const double off = apart(steps(ctx.get(), tokens, N_PROMPT + N_MORE, 6), want);
    check(off < 1e-4, "and the logits are at most %.1e from double precision over them", off);
    check(!llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, N_PROMPT, -1), "tokens decoded before the second compression stay");
    log_text.clear();

    // by itself, when a limit is passed
    llama_lava_params limit = some_params();
    limit.compress_above = 100;
    context_ptr by_limit = compressed(limit);
    for (uint32_t i = 0; i < 21; i++) decode(by_limit.get(), &tokens[N_PROMPT + i], 1);
    check(llama_lava_get_info(by_limit.get()).n_compress == 1, "20 tokens after a budget of 80 are within compress_above 100");
    const size_t rows_before = llama_lava_get_info(by_limit.get()).n_rows;
    decode(by_limit.get(), &tokens[N_PROMPT + 21], 1);
    const llama_lava_info info = llama_lava_get_info(by_limit.get());
    check(info.n_compress == 2 && info.n_rows == (80 + 1) * 6 && rows_before == 101 * 6, "with the next it compresses first");

    // with the next prompt of a conversation
    context_ptr talk = compressed(p);
    llama_lava_compress_next(talk.get());
    check(decode(talk.get(), &tokens[N_PROMPT], (int) N_MORE) == 0 && llama_lava_last_result(talk.get()) == 0 && llama_lava_get_info(talk.get()).n_compress == 2 &&
          llama_lava_get_info(talk.get()).n_rows == 80 * 6, "the next prompt of a conversation is compressed with what was kept");

    // a prompt in chunks never holds more than the limit and a chunk
    options chunked;
    chunked.lava = &limit;
    context_ptr long_prompt = open(model.get(), chunked);
    uint64_t most = 0;
    for (uint32_t i = 0; i < 300; i += 20) {
        decode(long_prompt.get(), &tokens[i], 20);
        most = std::max(most, llama_lava_get_info(long_prompt.get()).n_rows);
    }
    check(most <= (100 + 20) * 6 && llama_lava_get_info(long_prompt.get()).n_compress > 4, "300 tokens in chunks of 20: at most %d rows per head", (int) (most / 6));

    // quantised rows and padded attention again and again
    for (ggml_type type : { GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_BF16 }) {
        options q;
        q.type_k = q.type_v = type;
        llama_lava_params pp = some_params();
        pp.attn = LLAMA_LAVA_ATTN_PADDED;
        pp.compress_above = 90;
        lava_select_params select = lava_select_params_default();
        select.n_sink = 3;
        select.alpha = 0.9;
        pp.select = &select;
        context_ptr many = compressed(pp, q);
        const floats l = steps(many.get(), tokens, N_PROMPT, N_MORE);
        bool finite = true, sinks = true;
        for (float x : l) finite = finite && std::isfinite(x);
        for (const auto & layer : all_positions(many.get()))
            for (const auto & head : layer) sinks = sinks && head[0] == 0 && head[2] == 2;
        const llama_lava_info i = llama_lava_get_info(many.get());
        check(finite && sinks && i.n_compress >= 5 && i.n_rows <= 91 * 6, "%s: compressed %u times while decoding, sinks and floors kept", ggml_type_name(type), i.n_compress);
    }

    // padding that costs more than the type saves is told
    options q;
    q.type_k = q.type_v = GGML_TYPE_Q8_0;
    for (double ratio : { 0.2, 1.0 }) {
        llama_lava_params pp = llama_lava_default_params();
        pp.ratio = ratio;
        pp.n_reserve = 3;
        log_text.clear();
        context_ptr ctx = compressed(pp, q);
        const bool told = log_text.find("needs no padding") != std::string::npos;
        check(told == (ratio < 1), "q8_0, %.0f%% kept: %s", 100 * ratio, told ? "F16 would be smaller, and that is said" : "smaller than F16");
    }
}

static void unlike_layers(const std::string & path) {
    tiny_model other;
    other.n_head_kv_last = 4;
    other.write(path, "deci");
    model_ptr unlike = load(path);
    for (bool flash : { true, false }) {  // V padded to the widest layer
        options o;
        llama_lava_params p = some_params();
        witness w;
        o.flash = flash;
        o.lava = &p;
        context_ptr ctx = open(unlike.get(), o);
        llama_lava_compress_next(ctx.get());
        decode(ctx.get(), tokens.data(), (int) N_PROMPT);
        const kept_rows rows = all_positions(ctx.get());
        check(llama_lava_last_result(ctx.get()) == 0 && rows[2].size() == 4 && llama_lava_get_info(ctx.get()).n_rows == 80 * 8,
              "flash %-3s layers of 2, 2 and 4 KV heads share a budget", flash ? "on," : "off,");
        context_ptr at_end = open(unlike.get(), o);
        decode(at_end.get(), tokens.data(), (int) N_PROMPT);
        check(llama_lava_compress(at_end.get()) == 0 && all_positions(at_end.get()) == rows, "while evaluated as at the end");
        check(llama_lava_set_budget(at_end.get(), 50, 0) == 0 && llama_lava_compress(at_end.get()) == 0 && llama_lava_get_info(at_end.get()).n_rows == 50 * 8,
              "and compressed again");
        o.lava = nullptr;
        o.cb = witness::callback;
        o.cb_data = &w;
        context_ptr exact = open(unlike.get(), o);
        decode(exact.get(), tokens.data(), (int) N_PROMPT);
        w.rows = &rows;
        w.n_base = w.n_past = N_PROMPT;
        const double off = apart(steps(ctx.get(), tokens, N_PROMPT, 1), steps(exact.get(), tokens, N_PROMPT, 1));
        check(off < 1e-4, "and the logits are at most %.1e from double precision", off);
    }
}

static void threads() {
    for (uint32_t chunk : { 1u, 20u }) {
        floats logits[3];
        kept_rows rows[3];
        for (int i = 0; i < 3; i++) {  // the last: more threads than KV heads
            options o;
            o.n_threads = i + 1;
            o.flash = false;
            o.type_k = o.type_v = GGML_TYPE_F32;
            context_ptr ctx = compressed(some_params(), o);
            rows[i] = all_positions(ctx.get());
            for (uint32_t t = 0; t < 20; t += chunk) {
                const floats l = logits_after(ctx.get(), &tokens[N_PROMPT + t], (int) chunk);
                logits[i].insert(logits[i].end(), l.begin(), l.end());
            }
        }
        for (int i = 1; i < 3; i++)
            check(rows[0] == rows[i] && identical(logits[0], logits[i]), "%d threads are as one, to the bit (chunks of %u)", i + 1, chunk);
    }
}

int main(int argc, char ** argv) {
    const std::string path = std::string(argc > 1 ? argv[1] : ".") + "/behaviour.gguf";
    start();
    tiny.write(path);
    model = load(path);
    tokens = some_tokens(N_PROMPT + 2 * N_MORE, tiny.n_vocab);
    refusals_while_compressed();
    refusals_of_parameters();
    refusals_of_models(path + ".unfit");
    not_a_number(path + ".nan");
    nothing_to_compress();
    options_of_the_library();
    going_on();
    state();
    cascade();
    again();
    unlike_layers(path + ".unlike");
    threads();
    model.reset();
    return n_failed > 0;
}
