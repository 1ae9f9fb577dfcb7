//! The evaluation on a published model: SmolLM2-135M-Instruct over real English, as `eval/fetch.sh` brings them.
//!
//! | file | |
//! |---|---|
//! | `gguf.rs` | weights and tokenizer out of the GGUF file |
//! | `books.rs` | English text and code, one half of each book to choose settings on, the other to report |
//! | `tasks.rs` | text that goes on, is summarised, questioned, quoted; facts among text |
//! | `ruler.rs` | tasks of RULER: several values of a key, chains of variables, common words |
//! | `methods.rs` | the rows of the table |
//! | `ask.rs` | queries that ask beside the window's: the prompt's, from after it, or a second pass' |
//! | `others.rs` | scores that come from outside the library: DefensiveKV, KeyDiff, Expected Attention |
//! | `run.rs` | one text through all methods and budgets: a line of JSON |
//! | `cost.rs` | what scoring takes, beside prefill |
//! | `table.rs` | lines → means with paired intervals |
//! | `picture.rs` | lines → pictures, and how many entries each head keeps |
pub mod ask;
pub mod books;
pub mod cost;
pub mod gguf;
pub mod methods;
pub mod others;
pub mod picture;
pub mod ruler;
pub mod run;
pub mod table;
pub mod tasks;
