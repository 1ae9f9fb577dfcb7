//! The tasks, in the format that the model was trained on (`eval/model/data.py`), from another generator: nothing here was
//! seen in training.
//!
//! A prompt is prefilled and compressed; then its continuation is decoded, one given token after the other. What prefill
//! itself predicts says nothing about eviction: only predictions of decoded tokens count.

use rand::Rng;
use rand::SeedableRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

/// What is asked of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// One of many facts; its question is in the observation window.
    KnownOne,
    /// Ten of many facts; their questions are in the observation window.
    KnownMany,
    /// One of many facts, asked only after eviction.
    LaterOne,
    /// Ten of many facts, asked only after eviction.
    LaterMany,
    /// A random segment, repeated: a quarter to half of the text long.
    Copy,
    /// Random segments in the order A B A C A B A D ...
    Nested,
    /// A random block that repeats, made of short segments that each occur three times.
    Periods,
}

/// What a table averages over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Extraction, the questions in the window.
    Known,
    /// Extraction, asked only after eviction.
    Later,
    /// Structured text goes on.
    Generation,
}

impl Group {
    pub const ALL: [Self; 3] = [Self::Known, Self::Later, Self::Generation];

    pub fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Later => "later",
            Self::Generation => "generation",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::Known => {
                "Facts among filler, one or ten of which are asked. The questions stand at the prompt's end, inside the observation window, \
                 without answers; after eviction they are asked again."
            }
            Self::Later => {
                "Facts among filler, one or ten of which are asked. The prompt has no question: all are asked only after eviction."
            }
            Self::Generation => {
                "Structured random text goes on for 64 tokens: a long segment repeated, segments in the order A B A C A B A D, a repeating block \
                 of short repetitions."
            }
        }
    }
}

impl Task {
    pub const ALL: [Self; 7] = [
        Self::KnownOne,
        Self::KnownMany,
        Self::LaterOne,
        Self::LaterMany,
        Self::Copy,
        Self::Nested,
        Self::Periods,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::KnownOne => "known-one",
            Self::KnownMany => "known-many",
            Self::LaterOne => "later-one",
            Self::LaterMany => "later-many",
            Self::Copy => "copy",
            Self::Nested => "nested",
            Self::Periods => "periods",
        }
    }

    pub fn group(self) -> Group {
        match self {
            Self::KnownOne | Self::KnownMany => Group::Known,
            Self::LaterOne | Self::LaterMany => Group::Later,
            Self::Copy | Self::Nested | Self::Periods => Group::Generation,
        }
    }

    /// The text number `index` of `length` tokens, the decoded ones included.
    pub fn text(self, seed: u64, length: usize, index: usize) -> Text {
        // A separate stream for each text, whatever else is generated.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(((self as u64) << 48) | ((length as u64) << 32) | index as u64);
        match self {
            Self::KnownOne => recall(&mut rng, length, 1, true),
            Self::KnownMany => recall(&mut rng, length, 10, true),
            Self::LaterOne => recall(&mut rng, length, 1, false),
            Self::LaterMany => recall(&mut rng, length, 10, false),
            Self::Copy => copying(&mut rng, length),
            Self::Nested => nested(&mut rng, length),
            Self::Periods => periods(&mut rng, length),
        }
    }
}

/// A prompt and what is decoded after it.
pub struct Text {
    pub prompt: Vec<u32>,
    pub continuation: Vec<u32>,
    pub scored: Vec<Scored>,
}

/// A prediction that counts.
#[derive(Clone, Copy, Debug)]
pub struct Scored {
    /// Step of the continuation whose logits predict `target`.
    pub step: usize,
    pub target: u32,
    /// Where in the prompt the asked fact is, from 0 to 1; in structured text nothing is asked.
    pub depth: Option<f32>,
}

const BOS: u32 = 1;
/// Facts in a prompt: one for each key.
const KEYS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const VALUES: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz ";
/// ` K=v`, and as many for `?K=v`.
const FACT: usize = 4;
/// Tokens of structured text that are decoded.
const N_NEXT: usize = 64;
/// Tokens of a segment that cannot be told from new text yet, as in training.
const UNKNOWN: usize = 4;

/// Byte b is token b + 3.
fn token(byte: u8) -> u32 {
    byte as u32 + 3
}

