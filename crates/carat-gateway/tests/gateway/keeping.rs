//! Answers that are kept, and what guards let in and out.

use std::sync::atomic::Ordering;
use std::time::Duration;

use carat_ledger::{Budget, Limits, Micros, NewKey, Outcome, Period};
use serde_json::Value;

use crate::money::paid;
use crate::support::{Reply, Rig, chat, rig, stopped};

fn cache(reply: &Reply) -> &str {
    reply.headers["x-carat-cache"].to_str().unwrap()
}

const KEPT: &str = "---[routes.r]\ncandidates = [\"m/ok\"]\n[routes.r.cache]\nttl-s = 60\n[routes.o]\ncandidates = [\"m/ok\"]\n[routes.o.cache]\nttl-s = 60";

fn asked(rig: &Rig) -> u64 {
    rig.mock.requests.load(Ordering::Relaxed)
}

#[tokio::test]
async fn the_same_request_is_answered_from_the_cache() {
    let rig = rig(KEPT).await;
    let first = rig.chat("r", false).await;
    let again = rig.chat("r", false).await;
    assert_eq!((cache(&first), cache(&again), asked(&rig)), ("miss", "hit", 1));
    assert_eq!(first.text, again.text, "unknown fields and all");
    assert_eq!(again.route(), "m/ok; route=r; policy=ordered; attempts=0");
    assert_eq!(again.headers["age"], "0");
    // What changes the answer is another request; who asks is not.
    let body = chat("r", false);
    let same = body.replace("\"stream\"", "\"user\":\"u\",\"stream\"");
    assert_eq!(cache(&rig.post("/v1/chat/completions", &same).await), "hit");
    let different = [
        body.replace("Hi", "Ho"),
        body.replace("\"stream\"", "\"temperature\":0.5,\"stream\""),
        body.replace("\"r\"", "\"o\""),
    ];
    for body in different {
        assert_eq!(
            cache(&rig.post("/v1/chat/completions", &body).await),
            "miss",
            "{body}"
        );
    }
    let metrics = rig.get("/metrics").await.text;
    assert!(
        metrics.contains("carat_gateway_cache_lookups_total{result=\"hit\"} 2"),
        "{metrics}"
    );
}

#[tokio::test]
async fn streams_are_played_back_and_either_becomes_the_other() {
    let rig = rig(KEPT).await;
    let first = rig.chat("r", true).await;
    let again = rig.chat("r", true).await;
    assert_eq!((first.text.as_str(), asked(&rig)), (again.text.as_str(), 1));
    assert_eq!(again.headers["content-type"], "text/event-stream");
    // Kept as a stream, asked for whole.
    let whole: Value = serde_json::from_str(&rig.chat("r", false).await.text).unwrap();
    assert_eq!(
        whole["choices"][0]["message"]["content"],
        "w\u{e9}0 w\u{e9}1 w\u{e9}2 w\u{e9}3 "
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        whole["usage"]["completion_tokens"], 4,
        "though its client was not told"
    );
    // Who asks for usage gets it.
    let asking = chat("r", true).replace(
        "\"stream\"",
        "\"stream_options\":{\"include_usage\":true},\"stream\"",
    );
    let told = rig.post("/v1/chat/completions", &asking).await;
    assert!(
        told.text.contains("\"usage\":{") && told.text.ends_with("data: [DONE]\n\n"),
        "{}",
        told.text
    );
    assert_eq!(asked(&rig), 1);
    // Kept whole, asked for as a stream.
    rig.chat("o", false).await;
    let stream = rig.chat("o", true).await;
    assert!(stream.text.contains("one two three four") && stream.text.ends_with("data: [DONE]\n\n"));
    assert_eq!((cache(&stream), asked(&rig)), ("hit", 2));
}

#[tokio::test]
async fn several_answers_are_kept_as_they_came_alone() {
    let rig = rig(KEPT).await;
    let ask = async |is_stream: bool| {
        let body = chat("r", is_stream).replace("\"stream\"", "\"n\":2,\"stream\"");
        let reply = rig.post("/v1/chat/completions", &body).await;
        cache(&reply).to_string()
    };
    // The mock gives one all the same; what is asked for may have been several.
    assert_eq!(
        (ask(false).await, ask(true).await),
        ("miss".into(), "miss".into())
    );
    assert_eq!((ask(false).await, ask(true).await), ("hit".into(), "hit".into()));
    assert_eq!(asked(&rig), 2);
}

