//! Tasks of RULER (arXiv 2404.06654) over text from books, by generators of our own: several values of one key among other keys
//! (its multi-value and multi-key needles in one), chains of variables, and the commonest words of a list.

use anyhow::Result;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use tokenizers::Tokenizer;

use super::books::{Book, Half};
use super::gguf::encode;
use super::tasks::{Ask, CHARACTERS, Facts, Hidden, PEOPLE, Summary, code, hide, stream, things, told};

/// Codes of one thing, all of which are asked for, and as many of other things.
const N_VALUES: usize = 4;
/// Names in a chain of variables; there are two chains.
const N_NAMES: usize = 4;

pub fn values(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<Facts> {
    let rng = stream(seed, half, 4, length, index);
    hide(books, tokenizer, rng, half, (length, index), of_values)
}

pub fn chains(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<Facts> {
    let rng = stream(seed, half, 5, length, index);
    hide(books, tokenizer, rng, half, (length, index), of_chains)
}

/// Each value is asked for after those before it have been given.
fn of_values(rng: &mut ChaCha8Rng) -> Hidden {
    let things = things(rng, N_VALUES + 1);
    let codes: Vec<String> = (0..N_VALUES).map(|_| code(rng)).collect();
    let mut sentences: Vec<(Option<usize>, String)> = things[1..]
        .iter()
        .map(|other| (None, format!(" One code of the {other} is {}.", code(rng))))
        .collect();
    let wanted = |code: &String| (Some(0), format!(" One code of the {} is {code}.", things[0]));
    sentences.extend(codes.iter().map(wanted));
    sentences.shuffle(rng);
    // Asked for in the order of the text.
    let own = sentences.iter().enumerate().filter(|(_, (wanted, _))| wanted.is_some());
    let at: Vec<usize> = own.map(|(i, _)| i).collect();
    let told: Vec<String> = at.iter().map(|&i| code_of(&sentences[i].1)).collect();
    let ask = |n: usize| Ask {
        sentence: at[n],
        question: format!("What are all the codes of the {}, in the order of the text?", things[0]),
        given: format!("{}One code of the {} is", said(&things[0], &told[..n]), things[0]),
        answer: format!(" {}", told[n]),
    };
    let asks = (0..N_VALUES).map(ask).collect();
    Hidden { sentences: sentences.into_iter().map(|(_, s)| s).collect(), asks }
}

fn code_of(sentence: &str) -> String {
    sentence.chars().filter(char::is_ascii_digit).collect()
}

fn said(thing: &str, codes: &[String]) -> String {
    codes.iter().map(|code| format!("One code of the {thing} is {code}. ")).collect()
}

fn listed(before: &[&str]) -> String {
    before.iter().map(|x| format!(" {x},")).collect()
}

/// `Anna has the key 1234.`, `Clara has the same key as Anna.` and so on, twice, mixed; each chain's names in order.
fn of_chains(rng: &mut ChaCha8Rng) -> Hidden {
    let names: Vec<&str> = PEOPLE.choose_multiple(rng, 2 * N_NAMES).copied().collect();
    let keys = [code(rng), code(rng)];
    // Whose turn it is: a chain's own order stays.
    let mut turns: Vec<usize> = (0..2 * N_NAMES).map(|i| i % 2).collect();
    turns.shuffle(rng);
    let (mut sentences, mut asks, mut done) = (vec![], vec![], [0; 2]);
    for chain in turns {
        let own = &names[chain * N_NAMES..][..N_NAMES];
        let (n, key) = (done[chain], &keys[chain]);
        asks.push(Ask {
            sentence: sentences.len(),
            question: format!("Who has the key {key}, or the same key as somebody who has it?"),
            given: format!("The key {key} is held by{}", listed(&own[..n])),
            answer: format!(" {}", own[n]),
        });
        sentences.push(match n {
            0 => format!(" The key {key} is held by {}.", own[0]),
            _ => format!(" {} has the same key as {}.", own[n], own[n - 1]),
        });
        done[chain] += 1;
    }
    Hidden { sentences, asks }
}

/// Words of a list that stand there often, and how often these and the others do.
const N_COMMON: usize = 5;
const TIMES: [usize; 2] = [10, 2];

/// A list of a book's words in random order, some of which stand there five times as often as the others.
pub fn words(
    books: &[Book],
    tokenizer: &Tokenizer,
    seed: u64,
    half: Half,
    length: usize,
    index: usize,
) -> Result<Summary> {
    let rng = &mut stream(seed, half, 6, length, index);
    let book = &books[index % books.len()];
    let text = book.passage(rng, half, CHARACTERS * length).join(" ");
    let is_word = |w: &&str| (4..9).contains(&w.len()) && w.chars().all(|c| c.is_ascii_lowercase());
    let mut all: Vec<&str> = text.split_whitespace().filter(is_word).collect();
    all.sort_unstable();
    all.dedup();
    all.shuffle(rng);
    let n = all.len().min(length);
    let many = all.choose_multiple(rng, n).enumerate();
    let mut list: Vec<&str> = vec![];
    for (i, word) in many {
        // A number, a word and a line take four tokens and more.
        if list.len() >= length / 5 {
            break;
        }
        list.extend(std::iter::repeat_n(*word, TIMES[(i >= N_COMMON) as usize]));
    }
    list.shuffle(rng);
    let lines: Vec<String> = list.iter().enumerate().map(|(i, w)| format!("{}. {w}\n", i + 1)).collect();
    let mut tokens = encode(tokenizer, &lines.concat())?;
    tokens.truncate(length);
    let ask = format!("Which {N_COMMON} words are the most frequent in the list?");
    told(tokenizer, book.name, &tokens, &ask, "The most frequent words are:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn each(make: fn(&mut ChaCha8Rng) -> Hidden, check: impl Fn(&Hidden)) {
        (0..20).for_each(|seed| check(&make(&mut ChaCha8Rng::seed_from_u64(seed))));
    }

    #[test]
    fn every_value_is_told_once_and_asked_for_in_order() {
        each(of_values, |hidden| {
            assert_eq!((hidden.sentences.len(), hidden.asks.len()), (2 * N_VALUES, N_VALUES));
            assert!(hidden.asks.is_sorted_by_key(|ask| ask.sentence));
            for (n, ask) in hidden.asks.iter().enumerate() {
                let (before, last) = ask.given.split_at(ask.given.rfind("One code").unwrap());
                let whole = format!(" {last}{}.", ask.answer);
                assert_eq!(hidden.sentences[ask.sentence], whole);
                assert_eq!(before.matches("One code").count(), n);
                assert!(!before.contains(&ask.answer));
            }
        });
    }

    #[test]
    fn chains_lead_from_name_to_name() {
        each(of_chains, |hidden| {
            assert_eq!((hidden.sentences.len(), hidden.asks.len()), (2 * N_NAMES, 2 * N_NAMES));
            for ask in &hidden.asks {
                let (_, before) = ask.given.split_once(" by").unwrap();
                let last = before.trim_end_matches(',').rsplit(' ').next().unwrap();
                let want = match last {
                    "" => format!(" {}{}.", ask.given, ask.answer),
                    last => format!("{} has the same key as {last}.", ask.answer),
                };
                assert_eq!(hidden.sentences[ask.sentence], want);
            }
        });
    }
}
