//! Keys, budgets and what is written down, with a ledger behind the gateway.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carat_ledger::{Admin, Budget, Limits, Micros, NewKey, Outcome, Period};
use http_body_util::BodyExt;

use crate::support::{Rig, chat, rig_with, stopped};

fn limited(limits: Limits) -> NewKey {
    NewKey {
        limits,
        ..NewKey::default()
    }
}

/// A gateway with a ledger and one key. A million tokens of output cost a dollar: a token a millionth.
pub(crate) async fn paid(rights: NewKey, more: &str) -> (Rig, tempfile::TempDir) {
    paid_with("", rights, more).await
}

/// The same with settings of the whole gateway.
async fn paid_with(top: &str, rights: NewKey, more: &str) -> (Rig, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("l.db");
    let mut admin = Admin::open(&path).unwrap();
    let name = "k".to_string();
    let secret = admin.add_key(&NewKey { name, ..rights }, 1).unwrap();
    let config = format!("{top}---[ledger]\npath = '{}'\n{more}", path.display());
    (rig_with(&config, secret.text()).await, folder)
}

const PRICED: &str =
    "[prices.\"m/ok\"]\ninput = 0\noutput = 1\n[prices.\"m/slow=150\"]\ninput = 0\noutput = 1\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_for_fifty_requests_is_spent_to_the_last() {
    let budget = Some(Budget {
        limit: Micros(50 * 4),
        period: Period::Day,
    });
    let rights = limited(Limits {
        budget,
        ..Limits::default()
    });
    let (rig, folder) = paid(rights, PRICED).await;
    let rig = Arc::new(rig);
    // The mock's answers have four tokens: what is held is what it will cost.
    let body = chat("m/slow=150", false).replace("\"stream\"", "\"max_tokens\":4,\"stream\"");
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (rig, body) = (rig.clone(), body.clone());
            tokio::spawn(async move { rig.post("/v1/chat/completions", &body).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.unwrap());
    }
    let count = |status: u16| statuses.iter().filter(|other| **other == status).count();
    assert_eq!((count(200), count(402)), (50, 150), "{statuses:?}");
    assert_eq!(
        rig.mock.requests.load(Ordering::Relaxed),
        50,
        "nobody else cost anything"
    );
    let mut admin = stopped(Arc::into_inner(rig).unwrap(), &folder).await;
    let total = admin.keys().unwrap()[0].1;
    assert_eq!((total.spent, total.requests), (Micros(200), 50));
}

#[tokio::test]
async fn every_ending_has_its_row() {
    let more = "[routes.r]\ncandidates = [\"m/status=500\", \"m/ok\"]\n[prices.\"m/ok\"]\ninput = 2\noutput = 1\n\
                [prices.\"m/cut=2\"]\ninput = 4\noutput = 1\n[timeouts]\nfirst-token-ms = 500";
    let (rig, folder) = paid(NewKey::default(), more).await;
    assert_eq!(rig.chat("r", false).await.status, 200);
    assert!(rig.chat("m/ok", true).await.text.ends_with("[DONE]\n\n"));
    assert!(rig.chat("m/cut=2", true).await.text.contains("error"));
    assert_eq!(rig.chat("m/status=400", false).await.status, 400);
    let mut response = rig
        .send("/v1/chat/completions", &chat("m/events=100000;gap=5", true))
        .await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let metrics = rig.get("/metrics").await.text;
    assert!(
        !metrics.contains("carat_target_price_unknown_total{target=\"m/ok\"} 1"),
        "{metrics}"
    );
    let mut admin = stopped(rig, &folder).await;
    let mut of = |outcome| admin.requests(outcome).unwrap();
    // 11 tokens in at 2 and 4 out at 1, whole and streamed; both answers say so.
    let complete = of(Some(Outcome::Complete));
    assert_eq!((complete.requests, complete.spent), (2, Micros(52)));
    let cut = of(Some(Outcome::Cut));
    // An estimate: a quarter of the prompt's bytes at 4, and of the words' at 1.
    let prompt = chat("m/cut=2", true).len().div_ceil(4) as u64;
    assert_eq!((cut.requests, cut.spent), (1, Micros(prompt * 4 + 3)));
    assert_eq!(of(Some(Outcome::Failed)).requests, 1);
    assert_eq!(of(Some(Outcome::ClientGone)).requests, 1);
    assert_eq!(of(None).requests, 0);
}

