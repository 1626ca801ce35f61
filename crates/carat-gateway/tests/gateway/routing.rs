//! Which candidate is asked, when, and what clients are told of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::Value;

use crate::support::{Reply, Rig, chat, rig};

impl Rig {
    /// A chat request with another header.
    pub(crate) async fn chat_with(&self, model: &str, header: (&str, &str)) -> Reply {
        let request = Request::post(format!("http://{}/v1/chat/completions", self.address))
            .header("content-type", "application/json")
            .header(header.0, header.1)
            .body(Full::from(chat(model, false)))
            .unwrap();
        self.told(request).await
    }
}

#[tokio::test]
async fn a_decision_is_explained_without_a_call() {
    let more = "---[routes.r]\npolicy = \"cost\"\ncandidates = [\"m/a\", \"m/b\", \"m/blind\"]\n\
                [prices.\"m/a\"]\ninput = 9\noutput = 9\n[prices.\"m/b\"]\ninput = 1\noutput = 1\n\
                [models.\"m/blind\"]\nimages = false\ncontext = 5\n\
                [routes.auto]\nrules = [{ tools = true, route = \"m/a\" }]\notherwise = \"r\"";
    let rig = rig(more).await;
    let body = "{\"model\":\"auto\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"http://x\"}}]}],\"max_tokens\":100}";
    let explained: Value = serde_json::from_str(&rig.post("/v1/route", body).await.text).unwrap();
    assert_eq!(
        (&explained["route"], &explained["rule"]),
        (&"r".into(), &0.into())
    );
    assert_eq!(explained["needs"]["images"], true);
    let candidates = explained["candidates"].as_array().unwrap();
    let blind = candidates.last().unwrap();
    assert_eq!(
        (&blind["target"], &blind["standing"]),
        (&"m/blind".into(), &"never".into())
    );
    assert!(blind["why"].as_str().unwrap().contains("images"));
    let of = |name: &str| candidates.iter().find(|one| one["target"] == name).unwrap();
    let (dear, cheap) = (of("m/a"), of("m/b"));
    assert!(dear["expected_cost_micros"].as_f64() > cheap["expected_cost_micros"].as_f64());
    // The same at the real path, where a header asks for it.
    let reply = rig.chat_with("r", ("x-carat-dry-run", "1")).await;
    assert_eq!(
        serde_json::from_str::<Value>(&reply.text).unwrap()["object"],
        "route"
    );
    assert_eq!(rig.mock.requests.load(Ordering::Relaxed), 0, "nobody was asked");
    assert_eq!(
        rig.post("/v1/route", &body.replace("auto", "none")).await.status,
        404
    );
}

#[tokio::test]
async fn rules_lead_to_routes_and_say_so() {
    let more = "---[routes.small]\ncandidates = [\"m/ok\"]\n[routes.auto]\notherwise = \"small\"\n\
                rules = [{ code = true, route = \"m/code\" }]";
    let rig = rig(more).await;
    let reply = rig.chat("auto", false).await;
    assert_eq!(
        reply.route(),
        "m/ok; route=small; policy=ordered; attempts=1; rule=auto:otherwise"
    );
    let body = chat("auto", false).replace("Hi", "fix ```x```");
    let reply = rig.post("/v1/chat/completions", &body).await;
    assert_eq!(
        reply.route(),
        "m/code; route=direct; policy=ordered; attempts=1; rule=auto:1"
    );
}

#[tokio::test]
async fn who_cannot_is_passed_over_with_the_reason() {
    let more = "---[routes.r]\ncandidates = [\"m/dull\", \"m/ok\"]\n[models.\"m/dull\"]\ntools = false\n\
                [routes.one]\ncandidates = [\"m/dull\"]";
    let rig = rig(more).await;
    let body = chat("r", false).replace("\"stream\"", "\"tools\":[{\"type\":\"function\"}],\"stream\"");
    let reply = rig.post("/v1/chat/completions", &body).await;
    assert_eq!(
        reply.route(),
        "m/ok; route=r; policy=ordered; attempts=1; passed=m/dull:tools"
    );
    let reply = rig
        .post("/v1/chat/completions", &body.replace("\"r\"", "\"one\""))
        .await;
    assert_eq!(reply.status, 400);
    assert!(reply.text.contains("it does not call tools"), "{}", reply.text);
}