#[tokio::test]
async fn every_client_hears_its_own_language_again() {
    let rig = rig(KEPT).await;
    let body = "{\"model\":\"r\",\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"stream\":true}";
    let first = rig.post("/v1/messages", body).await;
    let again = rig.post("/v1/messages", body).await;
    assert_eq!((first.text.as_str(), cache(&again)), (again.text.as_str(), "hit"));
    let whole = rig.post("/v1/messages", &body.replace("true", "false")).await;
    let whole: Value = serde_json::from_str(&whole.text).unwrap();
    assert_eq!(
        (&whole["type"], &whole["stop_reason"]),
        (&"message".into(), &"end_turn".into())
    );
    assert_eq!(asked(&rig), 1);
    assert_eq!(
        cache(&rig.chat("r", true).await),
        "miss",
        "another API is another request"
    );
}

#[tokio::test]
async fn only_whole_answers_are_kept_and_clients_may_refuse() {
    let route = |model: &str| {
        format!(
            "attempts = 1\n---[routes.r]\ncandidates = [\"{model}\"]\n[routes.r.cache]\nttl-s = 60\n[timeouts]\nidle-ms = 300"
        )
    };
    for bad in ["m/cut=2", "m/fail=2", "m/stall=2", "m/end=2"] {
        let rig = rig(&route(bad)).await;
        assert!(rig.chat("r", true).await.text.contains("error"));
        rig.chat("r", true).await;
        assert_eq!(rig.mock.requests.load(Ordering::Relaxed), 2, "{bad}");
    }
    let rig = rig(&route("m/ok")).await;
    rig.chat("r", false).await;
    assert_eq!(
        cache(&rig.chat_with("r", ("cache-control", "no-cache")).await),
        "miss"
    );
    assert_eq!(
        cache(&rig.chat_with("r", ("cache-control", "no-store")).await),
        "bypass"
    );
    assert_eq!(asked(&rig), 3);
}

#[tokio::test]
async fn what_is_kept_costs_nothing_and_is_its_keys_own() {
    let more = "[routes.r]\ncandidates = [\"m/ok\"]\n[routes.r.cache]\nttl-s = 60\n[prices.\"m/ok\"]\ninput = 0\noutput = 1\n";
    let (mut rig, folder) = paid(NewKey::default(), more).await;
    assert_eq!(cache(&rig.chat("r", false).await), "miss");
    assert_eq!(cache(&rig.chat("r", false).await), "hit");
    let mine = rig.secret.clone();
    rig.secret = "sk-wrong".into();
    assert_eq!(rig.chat("r", false).await.status, 401);
    rig.secret = mine;
    let mut admin = stopped(rig, &folder).await;
    let complete = admin.requests(Some(Outcome::Complete)).unwrap();
    assert_eq!((complete.requests, complete.spent), (2, Micros(4)));
}

const GUARDED: &str = "---[routes.r]\ncandidates = [\"m/ok\"]\n[routes.r.guard]\nredact = [\"email\", \"secret\"]\ndeny = [\"project x\"]\n\
    redact-answers = [\"email\"]\ndeny-answers = [\"forbidden\"]\nmax-prompt-kb = 10\n";

#[tokio::test]
async fn private_things_stay_here_and_forbidden_ones_outside() {
    let rig = rig(GUARDED).await;
    let says = |text: &str| chat("r", false).replace("Hi", text);
    let reply = rig
        .post(
            "/v1/chat/completions",
            &says("I am a@b.org, sk-abcdefghijklmnopqrstuvwxyz"),
        )
        .await;
    assert_eq!(reply.status, 200);
    let sent = rig.mock.last.lock().unwrap().1.clone();
    assert!(
        sent.contains("I am [email], [secret]") && !sent.contains("b.org"),
        "{sent}"
    );
    let refused = rig
        .post("/v1/chat/completions", &says("tell me of Project X"))
        .await;
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains("\"guardrail\""), "{}", refused.text);
    let large = rig.post("/v1/chat/completions", &says(&"a ".repeat(6000))).await;
    assert_eq!((large.status, asked(&rig)), (413, 1));
    assert!(
        rig.get("/metrics")
            .await
            .text
            .contains("carat_gateway_guarded_total 2")
    );
}

