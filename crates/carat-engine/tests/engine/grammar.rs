//! Answers that are bound by a grammar, and thoughts before them, on a fake model.

use std::collections::HashMap;

use carat_engine::{
    Drafting, Error, FinishReason, Grammar, GrammarCompiler, Request, SamplingParams, Thoughts,
};

use crate::fake::{EOS, FakeModel, byte, tokenizer, word};
use crate::jobs::{Ear, greedy, job, limits, prompt, run, scheduler};

/// A request whose answer is drawn by dice.
fn random(seed: u64) -> Request {
    Request {
        sampling: SamplingParams {
            seed,
            ..SamplingParams::default()
        },
        stop_ids: vec![EOS],
        ..greedy(prompt(5, seed as usize), 200)
    }
}

#[test]
fn an_answer_follows_its_grammar_whatever_the_model_wants() {
    let tokenizer = tokenizer();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let schema = serde_json::json!({
        "type": "object",
        "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 1, "maximum": 30}},
        "required": ["unit", "days"],
        "additionalProperties": false,
    });
    for seed in 0..20 {
        let mut scheduler = scheduler(FakeModel::chaotic(), limits());
        let (mut job, ear) = job(random(seed));
        job.constraint = Some(compiler.compile(&Grammar::JsonSchema(schema.clone())).unwrap());
        scheduler.submit(job);
        run(&mut scheduler);
        let heard = ear.lock().unwrap();
        let value: HashMap<String, serde_json::Value> = serde_json::from_str(&heard.text).unwrap();
        assert!(value["unit"] == "C" || value["unit"] == "F", "{value:?}");
        assert!((1..=30).contains(&value["days"].as_i64().unwrap()));
        assert_eq!(heard.finished.as_ref().unwrap().reason, FinishReason::Stop);
    }
    let bad = compiler.compile(&Grammar::JsonSchema(serde_json::json!({"type": "nonsense"})));
    assert!(matches!(bad, Err(Error::Grammar { .. })));
    assert!(matches!(
        compiler.compile(&Grammar::Regex("(".into())),
        Err(Error::Grammar { .. })
    ));
}

#[test]
fn grammars_of_every_notation_are_followed() {
    let tokenizer = tokenizer();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let check = |grammar: Grammar, holds: &dyn Fn(&str) -> bool| {
        for seed in 0..10 {
            let mut scheduler = scheduler(FakeModel::chaotic(), limits());
            let (mut job, ear) = job(random(seed));
            job.constraint = Some(compiler.compile(&grammar).unwrap());
            scheduler.submit(job);
            run(&mut scheduler);
            let text = ear.lock().unwrap().text.clone();
            assert!(holds(&text), "{grammar:?} {text:?}");
        }
    };
    let is_word = |text: &str| (2..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase());
    check(Grammar::Regex("[a-z]{2,4}".into()), &is_word);
    check(
        Grammar::Gbnf("root ::= word\nword ::= [a-z] [a-z] [a-z]?\n".into()),
        &is_word,
    );
    check(Grammar::Lark("start: /[a-z]/ /[a-z]/".into()), &is_word);
    check(Grammar::JsonObject, &|text| text.starts_with('{'));
    check(
        Grammar::Gbnf("root ::= a-b a_b A_B\na-b ::= \"x\"\na_b ::= \"yes\"?\nA_B ::= \"z\"".into()),
        &|text| text == "xz" || text == "xyesz",
    );
}

/// A text of a grammar does not take away what else the grammar has that begins like it.
#[test]
fn an_answer_may_begin_like_a_keyword() {
    let compiler = GrammarCompiler::new(&tokenizer()).unwrap();
    let grammar =
        Grammar::Gbnf("root ::= value (\";\" value)*\nvalue ::= \"true\" | \"trip\"{2} | [a-z]+".into());
    for said in ["trap", "true", "truest", "triptrip", "t", "trip;tru;truetrue"] {
        let script = said.bytes().map(|b| match b {
            b';' => byte(b),
            letter => word(&char::from(letter).to_string()),
        });
        let mut scheduler = scheduler(FakeModel::scripted(5, script.collect()), limits());
        let (mut job, ear) = job(Request {
            stop_ids: vec![EOS],
            ..greedy(prompt(5, 0), 30)
        });
        job.constraint = Some(compiler.compile(&grammar).unwrap());
        scheduler.submit(job);
        run(&mut scheduler);
        assert_eq!(ear.lock().unwrap().text, said);
    }
}