#[tokio::test]
async fn an_answer_that_says_nothing_of_usage_is_estimated() {
    let more = "[prices.\"m/no-usage\"]\ninput = 4\noutput = 1\n";
    let (rig, folder) = paid(NewKey::default(), more).await;
    let reply = rig.chat("m/no-usage", false).await;
    assert_eq!(reply.status, 200);
    let mut admin = stopped(rig, &folder).await;
    let complete = admin.requests(Some(Outcome::Complete)).unwrap();
    let prompt = chat("m/no-usage", false).len().div_ceil(4) as u64;
    let answer = reply.text.len().div_ceil(4) as u64;
    assert_eq!(complete.spent, Micros(prompt * 4 + answer));
}

#[tokio::test]
async fn an_answer_of_no_use_is_paid_as_its_provider_says() {
    let (rig, folder) = paid(NewKey::default(), "").await;
    let price = |name: &str| format!("[prices.\"gemini/{name}\"]\ninput = 100\noutput = 1\n");
    let text = format!(
        "[providers.gemini]\nbase-url = \"http://{}/v1beta\"\nkey = \"AIza-key\"\n{}{}",
        rig.mock_address,
        price("unfinished"),
        price("blocked")
    );
    let config = carat_gateway::Config::parse(&text, &crate::support::env()).unwrap();
    rig.gateway.replace(config);
    for (name, is_stream, status) in [
        ("unfinished", false, 502),
        ("blocked", false, 400),
        ("blocked", true, 400),
    ] {
        let reply = rig.chat(&format!("gemini/{name}"), is_stream).await;
        assert_eq!(reply.status, status, "{name}: {}", reply.text);
    }
    let metrics = rig.get("/metrics").await.text;
    assert!(
        metrics.contains("carat_target_output_tokens_total{target=\"gemini/unfinished\"} 4"),
        "{metrics}"
    );
    let mut admin = stopped(rig, &folder).await;
    let failed = admin.requests(Some(Outcome::Failed)).unwrap();
    // 11 tokens in and 4 out each.
    assert_eq!((failed.requests, failed.spent), (3, Micros(3 * 1104)));
}

#[tokio::test]
async fn who_is_not_heard_to_the_end_is_paid_too() {
    let more = "[routes.r]\nhedge = 60\ncandidates = [\"m/slow=3000\", \"m/ok\"]\n\
                [prices.\"m/ok\"]\ninput = 0\noutput = 1\n[prices.\"m/slow=3000\"]\ninput = 2\noutput = 1\n";
    let (rig, folder) = paid(NewKey::default(), more).await;
    assert_eq!(rig.chat("r", false).await.status, 200);
    let mut admin = stopped(rig, &folder).await;
    let complete = admin.requests(Some(Outcome::Complete)).unwrap();
    let prompt = chat("r", false).len().div_ceil(4) as u64;
    assert_eq!(complete.spent, Micros(4 + prompt * 2));
}