#[tokio::test]
async fn what_goes_on_elsewhere_or_does_more_than_answer_is_asked_anew() {
    let rig = rig(&KEPT.replace("---", "---responses = true\n")).await;
    let kept = |more: &str| format!("{{\"model\":\"r\",\"input\":\"Hi\"{more}}}");
    let ask = async |more: &str| {
        let reply = rig.post("/v1/responses", &kept(more)).await;
        (reply.status, cache(&reply).to_string())
    };
    for more in [
        ",\"conversation\":\"conv_1\"",
        ",\"tools\":[{\"type\":\"mcp\",\"server_url\":\"https://a\"}]",
    ] {
        assert_eq!(ask(more).await, (200, "bypass".to_string()));
        assert_eq!(ask(more).await, (200, "bypass".to_string()));
    }
    assert_eq!(asked(&rig), 4);
    assert_eq!(ask(",\"store\":true").await.1, "miss");
}

#[tokio::test]
async fn what_was_let_out_by_an_older_configuration_is_not_given_again() {
    let routes = "[routes.r]\ncandidates = [\"m/slow=400;say=this_is_forbidden_here\"]\n[routes.r.cache]\nttl-s = 60\n";
    let rig = rig(&format!("---{routes}")).await;
    let guarded = format!("{routes}[routes.r.guard]\ndeny-answers = [\"forbidden\"]\n");
    let text = crate::support::config(rig.mock_address, &format!("---{guarded}"));
    let config = carat_gateway::Config::parse(&text, &crate::support::env()).unwrap();
    let replaced = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        rig.gateway.replace(config);
    };
    // The guard comes while an answer is made that it would not let out.
    let (first, ()) = tokio::join!(rig.chat("r", false), replaced);
    assert_eq!((first.status, cache(&first)), (200, "miss"));
    let again = rig.chat("r", false).await;
    assert_eq!((again.status, asked(&rig)), (400, 2), "{}", again.text);
}

#[tokio::test]
async fn what_answers_in_the_place_of_another_is_looked_at_by_its_guard() {
    let limits = Limits {
        soft: Some(Budget {
            limit: Micros(0),
            period: Period::Day,
        }),
        fallback: Some("open".into()),
        ..Limits::default()
    };
    let rights = NewKey {
        limits,
        ..NewKey::default()
    };
    let say = "candidates = [\"m/say=this_is_forbidden_here\"]";
    let more = format!(
        "[routes.open]\n{say}\n[routes.open.cache]\nttl-s = 60\n\
         [routes.strict]\n{say}\n[routes.strict.guard]\ndeny-answers = [\"forbidden\"]\n\
         [prices.\"m/say=this_is_forbidden_here\"]\ninput = 0\noutput = 0\n"
    );
    let (rig, _folder) = paid(rights, &more).await;
    // The route is named by the path alone.
    let ask = async |route: &str| {
        let path = format!("/v1beta/models/{route}:generateContent");
        let body = "{\"contents\":[{\"role\":\"user\",\"parts\":[{\"text\":\"Hi\"}]}]}";
        rig.post(&path, body).await
    };
    let open = ask("open").await;
    assert_eq!((open.status, cache(&open)), (200, "miss"), "{}", open.text);
    assert_eq!(cache(&ask("open").await), "hit");
    let strict = ask("strict").await;
    assert_eq!(strict.status, 400, "{}", strict.text);
    assert_eq!(cache(&ask("open").await), "hit");
}

#[tokio::test]
async fn a_maximum_that_is_named_twice_is_the_larger_one() {
    let rig = rig("---[routes.r]\ncandidates = [\"m/ok\"]\n[routes.r.guard]\nmax-output-tokens = 50\n").await;
    let status = async |bounds: &str| {
        let body = chat("r", false).replace("\"stream\"", &format!("{bounds},\"stream\""));
        rig.post("/v1/chat/completions", &body).await.status
    };
    assert_eq!(
        status("\"max_completion_tokens\":10,\"max_tokens\":51").await,
        400
    );
    assert_eq!(
        status("\"max_completion_tokens\":51,\"max_tokens\":10").await,
        400
    );
    assert_eq!(
        status("\"max_completion_tokens\":10,\"max_tokens\":50").await,
        200
    );
}

