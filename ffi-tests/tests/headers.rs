//! Each header compiles alone in every language it is for, and C's layouts are the bindings' layouts.

use ffi_tests::header::{function, functions};
use ffi_tests::library::{has, root, run, scratch};
use ffi_tests::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Headers with this ending.
fn headers(ending: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(root().join("include")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == ending)).collect()
}

fn compile(compiler: &str, language: &str, standard: &str, source: &Path) -> Command {
    let mut command = Command::new(compiler);
    command.args([
        "-x",
        language,
        &format!("-std={standard}"),
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        "-I",
    ]);
    command.arg(root().join("include")).arg(source);
    command
}

#[test]
fn each_header_compiles_alone() {
    let folder = scratch("headers");
    let mut n = 0;
    let c_and_cpp: &[_] = &[("c", "c99"), ("c", "c11"), ("c++", "c++17")];
    for (ending, languages) in [("h", c_and_cpp), ("hpp", &c_and_cpp[2..])] {
        for header in headers(ending) {
            // Twice, to see that it is guarded.
            let name = header.file_name().unwrap().to_str().unwrap();
            let source = folder.join("alone.c");
            let text = format!("#include <{name}>\n#include <{name}>\nint main(void) {{ return 0; }}\n");
            std::fs::write(&source, text).unwrap();
            for (language, standard) in languages {
                for compiler in ["gcc", "clang"].into_iter().filter(|c| has(c)) {
                    run(compile(compiler, language, standard, &source).arg("-fsyntax-only"));
                    n += 1;
                }
            }
        }
    }
    assert!(n >= 3, "at least gcc and lava.h");
}

/// Prints what C makes of a struct, and what the bindings make of it, field by field.
macro_rules! layouts {
    ($($type:ident { $($field:ident),* })*) => {{
        let mut program = String::from("#include <lava_ranks.h>\n#include <stdio.h>\nint main(void) {\n");
        let mut bindings = String::new();
        let mut line = |what: &str, c: &str, rust: usize| {
            program += &format!("printf(\"{what} %zu\\n\", {c});\n");
            bindings += &format!("{what} {rust}\n");
        };
        $(
            let name = stringify!($type);
            line(&format!("sizeof {name}"), &format!("sizeof({name})"), size_of::<$type>());
            // Fails to compile if a field was added and is not listed here.
            let _ = |whole: $type| { let $type { $($field: _),* } = whole; };
            $(
                let field = concat!(stringify!($type), ", ", stringify!($field));
                line(field, &format!("offsetof({field})"), std::mem::offset_of!($type, $field));
            )*
        )*
        (program + "return 0;\n}\n", bindings)
    }};
}

#[test]
fn layouts_in_c_are_those_of_the_bindings() {
    let (program, bindings) = layouts! {
        lava_shape {
            struct_size, layer, n_tokens, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window, sliding_window, reserved,
            cu_rows, positions
        }
        lava_error { struct_size, status, layer, head, argument, message }
        lava_score_params {
            struct_size, attention, value_weight, pool, pool_kernel, group_reduce, value_span, lse_base, backend, scale,
            softcap, gamma, decay, weight, smoothing, reserved, sink_logits, query_head_weights
        }
        lava_tensor { struct_size, dtype, data, size, stride_token, stride_head, stride_dim, row_start }
        lava_select_params {
            struct_size, head_floor, alpha, protected_mask, n_sink, head_min, head_weights
        }
        lava_selection { struct_size, everything_kept, n_kept, n_entries, mass, evicted_share }
        lava_cascade_params { struct_size, layers, evict_every, reserved }
        lava_cascade_layer {
            struct_size, unchanged, kept_indices, cu_kept, rows, cu_rows, n_entries, entropy, mass, evicted_share
        }
        lava_attend_params {
            struct_size, causal, scale, softcap, n_base, lse_base, backend, reserved, kept_indices, cu_kept, sink_logits
        }
        lava_rank {
            struct_size, n_layers, n_shapes, layers, total, more_layers, reserved, shapes, n_kv_heads, first_head, scores,
            params, weights
        }
    };
    let folder = scratch("layouts");
    let (source, binary) = (folder.join("layouts.c"), folder.join("layouts"));
    std::fs::write(&source, program).unwrap();
    run(compile("gcc", "c", "c11", &source).arg("-o").arg(&binary));
    assert_eq!(run(&mut Command::new(binary)), bindings);
}

