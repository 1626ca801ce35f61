//! The log's line of each request.

use std::time::{Duration, Instant};

use carat_ledger::NewKey;
use http_body_util::BodyExt;

use crate::money::paid;
use crate::support::chat;
use crate::support::log::Log;

/// The line of the one request that `part` is in, when it is there.
async fn line(log: &Log, part: &str) -> String {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let lines = lines(log, part);
        assert!(lines.len() < 2 && Instant::now() < until, "{part}: {lines:?}");
        if let Some(line) = lines.into_iter().next() {
            return line;
        }
        // It may be written just after the client has its answer.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lines(log: &Log, part: &str) -> Vec<String> {
    let text = log.text();
    let lines = text
        .lines()
        .filter(|line| line.contains("line: request") && line.contains(part));
    lines.map(ToString::to_string).collect()
}

#[tokio::test]
async fn each_request_has_a_line_when_its_answer_has_ended() {
    let log = Log::of_all_tests();
    let (rig, _folder) = paid(NewKey::default(), "").await;
    let stream = |model: &str| chat(model, true);

    rig.chat("m/ok;say=whole_answer", false).await;
    let told = line(&log, "whole_answer").await;
    for part in [
        "status=200",
        "key=\"k\"",
        "route=direct",
        "input=",
        "output=",
        "ms=",
    ] {
        assert!(told.contains(part), "no {part} in {told}");
    }

    let begun = rig
        .send("/v1/chat/completions", &stream("m/events=3;gap=201"))
        .await;
    assert!(lines(&log, "events=3;gap=201").is_empty(), "it has not ended");
    begun.into_body().collect().await.unwrap();
    let told = line(&log, "events=3;gap=201").await;
    assert!(told.contains("output=") && !told.contains("cut="), "{told}");

    rig.chat("m/events=77;cut=2", true).await;
    let told = line(&log, "events=77;cut=2").await;
    assert!(
        told.contains("status=200") && told.contains("cut=\"network\""),
        "{told}"
    );

    drop(
        rig.send("/v1/chat/completions", &stream("m/events=91;gap=50"))
            .await,
    );
    let told = line(&log, "events=91;gap=50").await;
    assert!(told.contains("cut=\"client gone\""), "{told}");

    rig.chat("m/status=400;say=refused_by_name", false).await;
    let told = line(&log, "refused_by_name").await;
    assert!(
        told.contains("status=400") && told.contains("none; route=direct"),
        "{told}"
    );

    rig.get("/v1/nothing-here").await;
    assert!(line(&log, "nothing-here").await.contains("status=404"));
}

#[tokio::test]
async fn a_target_that_begins_to_rest_is_told_of_once() {
    let log = Log::of_all_tests();
    let (rig, _folder) = paid(NewKey::default(), "").await;
    for _ in 0..4 {
        rig.chat("m/status=500;say=that_rests", false).await;
    }
    let text = log.text();
    let is_told = |line: &&str| line.contains("WARN") && line.contains("that_rests");
    let told: Vec<&str> = text.lines().filter(is_told).collect();
    assert!(told.len() == 1 && told[0].contains("rests"), "{told:?}");
}