#[tokio::test]
async fn prompts_too_long_and_contents_refused_have_their_fallbacks() {
    let more = "---[routes.r]\ncandidates = [\"m/too-long\", \"m/ok;small\", \"m/refused\"]\nlong-fallbacks = [\"m/ok\"]\n\
                [routes.larger]\ncandidates = [\"m/too-long\", \"m/ok;small\", \"m/ok;large\"]\n\
                [routes.s]\ncandidates = [\"m/refused\", \"m/ok;small\"]\nrefused-fallbacks = [\"m/ok\"]\n\
                [routes.none]\ncandidates = [\"m/refused\", \"m/ok\"]\n\
                [models.\"m/too-long\"]\ncontext = 1000\n[models.\"m/ok;small\"]\ncontext = 900\n[models.\"m/ok;large\"]\ncontext = 2000";
    let rig = rig(more).await;
    for (route, target) in [("r", "m/ok;"), ("larger", "m/ok;large;"), ("s", "m/ok;")] {
        let reply = rig.chat(route, false).await;
        assert_eq!(reply.status, 200, "{route}: {}", reply.text);
        assert!(reply.route().starts_with(target), "{route}: {}", reply.route());
    }
    let reply = rig.chat("none", false).await;
    assert_eq!(reply.status, 400, "nobody else is asked unless the route says so");
    assert_eq!(rig.mock.of("ok;small"), 0);
}

#[tokio::test]
async fn a_limit_that_is_nearly_used_is_respected() {
    let rig = rig("---[routes.r]\ncandidates = [\"m/left=1;of=100\", \"m/ok\"]").await;
    assert!(rig.chat("r", false).await.route().starts_with("m/left=1;of=100;"));
    let reply = rig.chat("r", false).await;
    assert_eq!(
        reply.route(),
        "m/ok; route=r; policy=ordered; attempts=1; passed=m/left=1;of=100:quota"
    );
}

#[tokio::test]
async fn users_stay_with_their_variant_and_are_counted_apart() {
    let more = "---[routes.r]\npolicy = \"ab\"\ncandidates = [{ model = \"m/ok\", weight = 3 }, \"m/b\"]\n\
                [prices.\"m/b\"]\ninput = 0\noutput = 1";
    let rig = rig(more).await;
    let mut targets = std::collections::HashMap::new();
    for user in 0..40 {
        for _ in 0..2 {
            let body = chat("r", false).replace("\"stream\"", &format!("\"user\":\"u{user}\",\"stream\""));
            let reply = rig.post("/v1/chat/completions", &body).await;
            let target = reply.route().split(';').next().unwrap().to_string();
            assert_eq!(targets.entry(user).or_insert_with(|| target.clone()), &target);
        }
    }
    let n_b = targets.values().filter(|target| *target == "m/b").count();
    assert!((3..20).contains(&n_b), "{n_b} of 40 at weight 1 of 4");
    let metrics = rig.get("/metrics").await.text;
    let expected = [
        format!(
            "carat_variant_answers_total{{route=\"r\",target=\"m/b\"}} {}",
            2 * n_b
        ),
        format!(
            "carat_variant_cost_micros_total{{route=\"r\",target=\"m/b\"}} {}",
            8 * n_b
        ),
    ];
    assert!(expected.iter().all(|line| metrics.contains(line)), "{metrics}");
}

#[tokio::test]
async fn conversations_stay_where_they_are() {
    let rig = rig("---[routes.r]\npolicy = \"sticky\"\ncandidates = [\"m/a\", \"m/b\", \"m/ok\"]").await;
    let mut seen = std::collections::HashSet::new();
    for session in 0..20 {
        let name = format!("s{session}");
        let first = rig.chat_with("r", ("x-carat-session", &name)).await;
        let again = rig.chat_with("r", ("x-carat-session", &name)).await;
        assert_eq!(first.route(), again.route());
        seen.insert(first.route().to_string());
    }
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn a_request_waits_for_a_place_by_priority() {
    let rig = Arc::new(
        rig("---max-in-flight = 1\n[routes.r]\nqueue-ms = 5000\ncandidates = [\"m/slow=250\"]").await,
    );
    let ask = |priority: &'static str, after: u64| {
        let rig = rig.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            let reply = rig.chat_with("r", ("x-carat-priority", priority)).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            std::time::Instant::now()
        })
    };
    let (first, low, high) = (ask("normal", 0), ask("low", 60), ask("high", 120));
    let (first, low, high) = (first.await.unwrap(), low.await.unwrap(), high.await.unwrap());
    assert!(first < high && high < low);
    assert_eq!(rig.mock.requests.load(Ordering::Relaxed), 3);
    assert!(
        rig.get("/metrics")
            .await
            .text
            .contains("carat_target_requests_waiting{target=\"m/slow=250\"} 0")
    );
}

