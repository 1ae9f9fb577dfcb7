//! Each header compiles alone in every language it is for, and C's layouts are the bindings' layouts.

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
    assert!(n >= 3, "gcc and lava.h at the least");
}

/// Prints what C makes of a struct, and what the bindings make of it, field by field.
macro_rules! layouts {
    ($($type:ident { $($field:ident),* })*) => {{
        let mut program = String::from("#include <lava.h>\n#include <stdio.h>\nint main(void) {\n");
        let mut bindings = String::new();
        let mut line = |what: &str, c: &str, rust: usize| {
            program += &format!("printf(\"{what} %zu\\n\", {c});\n");
            bindings += &format!("{what} {rust}\n");
        };
        $(
            let name = stringify!($type);
            line(&format!("sizeof {name}"), &format!("sizeof({name})"), size_of::<$type>());
            // Fails to compile where a field was added and is not listed here.
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
        lava_shape { struct_size, layer, n_tokens, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window }
        lava_error { struct_size, status, layer, head, argument, message }
        lava_score_params {
            struct_size, pool, pool_kernel, group_reduce, value_span, sliding_window, scale, softcap, attention,
            value_weight, gamma, decay, weight, smoothing
        }
        lava_tensor { struct_size, dtype, data, size, stride_token, stride_head, stride_dim, row_start }
        lava_select_params {
            struct_size, head_floor, alpha, protected_mask, n_sink, head_min, head_weights, layer_budgets, evict_every
        }
        lava_selection { struct_size, everything_kept, n_kept, budget, mass, evicted_share }
        lava_cascade_layer {
            struct_size, unchanged, kept_indices, cu_kept, rows, cu_rows, budget, entropy, mass, evicted_share
        }
        lava_attend_params {
            struct_size, causal, scale, softcap, sliding_window, n_base, kept_indices, cu_kept
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
    let lava_shape { struct_size, layer, n_tokens, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window } =
        shape;
    assert_eq!([n_tokens, n_q_heads, n_kv_heads, head_dim_k, head_dim_v, window], [1, 2, 3, 4, 5, 6]);
    assert_eq!((struct_size as usize, layer), (size_of::<lava_shape>(), 0));
    let (paper, released) = unsafe { (lava_select_params_paper(), lava_select_params_released()) };
    assert_eq!(
        (paper.head_floor, released.head_floor, released.alpha),
        (LAVA_FLOOR_NONE, LAVA_FLOOR_AFFINE, 0.2)
    );
    assert_eq!(select_params().head_floor, LAVA_FLOOR_NONE);
    assert_eq!((score_params().pool, score_params().pool_kernel), (LAVA_POOL_MAX, 7));
    assert_eq!(attend_params().causal, 1);
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