#[tokio::test]
async fn answers_are_looked_at_across_events() {
    let rig = rig(GUARDED).await;
    let route = |model: &str| GUARDED.replace("m/ok", model);
    let whole = rig.chat("r", true).await;
    assert!(
        whole.text.contains("w\u{e9}0 w\u{e9}1") && whole.text.ends_with("data: [DONE]\n\n"),
        "{}",
        whole.text
    );
    assert!(!whole.text.contains("\"usage\":{"));
    // The mock repeats what is in its name in place of words, a few letters an event.
    let rig = crate::support::rig(&route("m/say=write_to_ann@example.org_soon")).await;
    for is_stream in [true, false] {
        let reply = rig.chat("r", is_stream).await;
        assert!(
            reply.text.contains("[email]") && !reply.text.contains("example"),
            "{}",
            reply.text
        );
    }
    let anthropic = "{\"model\":\"r\",\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"stream\":true}";
    let reply = rig.post("/v1/messages", anthropic).await;
    assert!(
        reply.text.contains("[email]") && reply.text.contains("message_stop"),
        "{}",
        reply.text
    );
    let completion = rig
        .post(
            "/v1/completions",
            "{\"model\":\"r\",\"prompt\":\"Hi\",\"stream\":true}",
        )
        .await;
    assert!(
        completion.text.contains("[email]") && completion.text.ends_with("data: [DONE]\n\n"),
        "{}",
        completion.text
    );
    let generated = rig
        .post("/api/generate", "{\"model\":\"r\",\"prompt\":\"Hi\"}")
        .await;
    let responded = rig
        .post(
            "/v1/responses",
            "{\"model\":\"r\",\"input\":\"Hi\",\"stream\":true}",
        )
        .await;
    for (reply, end) in [(generated, "\"done\":true"), (responded, "response.completed")] {
        assert!(
            reply.text.contains("[email]") && !reply.text.contains("example") && reply.text.contains(end),
            "{}",
            reply.text
        );
    }
    let rig = crate::support::rig(&route("m/say=this_is_forbidden_here")).await;
    let reply = rig.chat("r", true).await;
    assert!(
        reply.text.contains("error") && !reply.text.contains("[DONE]"),
        "{}",
        reply.text
    );
    assert_eq!(rig.chat("r", false).await.status, 400);
}

#[tokio::test]
async fn another_model_judges_and_is_paid() {
    let more = |answer: &str| {
        format!(
            "[routes.r]\ncandidates = [\"m/ok\"]\n[routes.r.guard]\nclassifier = {{ route = \"m/say={answer}\" }}\n\
             [prices.\"m/ok\"]\ninput = 0\noutput = 1\n[prices.\"m/say={answer}\"]\ninput = 0\noutput = 10\n"
        )
    };
    let (rig, folder) = paid(NewKey::default(), &more("safe")).await;
    assert_eq!(rig.chat("r", false).await.status, 200);
    let mut admin = stopped(rig, &folder).await;
    let complete = admin.requests(Some(Outcome::Complete)).unwrap();
    assert_eq!(complete.spent, Micros(4 + 40));
    let (rig, folder) = paid(NewKey::default(), &more("UNSAFE")).await;
    let refused = rig.chat("r", false).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    assert_eq!(rig.mock.of("ok"), 0);
    let mut admin = stopped(rig, &folder).await;
    assert_eq!(admin.requests(Some(Outcome::Failed)).unwrap().spent, Micros(40));
    // Also where the client leaves between two attempts.
    let resting = more("safe").replace("m/ok", "m/status=503");
    let (rig, folder) = paid(NewKey::default(), &resting).await;
    let leaving = tokio::time::timeout(Duration::from_millis(600), rig.chat("r", false));
    assert!(leaving.await.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut admin = stopped(rig, &folder).await;
    assert_eq!(
        admin.requests(Some(Outcome::ClientGone)).unwrap().spent,
        Micros(40)
    );
    let rig = crate::support::rig("attempts = 1\n---[routes.r]\ncandidates = [\"m/ok\"]\n[routes.r.guard]\nclassifier = { route = \"m/status=500\" }").await;
    assert_eq!(rig.chat("r", false).await.status, 503);
}