/// A long chain of rules is no end of the process, whatever the thread's stack.
#[test]
fn rules_may_follow_each_other_for_long_and_not_for_ever() {
    let compiler = GrammarCompiler::new(&tokenizer()).unwrap();
    let chain = |n: usize| {
        let rules = (1..n).map(|i| format!("r{i} ::= \"a\" r{}\n", i + 1));
        format!("root ::= r1\n{}r{n} ::= \"b\"\n", rules.collect::<String>())
    };
    // A rule for each of the two letters and the root.
    assert!(compiler.compile(&Grammar::Gbnf(chain(9997))).is_ok());
    let refused = compiler.compile(&Grammar::Gbnf(chain(9998))).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "the grammar cannot be used: it has about 10001 rules or objects, more than 10000; make it smaller"
    );
    let schema = |n: usize| {
        let name = |i: usize| format!("#/$defs/{i}");
        let one = |i: usize| serde_json::json!({"type": "array", "items": {"$ref": name((i + 1) % n)}});
        let defs: serde_json::Map<_, _> = (0..n).map(|i| (i.to_string(), one(i))).collect();
        Grammar::JsonSchema(serde_json::json!({"$ref": name(0), "$defs": defs}))
    };
    assert!(compiler.compile(&schema(2000)).is_ok());
    assert!(compiler.compile(&schema(5000)).is_err());
}

/// Thoughts are free and end in time; the grammar binds what follows them.
#[test]
fn thoughts_are_free_and_the_answer_is_bound() {
    let tokenizer = tokenizer();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    // Two letters play the tokens around thoughts. The fake begins to think at once, would never end it, and would
    // rather end the answer.
    let (open, close, hello) = (word("x"), word("y"), word("hello"));
    let n_pieces = crate::fake::N_PIECES;
    let script = move |seen: &[u32]| {
        let mut logits = vec![0.0; n_pieces];
        let next = if seen.len() == 5 { open } else { hello };
        logits[next as usize] = 5.0;
        logits[EOS as usize] = if seen.len() > 6 { 9.0 } else { -9.0 };
        logits[close as usize] = -9.0;
        logits
    };
    let thoughts = |budget, are_open| Thoughts {
        open,
        close,
        are_open,
        budget: Some(budget),
    };
    let answer = || Some(compiler.compile(&Grammar::Regex("[a-f]{3}".into())).unwrap());
    for drafter in [None, Some(hello)] {
        let mut model = FakeModel::new(n_pieces, script);
        model.max_batch_tokens = 64;
        if let Some(guess) = drafter {
            model.drafter = Some(Box::new(move |_, n| vec![guess; n]));
        }
        let mut scheduler = scheduler(model, limits());
        let constraints = [
            compiler.thoughtful(answer(), thoughts(4, false)),
            compiler.thoughtful(None, thoughts(0, false)),
            compiler.thoughtful(answer(), thoughts(2, true)),
        ];
        let ears = constraints.map(|constraint| {
            let drafting = drafter.map_or(Drafting::Off, |_| Drafting::Fixed(6));
            let (mut job, ear) = job(Request {
                drafting,
                stop_ids: vec![EOS],
                ..greedy(prompt(5, 0), 20)
            });
            job.constraint = Some(constraint.unwrap());
            scheduler.submit(job);
            ear
        });
        run(&mut scheduler);
        let heard = ears.map(|ear| {
            let heard = ear.lock().unwrap();
            (heard.ids.clone(), heard.text.clone())
        });
        let [(bound, bound_text), (free, _), (begun, begun_text)] = heard;
        let is_answer = |text: &str| text.len() == 3 && text.bytes().all(|b| (b'a'..=b'f').contains(&b));
        assert_eq!(bound[..6], [open, hello, hello, hello, hello, close]);
        assert!(is_answer(&bound_text[bound_text.len() - 3..]), "{bound_text}");
        assert_eq!(free, [open, close]);
        assert_eq!(begun[..3], [open, hello, close]);
        assert!(is_answer(&begun_text[begun_text.len() - 3..]), "{begun_text}");
    }
    let outside = Thoughts {
        open: 1 << 30,
        ..thoughts(1, false)
    };
    assert!(compiler.thoughtful(None, outside).is_err());
}

