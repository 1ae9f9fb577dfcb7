//! The headers are what cbindgen makes of `src/ffi` today. `UPDATE_HEADER=1` rewrites them.

use std::path::Path;

/// cbindgen's text as a person would set it: constants of one family together, prototypes within the line.
fn tidy(header: &str) -> String {
    let blocks: Vec<String> = header.split("\n\n").map(prototype_wrapped).collect();
    let is_constant =
        |block: &str| block.lines().all(|l| l.starts_with("///") || l.starts_with("#define LAVA_"));
    let family = |block: &str| {
        let name = block.lines().last().and_then(|l| l.strip_prefix("#define LAVA_")).unwrap_or_default();
        name.split(['_', ' ']).next().unwrap_or_default().to_owned()
    };
    let mut tidy = String::new();
    for (i, block) in blocks.iter().enumerate() {
        tidy += block;
        let next = blocks.get(i + 1);
        let together =
            next.is_some_and(|n| is_constant(block) && is_constant(n) && family(block) == family(n));
        tidy += if next.is_none() {
            ""
        } else if together {
            "\n"
        } else {
            "\n\n"
        };
    }
    tidy
}

/// A block that ends in a long prototype, with the prototype broken between arguments.
fn prototype_wrapped(block: &str) -> String {
    const WIDTH: usize = 120;
    let (comment, last) = block.rsplit_once('\n').map_or(("", block), |(comment, last)| (comment, last));
    if !last.starts_with("lava_status lava_") {
        return block.to_owned();
    }
    // The structs have typedefs.
    let last = last.replace("struct lava_", "lava_");
    let mut lines = vec![String::new()];
    for argument in last.split_inclusive(", ") {
        let line = lines.last_mut().expect("there is a first line");
        if line.len() + argument.trim_end().len() > WIDTH {
            *line = line.trim_end().to_owned();
            lines.push(format!("    {argument}"));
        } else {
            *line += argument;
        }
    }
    format!("{comment}{}{}", if comment.is_empty() { "" } else { "\n" }, lines.join("\n"))
}

#[track_caller]
fn is_fresh(header: &str, config: &str, sources: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("include").join(config)).expect(config);
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = sources.iter().fold(builder, |b, source| b.with_src(root.join("src/ffi").join(source)));
    let mut made = Vec::new();
    builder.generate().expect("cbindgen reads src/ffi").write(&mut made);
    let made = tidy(&String::from_utf8(made).expect("a header is text"));
    let path = root.join("include").join(header);
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("include/ is writable");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "include/{header} is stale: run `UPDATE_HEADER=1 cargo test --test header`");
}

#[test]
fn lava_h() {
    is_fresh(
        "lava.h",
        "cbindgen.toml",
        &[
            "types.rs",
            "library.rs",
            "budgets.rs",
            "score.rs",
            "select.rs",
            "compact.rs",
            "cascade.rs",
            "attend.rs",
        ],
    );
}

#[test]
fn lava_methods_h() {
    is_fresh("lava_methods.h", "cbindgen_methods.toml", &["methods.rs", "adjust.rs", "keys.rs"]);
}

#[test]
fn lava_ranks_h() {
    is_fresh("lava_ranks.h", "cbindgen_ranks.toml", &["ranks.rs"]);
}

#[test]
fn lava_cuda_h() {
    is_fresh(
        "lava_cuda.h",
        "cbindgen_cuda.toml",
        &[
            "cuda/context.rs",
            "cuda/score.rs",
            "cuda/stats.rs",
            "cuda/budgets.rs",
            "cuda/select.rs",
            "cuda/cascade.rs",
            "cuda/compact.rs",
            "cuda/attend.rs",
        ],
    );
}
