//! Streams that break, and others that go on with them.

use carat_gateway::Config;
use carat_ledger::{NewKey, Outcome};
use serde_json::Value;

use crate::money::paid;
use crate::support::{Reply, Rig, env, rig, stopped};

/// `p` is the mock too, and can be told to go on; so can `a`, in Anthropic's words.
fn config(rig: &Rig, route: &str) -> Config {
    let mock = rig.mock_address;
    let text = format!(
        "[providers.m]\nbase-url = \"http://{mock}/v1\"\n[providers.p]\nbase-url = \"http://{mock}/v1\"\nprefill = \"final\"\n\
         [providers.a]\nlike = \"anthropic\"\nbase-url = \"http://{mock}\"\nkey = \"k\"\n\
         [prices.\"m/cut=2\"]\ninput = 0\noutput = 3\n[prices.\"p/say=_and_more\"]\ninput = 0\noutput = 100\n\
         [routes.r]\n{route}\n"
    );
    Config::parse(&text, &env()).unwrap()
}

async fn asked(route: &str) -> (Rig, Reply) {
    let rig = rig("").await;
    rig.gateway.replace(config(&rig, route));
    let reply = rig.chat("r", true).await;
    (rig, reply)
}

/// What a client has read in the end.
fn read(reply: &Reply) -> String {
    let events = reply
        .text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "));
    let values = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let texts = values.map(|value| {
        let delta = &value["choices"][0]["delta"]["content"];
        delta.as_str().unwrap_or_default().to_string()
    });
    texts.collect()
}

#[tokio::test]
async fn another_goes_on_where_the_first_broke() {
    for bad in ["cut=2", "end=2", "cut=2;gap=20"] {
        let route = format!("continue = true\ncandidates = [\"m/{bad}\", \"m/ok\", \"p/say=_and_more\"]");
        let (rig, reply) = asked(&route).await;
        assert_eq!(
            read(&reply),
            "w\u{e9}0 w\u{e9}1 and more",
            "{bad}: {}",
            reply.text
        );
        assert!(reply.text.ends_with("data: [DONE]\n\n"), "{}", reply.text);
        assert_eq!(reply.text.matches("\"role\"").count(), 1, "it begins once");
        assert!(!reply.text.contains("error"));
        let told: Value = serde_json::from_str(&rig.mock.last.lock().unwrap().1).unwrap();
        let turns = told["messages"].as_array().unwrap();
        assert_eq!(turns.last().unwrap()["content"], "w\u{e9}0 w\u{e9}1");
        assert_eq!(
            (turns.len(), &told["continue_final_message"]),
            (2, &Value::Bool(true))
        );
        assert_eq!(rig.mock.of("ok"), 0, "who cannot be told to go on is not asked");
    }
}

#[tokio::test]
async fn nobody_goes_on_after_the_last_word() {
    let (rig, reply) = asked("continue = true\ncandidates = [\"m/open\", \"p/ok\"]").await;
    assert_eq!(
        read(&reply),
        "w\u{e9}0 w\u{e9}1 w\u{e9}2 w\u{e9}3 ",
        "{}",
        reply.text
    );
    assert!(reply.text.ends_with("data: [DONE]\n\n"), "{}", reply.text);
    assert_eq!(rig.mock.of("ok"), 0);
    assert!(
        reply.took < std::time::Duration::from_secs(20),
        "{:?}",
        reply.took
    );
}

#[tokio::test]
async fn one_after_another_goes_on_and_in_other_words_too() {
    let (rig, reply) = asked("continue = true\ncandidates = [\"m/cut=2\", \"p/cut=1\", \"a/ok\"]").await;
    assert_eq!(
        read(&reply),
        "w\u{e9}0 w\u{e9}1 w\u{e9}0 Gr\u{fc}\u{df}e aus K\u{f6}ln",
        "{}",
        reply.text
    );
    assert!(reply.text.ends_with("data: [DONE]\n\n"));
    let told: Value = serde_json::from_str(&rig.mock.last.lock().unwrap().1).unwrap();
    let last = told["messages"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["role"], "assistant");
    assert_eq!(last["content"][0]["text"], "w\u{e9}0 w\u{e9}1 w\u{e9}0");
}

#[tokio::test]
async fn what_cannot_be_continued_ends_with_an_error() {
    for route in [
        // Nobody else can be told to.
        "continue = true\ncandidates = [\"m/cut=2\", \"m/ok\"]",
        // It is not wanted.
        "candidates = [\"m/cut=2\", \"p/ok\"]",
        // Nobody goes on.
        "continue = true\ncandidates = [\"m/cut=2\", \"p/status=422\"]",
        // A call is half said: the start, two blocks, and a part of its arguments.
        "continue = true\ncandidates = [\"a/tool;cut=7\", \"p/ok\"]",
    ] {
        let (rig, reply) = asked(route).await;
        assert_eq!(reply.status, 200);
        assert!(
            reply.text.contains("\"error\"") && !reply.text.contains("[DONE]"),
            "{route}: {}",
            reply.text
        );
        assert!(reply.text.contains("cut off"), "{}", reply.text);
        assert_eq!(rig.mock.of("ok"), 0, "{route}");
    }
}

#[tokio::test]
async fn both_parts_are_paid_for() {
    let (rig, folder) = paid(NewKey::default(), "").await;
    let route = "continue = true\ncandidates = [\"m/cut=2\", \"p/say=_and_more\"]";
    rig.gateway.replace(config(&rig, route));
    let body = crate::support::chat("r", true).replace(
        "\"stream\"",
        "\"stream_options\":{\"include_usage\":true},\"stream\"",
    );
    let reply = rig.post("/v1/chat/completions", &body).await;
    assert_eq!(read(&reply), "w\u{e9}0 w\u{e9}1 and more");
    // The first part is estimated: ten bytes. The second says that it took four tokens of output.
    assert!(reply.text.contains("\"completion_tokens\":7"), "{}", reply.text);
    rig.gateway
        .replace(config(&rig, "continue = true\ncandidates = [\"m/cut=2\"]"));
    assert!(rig.chat("r", true).await.text.contains("error"));
    let mut admin = stopped(rig, &folder).await;
    let complete = admin.requests(Some(Outcome::Complete)).unwrap();
    assert_eq!((complete.requests, complete.spent.0), (1, 3 * 3 + 4 * 100));
    let cut = admin.requests(Some(Outcome::Cut)).unwrap();
    assert_eq!((cut.requests, cut.spent.0), (1, 3 * 3));
}
