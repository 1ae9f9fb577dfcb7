//! What the headers' text says about pointers: each function's parameters, and which of them may be NULL.

use crate::library::root;
use std::sync::OnceLock;

/// A function of the library, as a header declares it.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// Lines of its comment, without the slashes.
    comment: Vec<String>,
    /// Its pointers, in order.
    pub pointers: Vec<String>,
    /// All its parameters.
    parameters: Vec<String>,
}

/// All functions of lava.h, lava_methods.h and lava_ranks.h except the inline ones.
pub fn functions() -> &'static [Function] {
    static FUNCTIONS: OnceLock<Vec<Function>> = OnceLock::new();
    FUNCTIONS.get_or_init(parse)
}

fn parse() -> Vec<Function> {
    let read = |name| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let text = ["lava.h", "lava_methods.h", "lava_ranks.h"].map(read).concat();
    let mut functions = vec![];
    for block in text.split("\n\n") {
        let (comment, code): (Vec<_>, Vec<_>) = block.lines().partition(|line| line.starts_with("///"));
        let code = code.join(" ");
        let Some((head, arguments)) = code.split_once('(').filter(|_| code.ends_with(");")) else { continue };
        let name = head.rsplit([' ', '*']).next().unwrap();
        if head.starts_with("static") || !name.starts_with("lava_") {
            continue;
        }
        let arguments: Vec<_> = arguments.trim_end_matches(");").split(',').map(str::trim).collect();
        let names = |wanted: fn(&str) -> bool| {
            let chosen = arguments.iter().filter(|a| wanted(a) && **a != "void");
            chosen.map(|a| a.rsplit([' ', '*']).next().unwrap().to_owned()).collect()
        };
        functions.push(Function {
            name: name.to_owned(),
            comment: comment.iter().map(|line| line[3..].to_owned()).collect(),
            pointers: names(|a| a.contains('*')),
            parameters: names(|_| true),
        });
    }
    assert!(functions.len() > 25, "{} functions", functions.len());
    functions
}

/// The function of this name.
pub fn function(name: &str) -> &'static Function {
    functions().iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no header has {name}"))
}

impl Function {
    /// Whether all names before a line's colon are parameters: then the rest of the paragraph is about them.
    fn subject<'a>(&self, line: &'a str) -> Option<(Vec<&'a str>, &'a str)> {
        let (names, text) = line.trim().split_once(':')?;
        let names: Vec<_> = names.split(", ").collect();
        names
            .iter()
            .all(|&n| n == "Errors" || self.parameters.iter().any(|p| p == n))
            .then_some((names, text))
    }

    /// What the comment says about a parameter; for one that is "as in" another function, what that function's comment says.
    fn about(&self, parameter: &str) -> String {
        let mut text = String::new();
        let mut inside = false;
        for line in &self.comment {
            match self.subject(line) {
                Some((names, rest)) => {
                    inside = names.contains(&parameter);
                    text += if inside { rest.trim() } else { "" };
                }
                None if inside && !line.trim().is_empty() => text += &format!(" {}", line.trim()),
                None => inside = false,
            }
        }
        match text.split("as in lava_").nth(1).filter(|_| text.starts_with("as in ")) {
            None => text,
            Some(rest) => {
                let other = rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
                function(&format!("lava_{other}")).about(parameter)
            }
        }
    }

    /// Whether NULL is allowed in this place whatever the other arguments are.
    pub fn may_be_null(&self, parameter: &str) -> bool {
        let text = self.about(parameter);
        let allowed = |at: usize| matches!(text[at..].chars().next(), None | Some('.' | ',' | ';' | ':'));
        let words = text.to_ascii_lowercase().find("may be null").map(|at| at + "may be null".len());
        let first = text.starts_with("NULL") && (allowed(4) || text[4..].starts_with(" if "));
        parameter == "error" || first || words.is_some_and(allowed)
    }
}