fn recall(rng: &mut ChaCha8Rng, length: usize, n_questions: usize, known: bool) -> Text {
    let mut facts: Vec<(u8, u8)> = KEYS.iter().map(|&k| (k, *VALUES.choose(rng).unwrap())).collect();
    let continuation_len = n_questions * FACT - 1;
    let in_prompt = if known { n_questions * 3 } else { 0 };
    let mut room = length - 1 - continuation_len - in_prompt - facts.len() * FACT;
    let mut pieces: Vec<Vec<u8>> = facts.iter().map(|(k, v)| vec![b' ', *k, b'=', *v]).collect();
    while room > 0 {
        let word: Vec<u8> = [b" ", WORDS.choose(rng).unwrap().as_bytes()].concat();
        pieces.push(word[..word.len().min(room)].to_vec());
        room -= pieces.last().unwrap().len();
    }
    pieces.shuffle(rng);
    facts.shuffle(rng);
    let asked = &facts[..n_questions];
    let body = pieces.concat();
    let questions: Vec<u8> = asked.iter().flat_map(|(k, _)| [b'?', *k, b'=']).collect();
    let answered: Vec<u8> = asked.iter().flat_map(|(k, v)| [b'?', *k, b'=', *v]).collect();
    let mut prompt: Vec<u32> = std::iter::once(BOS).chain(body.iter().map(|&b| token(b))).collect();
    if known {
        prompt.extend(questions.iter().map(|&b| token(b)));
    }
    let place = |k: u8| body.windows(3).position(|w| w[0] == b' ' && w[1] == k && w[2] == b'=').unwrap() + 4;
    let scored = asked
        .iter()
        .enumerate()
        .map(|(i, &(k, v))| Scored {
            step: i * FACT + 2,
            target: token(v),
            depth: Some(place(k) as f32 / prompt.len() as f32),
        })
        .collect();
    let continuation = answered[..continuation_len].iter().map(|&b| token(b)).collect();
    Text { prompt, continuation, scored }
}

fn segment(rng: &mut ChaCha8Rng, alphabet: &[u8], n: usize) -> Vec<u32> {
    (0..n).map(|_| token(*alphabet.choose(rng).unwrap())).collect()
}

/// 70% of all texts use any printable character, the others letters.
fn alphabet(rng: &mut ChaCha8Rng) -> Vec<u8> {
    if rng.random_bool(0.7) { (32..127).collect() } else { LETTERS.to_vec() }
}

/// Splits `<s>` and `tokens` into a prompt and [`N_NEXT`] tokens; those with `is_known(index in tokens)` count.
fn continued(tokens: Vec<u32>, is_known: impl Fn(usize) -> bool) -> Text {
    let mut prompt: Vec<u32> = std::iter::once(BOS).chain(tokens).collect();
    let all = prompt.clone();
    let n = prompt.len() - N_NEXT;
    let continuation = prompt.split_off(n);
    let scored = (0..N_NEXT - 1)
        .filter(|step| is_known(n + step))
        .map(|step| Scored { step, target: all[n + step + 1], depth: None })
        .collect();
    Text { prompt, continuation, scored }
}

fn copying(rng: &mut ChaCha8Rng, length: usize) -> Text {
    let alphabet = alphabet(rng);
    // The prompt ends inside a copy and the continuation does too, or runs over into the next.
    let period = rng.random_range(length / 4..=length / 2 - N_NEXT);
    let unit = segment(rng, &alphabet, period);
    continued(unit.iter().cycle().take(length - 1).copied().collect(), |_| true)
}

/// Segment number i of the text is number (trailing zeros of i + 1) of the alphabet: A B A C A B A D ...
fn nested(rng: &mut ChaCha8Rng, length: usize) -> Text {
    let alphabet = alphabet(rng);
    let len = rng.random_range(24..=40);
    let segments: Vec<Vec<u32>> = (0..16).map(|_| segment(rng, &alphabet, len)).collect();
    // Ends in the middle of an A; after it comes a B or C that occurred before.
    let order = |i: usize| (i + 1).trailing_zeros() as usize;
    let n = length - 1;
    let offset = rng.random_range(0..len);
    let mut first_of_level = [usize::MAX; 16];
    let tokens: Vec<u32> = (0..n)
        .map(|at| {
            let (i, j) = ((at + offset) / len, (at + offset) % len);
            first_of_level[order(i)] = first_of_level[order(i)].min(i);
            segments[order(i)][j]
        })
        .collect();
    continued(tokens, |at| {
        let (i, j) = ((at + offset) / len, (at + offset) % len);
        j >= UNKNOWN && first_of_level[order(i)] < i
    })
}

fn periods(rng: &mut ChaCha8Rng, length: usize) -> Text {
    const TIMES: usize = 3;
    let alphabet = alphabet(rng);
    let len = rng.random_range(16..=24);
    let n_segments = (rng.random_range(length / 4..=length / 2 - N_NEXT) / (TIMES * len)).max(2);
    let segments: Vec<Vec<u32>> = (0..n_segments).map(|_| segment(rng, &alphabet, len)).collect();
    let offset = rng.random_range(0..len);
    let at = |i: usize| ((i + offset) / (TIMES * len) % n_segments, (i + offset) % len);
    let tokens = (0..length - 1).map(|i| segments[at(i).0][at(i).1]).collect();
    // At a segment's end only counting would tell whether it comes once more.
    continued(tokens, |i| at(i).1 >= UNKNOWN)
}

/// The filler of `eval/model/data.py`.
const WORDS: [&str; 77] = [
    "the", "of", "and", "to", "in", "is", "was", "for", "on", "as", "with", "at", "by", "from", "it", "an",
    "be", "this", "that", "are", "or", "his", "her", "had", "not", "but", "which", "have", "one", "were",
    "all", "their", "there", "been", "has", "when", "who", "will", "more", "no", "if", "out", "so", "said",
    "what", "up", "its", "about", "than", "into", "them", "can", "only", "other", "new", "some", "could",
    "time", "these", "two", "may", "then", "do", "first", "any", "my", "now", "such", "like", "our", "over",
    "man", "me", "even", "most", "made", "after",
];
