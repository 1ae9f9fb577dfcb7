//! The texts are what they say: facts occur once, answers follow from them, and nothing depends on what else is generated.

use eval::tasks::{Group, Task, Text};

fn text(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().skip(1).map(|&t| (t - 3) as u8).collect()
}

fn all() -> impl Iterator<Item = (Task, Text)> {
    Task::ALL.into_iter().flat_map(|t| (0..5).map(move |i| (t, t.text(7, 512, i))))
}

fn count(hay: &[u8], needle: &[u8]) -> usize {
    hay.windows(needle.len()).filter(|w| *w == needle).count()
}

#[test]
fn lengths_and_scores() {
    for (task, t) in all() {
        assert_eq!(t.prompt.len() + t.continuation.len(), 512, "{}", task.name());
        assert!(!t.scored.is_empty());
        // The first generated token comes out of prefill: step 0 is the first prediction over the compressed cache.
        assert!(t.scored.iter().all(|s| s.step < t.continuation.len()));
        for s in &t.scored {
            if let Some(&next) = t.continuation.get(s.step + 1) {
                assert_eq!(next, s.target, "{}: what is fed is what was asked for", task.name());
            }
        }
    }
}

#[test]
fn a_fact_is_in_the_prompt_once_and_its_question_where_the_setting_says() {
    for (task, t) in all().filter(|(t, _)| t.group() != Group::Generation) {
        let prompt = text(&t.prompt);
        for s in &t.scored {
            let question: Vec<u8> =
                t.continuation[s.step - 2..=s.step].iter().map(|&t| (t - 3) as u8).collect();
            let fact = [b" ", &question[1..], &[(s.target - 3) as u8]].concat();
            assert_eq!(count(&prompt, &fact), 1);
            assert_eq!(count(&prompt, &fact[..3]), 1, "only one value for the key");
            let asked = count(&prompt[prompt.len() - 32..], &question);
            assert_eq!(asked, (task.group() == Group::Known) as usize, "{}", task.name());
            assert_eq!(asked, count(&prompt, &question));
            let place = s.depth.unwrap() * t.prompt.len() as f32;
            assert_eq!(t.prompt[place.round() as usize], s.target);
        }
    }
}

#[test]
fn what_counts_of_structured_text_has_occurred_before() {
    for (task, t) in all().filter(|(t, _)| t.group() == Group::Generation) {
        let whole = [&t.prompt[..], &t.continuation].concat();
        for s in &t.scored {
            // The four tokens before it and itself, earlier in the prompt.
            let end = t.prompt.len() + s.step + 2;
            let five = &whole[end - 5..end];
            assert!(t.prompt.windows(5).any(|w| w == five), "{} step {}", task.name(), s.step);
        }
    }
}

#[test]
fn a_text_depends_on_its_own_number_only() {
    let one = Task::Copy.text(7, 512, 3);
    let again = Task::Copy.text(7, 512, 3);
    assert_eq!(one.prompt, again.prompt);
    for other in [Task::Copy.text(7, 512, 4), Task::Copy.text(8, 512, 3)] {
        assert_ne!(one.prompt, other.prompt);
    }
}