#[tokio::test]
async fn keys_are_asked_for_and_limits_are_told() {
    let rights = limited(Limits {
        models: vec!["m/ok".into()],
        requests_per_minute: Some(2),
        ..Limits::default()
    });
    let more = "[routes.s]\ncandidates = [\"m/ok\", \"m/other\"]";
    let (mut rig, _folder) = paid(rights, more).await;
    assert_eq!(rig.chat("m/other", false).await.status, 403);
    // What may not be asked for is not told of either.
    for (name, seen, explained) in [("m/ok", 200, 200), ("m/other", 404, 403), ("s", 404, 403)] {
        let listed: serde_json::Value = serde_json::from_str(&rig.get("/v1/models").await.text).unwrap();
        let mut ids = listed["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| &model["id"]);
        assert_eq!(ids.any(|id| id == name), seen == 200, "{name}");
        assert_eq!(
            rig.get(&format!("/v1/models/{name}")).await.status,
            seen,
            "{name}"
        );
        assert_eq!(
            rig.post("/v1/route", &chat(name, false)).await.status,
            explained,
            "{name}"
        );
    }
    assert_eq!(rig.chat("m/ok", false).await.status, 200);
    assert_eq!(rig.chat("m/ok", false).await.status, 200);
    let limited = rig.chat("m/ok", false).await;
    assert_eq!(
        (limited.status, limited.headers["retry-after"].to_str().unwrap()),
        (429, "30")
    );
    assert_eq!(rig.get("/v1/models").await.status, 200);
    rig.secret = "sk-wrong".into();
    let refused = rig.chat("m/ok", false).await;
    assert_eq!(
        (
            refused.status,
            refused.headers["x-should-retry"].to_str().unwrap()
        ),
        (401, "false")
    );
    assert_eq!(rig.get("/v1/models").await.status, 401);
    assert_eq!(rig.get("/metrics").await.status, 401);
    assert_eq!(rig.get("/health").await.status, 200);
}

#[tokio::test]
async fn every_answer_to_every_prompt_is_held_for() {
    let budget = Some(Budget {
        limit: Micros(99),
        period: Period::Day,
    });
    let rights = limited(Limits {
        budget,
        ..Limits::default()
    });
    let (rig, _folder) = paid(rights, PRICED).await;
    let status = async |prompt: &str, n: u64| {
        let body = format!("{{\"model\":\"m/ok\",\"prompt\":{prompt},\"n\":{n},\"max_tokens\":10}}");
        rig.post("/v1/completions", &body).await.status
    };
    // A token costs a millionth: ten answers may cost a hundred.
    assert_eq!(status("[\"a\",\"b\",\"c\",\"d\",\"e\"]", 2).await, 402);
    assert_eq!(status("[[1],[2],[3],[4],[5]]", 2).await, 402);
    assert_eq!(status("\"a\"", 10).await, 402);
    assert_eq!(rig.mock.requests.load(Ordering::Relaxed), 0);
    assert_eq!(status("[1,2,3,4,5]", 2).await, 200, "one prompt of five tokens");
    assert_eq!(status("[\"a\",\"b\"]", 3).await, 200);
}

#[tokio::test]
async fn past_a_soft_limit_something_cheaper_answers() {
    let limits = Limits {
        soft: Some(Budget {
            limit: Micros(4),
            period: Period::Day,
        }),
        fallback: Some("small".into()),
        models: vec!["m/ok".into()],
        ..Limits::default()
    };
    let more = format!(
        "{PRICED}[routes.small]\ncandidates = [\"m/cheap\"]\n[prices.\"m/cheap\"]\ninput = 0\noutput = 0\n"
    );
    let (rig, folder) = paid(limited(limits), &more).await;
    let first = rig.chat("m/ok", false).await;
    assert!(first.status == 200 && !first.headers.contains_key("x-carat-budget"));
    let second = rig.chat("m/ok", false).await;
    assert!(
        second.route().starts_with("m/cheap; route=small"),
        "{}",
        second.route()
    );
    assert_eq!(second.headers["x-carat-downgraded"], "m/ok -> small");
    let told = second.headers["x-carat-budget"].to_str().unwrap();
    assert_eq!(told, "soft limit passed: key spent $0.000004 of $0.000004 a day");
    assert_eq!(
        rig.chat("small", false).await.status,
        403,
        "it may not be asked for by name"
    );
    let mut admin = stopped(rig, &folder).await;
    assert_eq!(admin.keys().unwrap()[0].1.spent, Micros(4));
}

#[tokio::test]
async fn who_leaves_before_the_answer_pays_an_estimate() {
    let more = "[prices.\"m/slow=60000\"]\ninput = 4\noutput = 1\n";
    let (rig, folder) = paid(NewKey::default(), more).await;
    let body = chat("m/slow=60000", false);
    let leaving = tokio::time::timeout(
        Duration::from_millis(500),
        rig.post("/v1/chat/completions", &body),
    );
    assert!(leaving.await.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut admin = stopped(rig, &folder).await;
    let gone = admin.requests(Some(Outcome::ClientGone)).unwrap();
    let prompt = body.len().div_ceil(4) as u64 * 4;
    // Half a second of an answer is 25 tokens.
    assert!(
        (prompt + 20..prompt + 60).contains(&gone.spent.0),
        "{gone:?}, {prompt}"
    );
}

#[tokio::test]
async fn who_is_no_longer_waited_for_has_read_the_prompt() {
    let more = "attempts = 2\n---[routes.r]\ncandidates = [\"m/slow=60000\", \"m/ok\"]\n\
                [prices.\"m/slow=60000\"]\ninput = 4\noutput = 1\n[prices.\"m/ok\"]\ninput = 0\noutput = 1\n\
                [timeouts]\nwhole-ms = 300\n";
    let (top, more) = more.split_once("---").unwrap();
    let (rig, folder) = paid_with(top, NewKey::default(), more).await;
    let reply = rig.chat("r", false).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let alone = rig.chat("m/slow=60000", false).await;
    assert_eq!(alone.status, 504, "{}", alone.text);
    let n_attempts = alone.route().matches("slow=60000:slow").count() as u64;
    let mut admin = stopped(rig, &folder).await;
    let mut spent = |outcome| admin.requests(Some(outcome)).unwrap().spent.0;
    let prompt = |model: &str| chat(model, false).len().div_ceil(4) as u64 * 4;
    assert_eq!(spent(Outcome::Complete), prompt("r") + 4);
    assert!(n_attempts > 0);
    assert_eq!(spent(Outcome::Failed), prompt("m/slow=60000") * n_attempts);
}

#[tokio::test]
async fn who_leaves_a_race_pays_for_both() {
    let more = "[routes.r]\nhedge = 60\ncandidates = [\"m/slow=60000\", \"m/slow=60001\"]\n\
                [prices.\"m/slow=60000\"]\ninput = 400\noutput = 1\n[prices.\"m/slow=60001\"]\ninput = 500\noutput = 1\n";
    let (rig, folder) = paid(NewKey::default(), more).await;
    let body = chat("r", false);
    let leaving = tokio::time::timeout(
        Duration::from_millis(600),
        rig.post("/v1/chat/completions", &body),
    );
    assert!(leaving.await.is_err());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut admin = stopped(rig, &folder).await;
    let gone = admin.requests(Some(Outcome::ClientGone)).unwrap();
    let prompts = body.len().div_ceil(4) as u64 * 900;
    // Half a second of an answer is 25 tokens, of two it is 50.
    assert!(
        (prompts + 40..prompts + 120).contains(&gone.spent.0),
        "{gone:?}, {prompts}"
    );
}

#[tokio::test]
async fn several_answers_are_held_several_times() {
    let budget = Some(Budget {
        limit: Micros(30),
        period: Period::Day,
    });
    let rights = limited(Limits {
        budget,
        ..Limits::default()
    });
    let (rig, _folder) = paid(rights, PRICED).await;
    let with = |more: &str| chat("m/ok", false).replace("\"stream\"", &format!("{more},\"stream\""));
    let status = async |more: &str| rig.post("/v1/chat/completions", &with(more)).await.status;
    assert_eq!(status("\"max_tokens\":10,\"n\":4").await, 402);
    assert_eq!(
        status("\"max_tokens\":10,\"max_completion_tokens\":31").await,
        402
    );
    // However a bound is written, it is the same bound.
    for bound in ["31.0", "3.1e1", "\"31\""] {
        assert_eq!(status(&format!("\"max_tokens\":{bound}")).await, 402, "{bound}");
    }
    assert_eq!(status("\"max_tokens\":10,\"n\":4.0").await, 402);
    assert_eq!(status("\"max_tokens\":10,\"n\":3").await, 200);
}

#[tokio::test]
async fn a_tier_without_a_price_is_refused_where_there_is_a_budget() {
    let budget = Some(Budget {
        limit: Micros(1000),
        period: Period::Day,
    });
    let rights = limited(Limits {
        budget,
        ..Limits::default()
    });
    let with = |more: &str| {
        chat("m/ok", false).replace("\"stream\"", &format!("\"max_tokens\":4,{more},\"stream\""))
    };
    let (rig, _folder) = paid(rights.clone(), PRICED).await;
    for (more, expected) in [
        ("\"service_tier\":\"priority\"", 403),
        ("\"speed\":\"fast\"", 403),
        ("\"service_tier\":\"flex\"", 200),
        ("\"service_tier\":null,\"speed\":\"standard\"", 200),
    ] {
        let reply = rig.post("/v1/chat/completions", &with(more)).await;
        assert_eq!(reply.status, expected, "{more}: {}", reply.text);
    }
    let allowed = PRICED.replacen("[prices", "unknown-price = \"allow\"\n[prices", 1);
    for (rights, more) in [(rights, allowed.as_str()), (NewKey::default(), PRICED)] {
        let (rig, _folder) = paid(rights, more).await;
        let reply = rig
            .post("/v1/chat/completions", &with("\"service_tier\":\"priority\""))
            .await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
}

#[tokio::test]
async fn what_stays_here_has_no_fallback_elsewhere() {
    let limits = Limits {
        soft: Some(Budget {
            limit: Micros(4),
            period: Period::Day,
        }),
        fallback: Some("small".into()),
        ..Limits::default()
    };
    let more = format!(
        "{PRICED}[providers.far]\nbase-url = \"http://127.0.0.1:9/v1\"\nlocal = false\n\
         [routes.small]\ncandidates = [\"far/x\"]\n[prices.\"far/x\"]\ninput = 0\noutput = 0\n\
         [routes.here]\nnever-leaves-this-machine = true\ncandidates = [\"m/ok\"]\n"
    );
    let (rig, _folder) = paid(limited(limits), &more).await;
    assert_eq!(rig.chat("here", false).await.status, 200);
    let past = rig.chat("here", false).await;
    assert!(past.route().starts_with("m/ok; route=here"), "{}", past.route());
    let elsewhere = rig.chat("m/ok", false).await;
    assert!(elsewhere.route().contains("route=small"), "{}", elsewhere.route());
}