#[tokio::test]
async fn nobody_waits_for_ever() {
    let rig = rig("---max-in-flight = 1\n[routes.r]\nqueue-ms = 100\ncandidates = [\"m/slow=800\"]").await;
    let (first, second) = tokio::join!(rig.chat("r", false), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.chat("r", false).await
    });
    assert_eq!((first.status, second.status), (200, 503));
    assert!(second.took < Duration::from_millis(500), "{:?}", second.took);
}

#[tokio::test]
async fn a_second_is_asked_when_the_first_takes_long() {
    let rig = rig("---[routes.r]\nhedge = 80\ncandidates = [\"m/slow=3000\", \"m/ok\"]").await;
    for is_stream in [false, true] {
        let reply = rig.chat("r", is_stream).await;
        assert_eq!(
            reply.route(),
            "m/ok; route=r; policy=ordered; attempts=2; hedged=m/slow=3000"
        );
        assert!(reply.took < Duration::from_millis(1500), "{:?}", reply.took);
    }
    let tools = chat("r", false).replace("\"stream\"", "\"tools\":[{}],\"stream\"");
    let reply = rig.post("/v1/chat/completions", &tools).await;
    assert!(reply.route().starts_with("m/slow=3000;"), "{}", reply.route());
}

#[tokio::test]
async fn a_whole_answer_that_does_not_come_is_asked_of_another() {
    let rig =
        rig("---[timeouts]\nwhole-ms = 150\n[routes.r]\ncandidates = [\"m/slow=3000\", \"m/ok\"]").await;
    let reply = rig.chat("r", false).await;
    assert!(
        reply.route().ends_with("failed=m/slow=3000:slow"),
        "{}",
        reply.route()
    );
    assert!(reply.took < Duration::from_secs(1), "{:?}", reply.took);
}

#[tokio::test]
async fn who_rests_is_asked_before_the_client_is_refused() {
    // The first is well again, but nobody knows; the second has just died.
    let rig = rig(
        "---[routes.r]\ncandidates = [\"m/status=429;wait-ms=60000;times=1\", \"m/ok\"]\n\
                   [routes.s]\ncandidates = [\"m/status=429;wait-ms=60000;times=1\", \"m/status=500\"]",
    )
    .await;
    assert_eq!(rig.chat("r", false).await.status, 200);
    let reply = rig.chat("s", false).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.took < Duration::from_millis(400), "{:?}", reply.took);
}

#[tokio::test]
async fn an_engine_in_this_process_is_a_provider_like_any() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let n_connections = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&n_connections);
    let engine: carat_gateway::Engine = Arc::new(move |mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                let head = String::from_utf8_lossy(&buffer[..n]).into_owned();
                assert!(head.starts_with("POST /v1/chat/completions") && !head.contains("authorization"));
                let body = crate::support::mock::WHOLE;
                let text = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
    });
    let more = "---[providers.local]\nlike = \"engine\"\n[routes.r]\nnever-leaves-this-machine = true\ncandidates = [\"local/gemma\"]";
    let rig = crate::support::rig_around(more, "client-key", engine).await;
    for _ in 0..3 {
        let reply = rig.chat("r", false).await;
        assert_eq!(
            (reply.status, reply.text.as_str()),
            (200, crate::support::mock::WHOLE)
        );
    }
    assert_eq!(n_connections.load(Ordering::Relaxed), 1, "it is kept");
    // Without one it is a provider that cannot be reached.
    let rig = crate::support::rig(more).await;
    assert_eq!(rig.chat("r", false).await.status, 502);
}