/// What the inline functions set, and that all else is zero.
#[test]
fn initialised_structs() {
    let shape = shape(1, (2, 3), (4, 5), 6);
    let lava_shape {
        struct_size,
        layer,
        n_tokens,
        n_q_heads,
        n_kv_heads,
        head_dim_k,
        head_dim_v,
        window,
        sliding_window,
        reserved,
        cu_rows,
        positions,
    } = shape;
    assert_eq!([n_tokens, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window], [1, 2, 3, 4, 5, 6]);
    assert_eq!((struct_size as usize, layer, sliding_window, reserved), (size_of::<lava_shape>(), 0, 0, 0));
    assert!(cu_rows.is_null() && positions.is_null());
    // Fields that mean nothing yet, and pointers that are NULL.
    let (scoring, attending) = (score_params(), attend_params());
    assert!(scoring.sink_logits.is_null() && attending.sink_logits.is_null());
    assert!(scoring.query_head_weights.is_null());
    assert_eq!((scoring.reserved, cascade_params().reserved, attending.reserved), (0, 0, 0));
    assert_eq!((scoring.backend, attending.backend), (LAVA_BACKEND_BEST, LAVA_BACKEND_BEST));
    assert_eq!((scoring.lse_base, attending.lse_base), (LAVA_LSE_NATURAL, LAVA_LSE_NATURAL));
    let selecting = select_params();
    assert!(selecting.protected_mask.is_null() && selecting.head_weights.is_null());
    let sizes =
        [scoring.struct_size, selecting.struct_size, cascade_params().struct_size, attending.struct_size];
    assert_eq!(sizes, [80, 40, 16, 56]);
    let reports = unsafe { (lava_selection_init(), lava_cascade_layer_init(), lava_error_init()) };
    assert_eq!([reports.0.struct_size, reports.1.struct_size, reports.2.struct_size], [40, 72, 32]);
    let (shapes, counts, scores) = ([shape; 2], [3u32, 3, 0, 1], [0f32; 1]);
    let rank = unsafe { lava_rank_init(2, &shapes[0], &counts[0], &counts[2], &scores[0], 9) };
    assert_eq!((rank.struct_size, rank.n_layers, rank.n_shapes, rank.total), (80, 2, 2, 9));
    assert_eq!((rank.layers, rank.more_layers, rank.reserved), (LAVA_LAYERS_GLOBAL, 0, 0));
    assert_eq!((rank.shapes, rank.scores), (shapes.as_ptr(), scores.as_ptr()));
    assert_eq!((rank.n_kv_heads, rank.first_head), (&raw const counts[0], &raw const counts[2]));
    assert!(rank.params.is_null() && rank.weights.is_null());
    let mut start = [0u32, 3];
    let data = start.as_mut_ptr() as *mut std::ffi::c_void;
    let strides = |t: lava_tensor| [t.stride_token, t.stride_head, t.stride_dim];
    unsafe {
        assert_eq!(strides(lava_tensor_token_major(LAVA_F16, data, 8, 3, 5)), [15, 5, 1]);
        assert_eq!(strides(lava_tensor_head_major(LAVA_F16, data, 8, 7, 5)), [5, 35, 1]);
        let ragged = lava_tensor_ragged(LAVA_BF16, data, 8, start.as_ptr(), 5);
        assert_eq!(strides(ragged), [5, 0, 1]);
        assert_eq!((ragged.row_start, ragged.dtype, ragged.size), (start.as_ptr(), LAVA_BF16, 8));
    }
}