/// Where no grammar binds the answer the budget is for all thoughts: neither words before the first mark nor a second
/// mark are a way around it.
#[test]
fn thoughts_that_begin_again_have_one_budget() {
    let compiler = GrammarCompiler::new(&tokenizer()).unwrap();
    let (open, close, hello) = (word("x"), word("y"), word("hello"));
    // It thinks twice, and would then say the mark for ever, which among thoughts is a letter here.
    let begin = [hello, open, hello, close, hello, open];
    let script = move |seen: &[u32]| {
        let mut logits = vec![0.0; crate::fake::N_PIECES];
        (logits[open as usize], logits[hello as usize]) = (9.0, 8.0);
        if let Some(next) = begin.get(seen.len() - 5) {
            logits[*next as usize] = 10.0;
        }
        logits
    };
    for guess in [None, Some(open), Some(hello)] {
        let mut model = FakeModel::new(crate::fake::N_PIECES, script);
        model.max_batch_tokens = 64;
        if let Some(guess) = guess {
            model.drafter = Some(Box::new(move |_, n| vec![guess; n]));
        }
        let mut scheduler = scheduler(model, limits());
        let (mut job, ear) = job(Request {
            drafting: guess.map_or(Drafting::Off, |_| Drafting::Fixed(6)),
            ..greedy(prompt(5, 0), 13)
        });
        let thoughts = Thoughts {
            open,
            close,
            are_open: false,
            budget: Some(3),
        };
        job.constraint = Some(compiler.thoughtful(None, thoughts).unwrap());
        scheduler.submit(job);
        run(&mut scheduler);
        let after = [open, open, close, hello, hello, hello, hello];
        assert_eq!(ear.lock().unwrap().ids, [&begin[..], &after].concat());
    }
}

/// A clone is in the state of its original, and each then goes its own way.
#[test]
fn one_compiled_grammar_binds_many_answers() {
    let compiler = GrammarCompiler::new(&tokenizer()).unwrap();
    let thoughts = Thoughts {
        open: word("x"),
        close: word("y"),
        are_open: true,
        budget: Some(2),
    };
    let answer = compiler
        .compile(&Grammar::Gbnf("root ::= [a-c]{3} | \"de\"".into()))
        .unwrap();
    let bound = compiler.thoughtful(Some(answer), thoughts).unwrap();
    let mut scheduler = scheduler(FakeModel::chaotic(), limits());
    let ears: Vec<Ear> = (0..8)
        .map(|i| {
            let (mut job, ear) = job(greedy(prompt(5, i), 20));
            job.constraint = Some(bound.clone());
            scheduler.submit(job);
            ear
        })
        .collect();
    run(&mut scheduler);
    let answers: Vec<String> = ears
        .iter()
        .map(|ear| {
            let heard = ear.lock().unwrap();
            let n_thought = heard.ids.iter().take_while(|id| **id != word("y")).count();
            assert!(n_thought <= 2, "{:?}", heard.ids);
            let is = |id: u32, letter: char| word(&letter.to_string()) == id || byte(letter as u8) == id;
            let letter = |id: &u32| ('a'..='e').find(|letter| is(*id, *letter));
            heard.ids[n_thought + 1..].iter().filter_map(letter).collect()
        })
        .collect();
    for answer in &answers {
        let is_answer =
            answer == "de" || answer.len() == 3 && answer.bytes().all(|b| (b'a'..=b'c').contains(&b));
        assert!(is_answer, "{answers:?}");
    }
    assert!(answers.iter().any(|answer| answer != &answers[0]), "{answers:?}");
}
