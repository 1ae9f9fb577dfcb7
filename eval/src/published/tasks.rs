//! What is asked of the model: that a text goes on as with the whole cache, that it is summarised and questioned so, that its sentences
//! are remembered word by word, and that facts among text are found again. `ruler.rs` has more of the last kind.
//!
//! Facts are asked for `later`, after eviction only, each by itself or all in turn; or they are `known`: the question is the prompt's end, inside the observation
//! window, and its answer is decoded after eviction. In both the answer is forced, token by token, and right if every one of its
//! tokens is the model's first choice.

use anyhow::{Result, ensure};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

use super::books::{Book, CODE, Half};
use super::gguf::encode;

/// Tokens that a text goes on for, all but the first predicted after eviction.
pub const N_NEXT: usize = 128;
const END_OF_ANSWER: &str = "<|im_end|>\n<|im_start|>user";
/// Tokens of a summary, at most.
pub const N_SUMMARY: usize = 48;
/// Facts in a text.
pub const N_FACTS: usize = 8;

/// A text that goes on.
pub struct GoesOn {
    pub book: &'static str,
    pub prompt: Vec<u32>,
    pub next: Vec<u32>,
}

/// A text that is to be summarised.
pub struct Summary {
    pub book: &'static str,
    pub prompt: Vec<u32>,
    /// Asked after eviction; ends where the summary begins.
    pub question: Vec<u32>,
    /// The token that ends an answer.
    pub end: u32,
}

/// A text with facts in it.
pub struct Facts {
    pub book: &'static str,
    pub prompt: Vec<u32>,
    pub facts: Vec<Fact>,
    /// What stands between an answer and the next question of a dialogue.
    pub between: Vec<u32>,
}

/// A question, and the answer's beginning, which is given, and its end.
pub struct Fact {
    /// Ends where the answer begins.
    pub question: Vec<u32>,
    pub answer: Vec<u32>,
    /// Where in the text the fact stands, from 0 to 1.
    pub depth: f64,
}

/// A stream of its own for each task: 0 text that goes on, 1 facts, 2 code, 3 and more in the order of this file and `ruler.rs`.
pub(super) fn stream(seed: u64, half: Half, task: u64, length: usize, index: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let half = (half == Half::Reporting) as u64;
    rng.set_stream(half << 60 | task << 56 | (length as u64) << 32 | index as u64);
    rng
}

/// A token is four to five characters of English; what is too much is cut.
pub(super) const CHARACTERS: usize = 7;