/// How many scores a layer has, as the header itself counts them.
#[test]
fn scores_are_counted_by_the_header() {
    let dense = shape(100, (6, 3), (4, 4), 8);
    assert_eq!(n_scores(&dense), 3 * 92);
    assert_eq!(n_scores(&shape(5, (6, 3), (4, 4), 8)), 0);
    assert_eq!(n_scores(&no_layer()), 0);
    let rows = Rows::new(&[vec![0, 5, 98, 99], vec![98, 99], vec![1, 2, 3, 98, 99]]);
    assert_eq!(n_scores(&rows.of(shape(100, (6, 3), (4, 4), 2))), 5);
    // More than 32 bits hold.
    assert_eq!(n_scores(&shape(u32::MAX as usize, (4, 4), (4, 4), 1)), 4 * (u32::MAX as usize - 1));
}

/// lava.h is what an integrator reads first.
#[test]
fn the_header_is_read_in_twenty_minutes() {
    let text = std::fs::read_to_string(root().join("include/lava.h")).unwrap();
    let n = text.lines().count();
    assert!(n < 900, "{n} lines: what other papers' methods need belongs in lava_methods.h");
}

/// Three questions that the header answers by itself: how one gets the recommended preset, what a budget counts, what may be NULL.
#[test]
fn the_header_answers() {
    let text = std::fs::read_to_string(root().join("include/lava.h")).unwrap();
    let top = text.split("#ifndef").next().unwrap().replace("\n *", "");
    let top = top.split_whitespace().collect::<Vec<_>>().join(" ");
    for answer in [
        "The recommended preset is what NULL in the place of any params means, and what the functions lava_*_params_default give",
        "\"Budget\" is what a person sets: average tokens per KV head per layer, window included",
        "NULL is allowed where a comment says so: always for params, error, and optional outputs",
    ] {
        assert!(top.contains(answer), "the top of lava.h does not say: {answer}");
    }
    // Each kind of params has its recommended preset, and says so where it is declared.
    for kind in ["score", "select", "cascade", "attend"] {
        let preset = format!("static inline lava_{kind}_params lava_{kind}_params_default(void)");
        assert!(text.contains(&preset), "{preset}");
        let comment = text.split(&format!("typedef struct lava_{kind}_params")).next().unwrap();
        let comment = &comment[comment.rfind("\n\n").unwrap()..];
        assert!(comment.contains("NULL in its place"), "{comment}");
    }
    // "Always for params, error": the functions' own comments agree. status.rs tries each pointer of each function.
    for f in functions() {
        for pointer in &f.pointers {
            let always = pointer == "error" || pointer == "params" || pointer == "cascade";
            assert!(
                !always || f.may_be_null(pointer),
                "{}: {pointer} is always optional, but the comment is silent",
                f.name
            );
        }
    }
    // What is optional beside these, in full.
    let mut optional = vec![];
    for f in functions() {
        let others = f.pointers.iter().filter(|p| !["error", "params", "cascade"].contains(&p.as_str()));
        optional.extend(others.filter(|p| f.may_be_null(p)).map(|p| format!("{} {p}", f.name)));
    }
    optional.sort();
    let want = [
        "lava_attend lse",
        "lava_attention_stats lse",
        "lava_cascade_push weight",
        "lava_compact cu_rows",
        "lava_entropy mass",
        "lava_raise most",
        "lava_ranks_entries entropies",
        "lava_ranks_entries layer_entries",
        "lava_score lse",
        "lava_score_expected covariance",
        "lava_select rows",
        "lava_select selection",
        "lava_value_norms centre",
        "lava_value_norms gram",
    ];
    assert_eq!(optional, want);
    assert!(!function("lava_score").may_be_null("v"), "only without a value weight");
}

/// status.rs has a world for every function that can fail, so that each of its pointers is tried.
#[test]
fn every_function_is_tried() {
    let tests = include_str!("status.rs");
    for f in functions().iter().filter(|f| !f.pointers.is_empty()) {
        assert!(tests.contains(&format!("\"{}\"", f.name)), "status.rs has no {}", f.name);
    }
}
