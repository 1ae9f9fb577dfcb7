//! English text, and code. Settings are chosen on the first half of each book and reported on the second: no passage is in both.

use std::path::Path;

use anyhow::{Context, Result};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What texts are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Settings may be chosen by them.
    Choosing,
    /// Only the reported table is made of them.
    Reporting,
}

/// The name of the book that is code.
pub const CODE: &str = "networkx";

pub struct Book {
    pub name: &'static str,
    paragraphs: Vec<String>,
}

impl Book {
    /// All books under the folder that `eval/fetch.sh` fills.
    pub fn all(folder: &Path) -> Result<Vec<Self>> {
        let jargon = std::fs::read_to_string(folder.join("jargon.txt"))
            .context("the texts are not there: run eval/fetch.sh, which `make eval` does")?;
        let jargon = jargon.split("\n\n").map(plain).filter(|p| is_prose(p)).collect();
        Ok(vec![
            Self { name: "anarchism", paragraphs: pages(&folder.join("anarchism"), "sec")? },
            Self { name: "handbook", paragraphs: pages(&folder.join("handbook"), "")? },
            Self { name: "jargon", paragraphs: jargon },
        ])
    }

    /// Python, as a book whose paragraphs are what empty lines part.
    pub fn code(folder: &Path) -> Result<Vec<Self>> {
        let mut paths = vec![];
        sources(&folder.join("networkx"), &mut paths)
            .context("the code is not there: run eval/fetch.sh, which `make eval` does")?;
        paths.sort();
        let mut paragraphs = vec![];
        for path in paths {
            let text = std::fs::read_to_string(&path)?;
            let blocks = text.split("\n\n").map(|block| block.trim_matches('\n').to_string());
            paragraphs.extend(blocks.filter(|block| !block.is_empty()));
        }
        Ok(vec![Self { name: CODE, paragraphs }])
    }

    /// Whole paragraphs from a random one on, at least so many characters.
    pub fn passage(&self, rng: &mut ChaCha8Rng, half: Half, characters: usize) -> Vec<&str> {
        let middle = self.paragraphs.len() / 2;
        let own = match half {
            Half::Choosing => &self.paragraphs[..middle],
            Half::Reporting => &self.paragraphs[middle..],
        };
        let mut left = characters;
        let last = own.iter().rposition(|p| {
            left = left.saturating_sub(p.len());
            left == 0
        });
        let first = rng.random_range(0..=last.expect("a book shorter than a text"));
        let mut n = 0;
        let take = own[first..].iter().take_while(|p| {
            let more = n < characters;
            n += p.len();
            more
        });
        take.map(String::as_str).collect()
    }
}

/// All Python files under a folder, tests left out.
fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "py") {
            found.push(path);
        }
    }
    Ok(())
}

/// Paragraphs of all pages of a book whose names begin so, in the order of their names.
fn pages(folder: &Path, begin: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths: Vec<_> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    paths.sort();
    let mut paragraphs = vec![];
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(begin) && name.ends_with(".html") {
            let bytes = std::fs::read(&path)?;
            paragraphs.extend(paragraphs_of(&String::from_utf8_lossy(&bytes)));
        }
    }
    Ok(paragraphs)
}

/// The text of a page's paragraphs, which DocBook's stylesheets write as divisions. Menus, headings and listings are left out.
fn paragraphs_of(html: &str) -> Vec<String> {
    let html = &html.replace("<div class=\"para\">", "<p>");
    let lower = html.to_ascii_lowercase();
    let mut found = vec![];
    let mut at = 0;
    while let Some(start) = lower[at..].find("<p") {
        let start = at + start;
        at = start + 2;
        // <pre>, <param> and the like begin so too.
        if !matches!(lower.as_bytes().get(at), Some(b'>' | b' ' | b'\n')) {
            continue;
        }
        let Some(open) = lower[at..].find('>') else { break };
        let from = at + open + 1;
        let ends =
            ["</p", "<p>", "<p ", "<pre", "<h1", "<h2", "<h3", "<h4", "<ul", "<ol", "<table", "</div", "<hr"];
        let end =
            ends.iter().filter_map(|tag| lower[from..].find(tag)).min().map_or(html.len(), |e| from + e);
        let text = plain(&without_tags(&html[from..end]));
        if is_prose(&text) {
            found.push(text);
        }
        at = end.max(at);
    }
    found
}

fn without_tags(html: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for c in html.chars() {
        match c {
            '<' => inside = true,
            '>' if inside => inside = false,
            c if !inside => text.push(c),
            _ => {}
        }
    }
    let entities =
        [("&nbsp;", " "), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    entities.iter().fold(text, |t, (from, to)| t.replace(from, to))
}

/// One line, single spaces.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whole sentences, not a heading or an entry of a table of contents.
fn is_prose(paragraph: &str) -> bool {
    paragraph.len() >= 80 && paragraph.ends_with(['.', '!', '?', ':', '"', '\'', ')', '”'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_text_without_tags_headings_and_listings() {
        let long = "a sentence that is long enough to be taken for prose, ".repeat(2);
        let html = format!(
            "<H1>Title</H1><P class=x>One &amp; <b>all</b>:\n {long}end.</P><pre>code {long}.</pre><p>short.</p>\
             <div class=\"para\">\n{long}too.\n</div>"
        );
        assert_eq!(paragraphs_of(&html), vec![format!("One & all: {long}end."), format!("{long}too.")]);
    }

    #[test]
    fn halves_have_nothing_in_common() {
        use rand::SeedableRng;
        let paragraphs = (0..100).map(|i| format!("paragraph number {i:03}")).collect();
        let book = Book { name: "b", paragraphs };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..50 {
            let chosen = book.passage(&mut rng, Half::Choosing, 200);
            let reported = book.passage(&mut rng, Half::Reporting, 200);
            assert!(chosen.iter().map(|p| p.len()).sum::<usize>() >= 200);
            assert!(chosen.iter().all(|p| *p < "paragraph number 050"));
            assert!(reported.iter().all(|p| *p >= "paragraph number 050"));
        }
    }
}
