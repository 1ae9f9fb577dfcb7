//! include/GUIDE.md: its code is compiled and run, as part of the programs of examples-c, and its table of errors is complete.

use ffi_tests::library::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// Lines without their indentation, of which the guide has less.
fn flat(text: &str) -> String {
    text.lines().map(|line| line.trim().to_owned() + "\n").collect()
}

#[test]
fn its_code_is_that_of_the_examples() {
    let programs: Vec<_> = ["examples-c", "examples-c/cuda"]
        .into_iter()
        .flat_map(|folder| std::fs::read_dir(root().join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "c"))
        .map(|path| flat(&std::fs::read_to_string(path).unwrap()))
        .collect();
    let guide = read("include/GUIDE.md");
    let blocks: Vec<_> =
        guide.split("```c\n").skip(1).map(|rest| flat(rest.split("```").next().unwrap())).collect();
    assert!(blocks.len() > 10, "{} blocks", blocks.len());
    for block in blocks {
        assert!(
            programs.iter().any(|program| program.contains(&block)),
            "in no program of examples-c:\n{block}"
        );
    }
}

#[test]
fn every_status_has_its_row() {
    let header = read("include/lava.h");
    let mut statuses: Vec<_> =
        header.lines().filter_map(|line| line.strip_prefix("#define LAVA_ERR_")?.split(' ').next()).collect();
    let guide = read("include/GUIDE.md");
    let mut rows: Vec<_> =
        guide.lines().filter_map(|line| line.strip_prefix("| `LAVA_ERR_")?.split('`').next()).collect();
    statuses.sort();
    rows.sort();
    assert!(!statuses.is_empty());
    assert_eq!(rows, statuses);
}

/// Every name of ours in the texts exists.
#[test]
fn names_exist() {
    let headers = ["lava.h", "lava_methods.h", "lava_ranks.h", "lava.hpp", "lava_cuda.h", "lava_cuda.hpp"];
    let headers = headers.map(|name| read(&format!("include/{name}"))).concat();
    for text in ["include/GUIDE.md", "README.md", "SECURITY.md", "CONTRIBUTING.md"] {
        for name in read(text).split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let is_ours = name.starts_with("lava_") || name.starts_with("LAVA_");
            assert!(!is_ours || headers.contains(name), "{text}: {name} is not in the headers");
        }
    }
}
