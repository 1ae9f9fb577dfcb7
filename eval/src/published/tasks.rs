//! What is asked of the model: that a text goes on as with the whole cache, that it is summarised so, and that facts among text are
//! found again.
//!
//! Facts are asked for `later`, after eviction only, each by itself or all in turn; or they are `known`: the question is the prompt's end, inside the observation
//! window, and its answer is decoded after eviction. In both the answer is forced, token by token, and right if every one of its
//! tokens is the model's first choice.

use anyhow::{Result, ensure};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

use super::books::{Book, Half};
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

fn stream(seed: u64, half: Half, task: u64, length: usize, index: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let half = (half == Half::Reporting) as u64;
    rng.set_stream(half << 60 | task << 56 | (length as u64) << 32 | index as u64);
    rng
}

/// A token is four to five characters of English; what is too much is cut.
const CHARACTERS: usize = 7;

pub fn goes_on(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<GoesOn> {
    let mut rng = stream(seed, half, 0, length, index);
    let book = &books[index % books.len()];
    let text = book.passage(&mut rng, half, CHARACTERS * (length + N_NEXT)).join("\n\n");
    let mut prompt = encode(tokenizer, &text)?;
    ensure!(prompt.len() >= length + N_NEXT, "a passage of {} has {} tokens only", book.name, prompt.len());
    prompt.truncate(length + N_NEXT);
    let next = prompt.split_off(length);
    Ok(GoesOn { book: book.name, prompt, next })
}

/// The text that goes on, as a user's.
pub fn summary(tokenizer: &Tokenizer, text: GoesOn) -> Result<Summary> {
    let head = encode(tokenizer, "<|im_start|>user\nRead this text.\n\n")?;
    let body = &text.prompt[..text.prompt.len() - head.len()];
    let ask =
        "\n\nSummarise the text in a few sentences.<|im_end|>\n<|im_start|>assistant\nThe text is about";
    let end = encode(tokenizer, END_OF_ANSWER)?[0];
    Ok(Summary { book: text.book, prompt: [&head, body].concat(), question: encode(tokenizer, ask)?, end })
}

pub fn facts(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<Facts> {
    let mut rng = stream(seed, half, 1, length, index);
    let book = &books[index % books.len()];
    let text = book.passage(&mut rng, half, CHARACTERS * length).join("\n\n");
    let head = encode(tokenizer, "<|im_start|>user\nRead this text.\n\n")?;
    let made = sentences(&mut rng);
    let facts_len: usize =
        made.iter().map(|f| Ok(encode(tokenizer, &f.sentence)?.len())).sum::<Result<usize>>()?;
    let mut body = encode(tokenizer, &text)?;
    body.truncate(length - head.len() - facts_len);
    let body: Vec<u32> = body.to_vec();
    let body = tokenizer.decode(&body, false).map_err(anyhow::Error::from_boxed)?;

    // Each between two sentences of its own stretch of the text.
    let ends: Vec<usize> = body.match_indices(". ").map(|(i, _)| i + 1).collect();
    ensure!(!ends.is_empty(), "a passage of {} is one sentence", book.name);
    let mut text = String::new();
    let mut done = 0;
    let mut depths = vec![];
    for (i, fact) in made.iter().enumerate() {
        let wanted = (i as f64 + rng.random::<f64>()) / N_FACTS as f64 * body.len() as f64;
        let end = *ends.iter().min_by_key(|&&e| (e as f64 - wanted).abs() as usize).unwrap_or(&0);
        if end > done {
            text.push_str(&body[done..end]);
            done = end;
        }
        depths.push(done as f64 / body.len() as f64);
        text.push_str(&fact.sentence);
    }
    text.push_str(&body[done..]);
    let mut prompt = head;
    prompt.extend(encode(tokenizer, &text)?);

    let question = |fact: &Made, depth| {
        let ask = format!("\n\n{}<|im_end|>\n<|im_start|>assistant\n{}", fact.question, fact.given);
        Ok(Fact { question: encode(tokenizer, &ask)?, answer: encode(tokenizer, &fact.answer)?, depth })
    };
    let facts = made.iter().zip(depths).map(|(fact, depth)| question(fact, depth)).collect::<Result<_>>()?;
    let between = encode(tokenizer, END_OF_ANSWER)?;
    Ok(Facts { book: book.name, prompt, facts, between })
}

struct Made {
    sentence: String,
    question: String,
    given: String,
    answer: String,
}

/// Codes of things and birthplaces of people, each once, in random order.
fn sentences(rng: &mut ChaCha8Rng) -> Vec<Made> {
    let things: Vec<String> =
        COLOURS.iter().flat_map(|c| THINGS.iter().map(move |t| format!("{c} {t}"))).collect();
    let codes = things.choose_multiple(rng, N_FACTS / 2).map(String::clone).collect::<Vec<_>>();
    let codes = codes.into_iter().map(|thing| {
        let code: String = (0..4).map(|_| rng.random_range('0'..='9')).collect();
        Made {
            sentence: format!(" The secret code of the {thing} is {code}."),
            question: format!("What is the secret code of the {thing}?"),
            given: format!("The secret code of the {thing} is"),
            answer: format!(" {code}"),
        }
    });
    let mut made: Vec<Made> = codes.collect();
    let people: Vec<&str> = PEOPLE.choose_multiple(rng, N_FACTS - N_FACTS / 2).copied().collect();
    let cities: Vec<&str> = CITIES.choose_multiple(rng, people.len()).copied().collect();
    made.extend(people.iter().zip(cities).map(|(person, city)| Made {
        sentence: format!(" {person} was born in the city of {city}."),
        question: format!("In which city was {person} born?"),
        given: format!("{person} was born in the city of"),
        answer: format!(" {city}"),
    }));
    made.shuffle(rng);
    made
}

const COLOURS: [&str; 8] = ["red", "blue", "green", "yellow", "white", "black", "silver", "brown"];
const THINGS: [&str; 10] =
    ["cabin", "vault", "gate", "tower", "safe", "garage", "bridge", "cellar", "office", "boat"];
const PEOPLE: [&str; 16] = [
    "Anna", "Bernard", "Clara", "Dmitri", "Eleanor", "Felix", "Gloria", "Hassan", "Ingrid", "James", "Laura",
    "Martin", "Olivia", "Robert", "Sofia", "Victor",
];
const CITIES: [&str; 16] = [
    "Berlin", "London", "Paris", "Rome", "Madrid", "Moscow", "Tokyo", "Chicago", "Boston", "Cairo", "Vienna",
    "Dublin", "Sydney", "Toronto", "Mumbai", "Lisbon",
];