pub fn goes_on(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<GoesOn> {
    let mut rng = stream(seed, half, if books[0].name == CODE { 2 } else { 0 }, length, index);
    let book = &books[index % books.len()];
    let text = book.passage(&mut rng, half, CHARACTERS * (length + N_NEXT)).join("\n\n");
    let mut prompt = encode(tokenizer, &text)?;
    ensure!(prompt.len() >= length + N_NEXT, "a passage of {} has {} tokens only", book.name, prompt.len());
    prompt.truncate(length + N_NEXT);
    let next = prompt.split_off(length);
    Ok(GoesOn { book: book.name, prompt, next })
}

/// The text that goes on, as a user's, to be summarised.
pub fn summary(tokenizer: &Tokenizer, text: GoesOn) -> Result<Summary> {
    told(tokenizer, text.book, &text.prompt, "Summarise the text in a few sentences.", "The text is about")
}

/// The same, with a question about the word that the text's middle has most of.
pub fn question(tokenizer: &Tokenizer, text: GoesOn) -> Result<Summary> {
    let n = text.prompt.len();
    let middle =
        tokenizer.decode(&text.prompt[n / 3..2 * n / 3], false).map_err(anyhow::Error::from_boxed)?;
    let word = commonest(&middle);
    let ask = format!("What does the text say about \"{word}\"?");
    told(tokenizer, text.book, &text.prompt, &ask, &format!("About {word}, the text says that"))
}

/// The commonest of a text's long words, of equals the first.
fn commonest(text: &str) -> String {
    let long = |word: &&str| word.len() >= 8 && word.chars().all(|c| c.is_ascii_alphabetic());
    let words: Vec<String> = text.split_whitespace().filter(long).map(str::to_ascii_lowercase).collect();
    let count = |word: &String| words.iter().filter(|w| *w == word).count();
    words.iter().rev().max_by_key(|word| count(word)).cloned().unwrap_or_else(|| "something".into())
}

/// What is to be told about a text, of which as much is left out at its end as the words before it take.
pub(super) fn told(
    tokenizer: &Tokenizer,
    book: &'static str,
    text: &[u32],
    ask: &str,
    begin: &str,
) -> Result<Summary> {
    let head = encode(tokenizer, HEAD)?;
    let body = &text[..text.len() - head.len()];
    let question = format!("\n\n{ask}<|im_end|>\n<|im_start|>assistant\n{begin}");
    let end = encode(tokenizer, END_OF_ANSWER)?[0];
    Ok(Summary { book, prompt: [&head, body].concat(), question: encode(tokenizer, &question)?, end })
}

/// What is hidden in a text, and what is asked about it.
pub(super) struct Hidden {
    /// Each gets its own stretch of the text, in this order.
    pub sentences: Vec<String>,
    pub asks: Vec<Ask>,
}

pub(super) struct Ask {
    /// The sentence that has the answer.
    pub sentence: usize,
    pub question: String,
    /// The beginning of the answer, which is given.
    pub given: String,
    pub answer: String,
}

const HEAD: &str = "<|im_start|>user\nRead this text.\n\n";

/// The token ids of a question after the text, and of what is forced.
fn to_fact(tokenizer: &Tokenizer, ask: &Ask, depth: f64) -> Result<Fact> {
    let question = format!("\n\n{}<|im_end|>\n<|im_start|>assistant\n{}", ask.question, ask.given);
    Ok(Fact { question: encode(tokenizer, &question)?, answer: encode(tokenizer, &ask.answer)?, depth })
}

pub fn facts(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<Facts> {
    let rng = stream(seed, half, 1, length, index);
    hide(books, tokenizer, rng, half, (length, index), sentences)
}

/// A passage of a book with sentences in it.
pub(super) fn hide(
    books: &[Book],
    tokenizer: &Tokenizer,
    mut rng: ChaCha8Rng,
    half: Half,
    (length, index): (usize, usize),
    make: fn(&mut ChaCha8Rng) -> Hidden,
) -> Result<Facts> {
    let rng = &mut rng;
    let book = &books[index % books.len()];
    let text = book.passage(rng, half, CHARACTERS * length).join("\n\n");
    let head = encode(tokenizer, HEAD)?;
    let hidden = make(rng);
    let of_sentence = |s: &String| Ok(encode(tokenizer, s)?.len());
    let hidden_len: usize = hidden.sentences.iter().map(of_sentence).sum::<Result<usize>>()?;
    let body = cut(tokenizer, &text, length - head.len() - hidden_len)?;

    // Each between two sentences of its own stretch of the text.
    let ends: Vec<usize> = body.match_indices(". ").map(|(i, _)| i + 1).collect();
    ensure!(!ends.is_empty(), "a passage of {} is one sentence", book.name);
    let mut text = String::new();
    let mut done = 0;
    let mut depths = vec![];
    for (i, sentence) in hidden.sentences.iter().enumerate() {
        let wanted = (i as f64 + rng.random::<f64>()) / hidden.sentences.len() as f64 * body.len() as f64;
        let end = *ends.iter().min_by_key(|&&e| (e as f64 - wanted).abs() as usize).unwrap_or(&0);
        if end > done {
            text.push_str(&body[done..end]);
            done = end;
        }
        depths.push(done as f64 / body.len() as f64);
        text.push_str(sentence);
    }
    text.push_str(&body[done..]);
    let prompt = [head, encode(tokenizer, &text)?].concat();
    let facts = hidden.asks.iter().map(|ask| to_fact(tokenizer, ask, depths[ask.sentence]));
    let facts = facts.collect::<Result<_>>()?;
    Ok(Facts { book: book.name, prompt, facts, between: encode(tokenizer, END_OF_ANSWER)? })
}

/// The text's beginning, so many tokens of it.
fn cut(tokenizer: &Tokenizer, text: &str, n: usize) -> Result<String> {
    let mut tokens = encode(tokenizer, text)?;
    tokens.truncate(n);
    tokenizer.decode(&tokens, false).map_err(anyhow::Error::from_boxed)
}

/// Sentences of a passage with as many first words each, of which the next is to be told: what stands there, nobody has marked.
pub fn cloze(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<Facts> {
    let mut rng = stream(seed, half, 3, length, index);
    let book = &books[index % books.len()];
    let text = book.passage(&mut rng, half, CHARACTERS * length).join("\n\n");
    let head = encode(tokenizer, HEAD)?;
    let body = cut(tokenizer, &text, length - head.len())?;
    let prompt = [head, encode(tokenizer, &body)?].concat();
    let mut found = openings(&body);
    found.shuffle(&mut rng);
    found.truncate(N_FACTS);
    found.sort_by_key(|(at, ..)| *at);
    let facts = found.into_iter().map(|(at, opening, answer)| {
        // Quoted whole, it would be the question's quotation mark that comes next.
        let first: Vec<&str> = opening.split(' ').take(N_NAMED).collect();
        let question = format!("Repeat the sentence of the text that begins with \"{}\".", first.join(" "));
        let ask = Ask { sentence: 0, question, given: format!("\"{opening}"), answer: format!(" {answer}") };
        to_fact(tokenizer, &ask, at as f64 / body.len() as f64)
    });
    let facts = facts.collect::<Result<_>>()?;
    Ok(Facts { book: book.name, prompt, facts, between: encode(tokenizer, END_OF_ANSWER)? })
}

/// Words of a sentence that are given, and how many of these the question has.
const N_QUOTED: usize = 8;
const N_NAMED: usize = 3;

/// Where each sentence stands, its first words, and the next one: long, and none of the first.
fn openings(body: &str) -> Vec<(usize, &str, &str)> {
    let starts = body.match_indices(". ").map(|(i, _)| i + 2);
    let opening = |at: usize| {
        let sentence = body[at..].split(['.', '\n', '"']).next()?;
        let words: Vec<&str> = sentence.split(' ').take(N_QUOTED + 2).collect();
        let &[.., last, next, _] = &words[..] else { return None };
        let quoted = &sentence[..last.as_ptr() as usize + last.len() - sentence.as_ptr() as usize];
        let is_word = next.len() >= 5 && next.chars().all(|c| c.is_ascii_alphabetic());
        let fits = words.len() == N_QUOTED + 2 && is_word && !quoted.contains(next);
        fits.then_some((at, quoted, next))
    };
    starts.filter_map(opening).collect()
}

/// Codes of things and birthplaces of people, each once, in random order.
fn sentences(rng: &mut ChaCha8Rng) -> Hidden {
    let codes = things(rng, N_FACTS / 2).into_iter().map(|thing| {
        let code = code(rng);
        let sentence = format!(" The secret code of the {thing} is {code}.");
        let ask = Ask {
            sentence: 0,
            question: format!("What is the secret code of the {thing}?"),
            given: format!("The secret code of the {thing} is"),
            answer: format!(" {code}"),
        };
        (sentence, ask)
    });
    let mut made: Vec<(String, Ask)> = codes.collect();
    let people: Vec<&str> = PEOPLE.choose_multiple(rng, N_FACTS - N_FACTS / 2).copied().collect();
    let cities: Vec<&str> = CITIES.choose_multiple(rng, people.len()).copied().collect();
    made.extend(people.iter().zip(cities).map(|(person, city)| {
        let sentence = format!(" {person} was born in the city of {city}.");
        let ask = Ask {
            sentence: 0,
            question: format!("In which city was {person} born?"),
            given: format!("{person} was born in the city of"),
            answer: format!(" {city}"),
        };
        (sentence, ask)
    }));
    made.shuffle(rng);
    made.iter_mut().enumerate().for_each(|(i, (_, ask))| ask.sentence = i);
    let (sentences, asks) = made.into_iter().unzip();
    Hidden { sentences, asks }
}

/// Unlike things.
pub(super) fn things(rng: &mut ChaCha8Rng, n: usize) -> Vec<String> {
    let all: Vec<String> =
        COLOURS.iter().flat_map(|c| THINGS.iter().map(move |t| format!("{c} {t}"))).collect();
    all.choose_multiple(rng, n).cloned().collect()
}

pub(super) fn code(rng: &mut ChaCha8Rng) -> String {
    (0..4).map(|_| rng.random_range('0'..='9')).collect()
}

const COLOURS: [&str; 8] = ["red", "blue", "green", "yellow", "white", "black", "silver", "brown"];
const THINGS: [&str; 10] =
    ["cabin", "vault", "gate", "tower", "safe", "garage", "bridge", "cellar", "office", "boat"];
pub(super) const PEOPLE: [&str; 16] = [
    "Anna", "Bernard", "Clara", "Dmitri", "Eleanor", "Felix", "Gloria", "Hassan", "Ingrid", "James", "Laura",
    "Martin", "Olivia", "Robert", "Sofia", "Victor",
];
const CITIES: [&str; 16] = [
    "Berlin", "London", "Paris", "Rome", "Madrid", "Moscow", "Tokyo", "Chicago", "Boston", "Cairo", "Vienna",
    "Dublin", "Sydney", "Toronto", "Mumbai", "Lisbon",
];
