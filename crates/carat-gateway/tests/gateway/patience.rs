//! Clients that say how long they wait, as OpenAI's and Anthropic's libraries do.

use std::sync::atomic::Ordering;
use std::time::Duration;

use carat_ledger::{NewKey, Outcome};
use http::Request;
use http_body_util::{BodyExt, Full};

use crate::money::paid;
use crate::support::{Reply, Rig, chat, rig, rig_here, stopped};

impl Rig {
    /// A chat request of a client that waits so many seconds for a word.
    async fn hurried(&self, seconds: &str, model: &str, is_stream: bool) -> Reply {
        let request = Request::post(format!("http://{}/v1/chat/completions", self.address))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.secret))
            .header("x-stainless-read-timeout", seconds)
            .body(Full::from(chat(model, is_stream)))
            .unwrap();
        self.told(request).await
    }
}

#[tokio::test]
async fn a_stream_may_last_longer_than_its_client_waits_for_a_word() {
    let rig = rig("").await;
    let reply = rig.hurried("0.4", "m/events=20;gap=50", true).await;
    assert!(reply.text.ends_with("data: [DONE]\n\n"), "{}", reply.text);
    assert!(reply.took > Duration::from_millis(800), "{:?}", reply.took);
    // What has not begun by then is given up.
    for is_stream in [false, true] {
        let reply = rig.hurried("0.4", "m/slow=5000", is_stream).await;
        assert_eq!(reply.status, 504, "{}", reply.text);
        assert!(reply.took < Duration::from_secs(3), "{:?}", reply.took);
    }
}

#[tokio::test]
async fn who_gives_up_pays_like_who_leaves() {
    let more = "[prices.\"m/slow=60000\"]\ninput = 4\noutput = 1\n";
    let (rig, folder) = paid(NewKey::default(), more).await;
    let reply = rig.hurried("0.5", "m/slow=60000", false).await;
    assert_eq!(reply.status, 504, "{}", reply.text);
    let mut admin = stopped(rig, &folder).await;
    let gone = admin.requests(Some(Outcome::ClientGone)).unwrap();
    let prompt = chat("m/slow=60000", false).len().div_ceil(4) as u64 * 4;
    // Half a second of an answer is 25 tokens.
    assert!(
        (prompt + 20..prompt + 60).contains(&gone.spent.0),
        "{gone:?}, {prompt}"
    );
}

#[tokio::test]
async fn thoughts_that_nobody_saw_are_paid_for() {
    let model = "m/slow=600;events=1000;gap=20";
    let more = format!("[prices.\"{model}\"]\ninput = 4\noutput = 1\n");
    let (rig, folder) = paid(NewKey::default(), &more).await;
    let body = chat(model, true);
    let mut response = rig.send("/v1/chat/completions", &body).await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut admin = stopped(rig, &folder).await;
    let gone = admin.requests(Some(Outcome::ClientGone)).unwrap();
    let prompt = body.len().div_ceil(4) as u64 * 4;
    // 0.6 s before the first words are 30 tokens; the words themselves are fewer.
    assert!(
        (prompt + 30..prompt + 90).contains(&gone.spent.0),
        "{gone:?}, {prompt}"
    );
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_nothing_when_its_time_is_over() {
    let model = "m/flood";
    let more = "[timeouts]\ntotal-ms = 700\n";
    let (rig, folder) = paid(NewKey::default(), more).await;
    let mut response = rig.send("/v1/chat/completions", &chat(model, true)).await;
    response.body_mut().frame().await.unwrap().unwrap();
    let in_flight = format!("carat_target_requests_in_flight{{target=\"{model}\"}}");
    let holds = async |n: u8| {
        rig.get("/metrics")
            .await
            .text
            .contains(&format!("{in_flight} {n}\n"))
    };
    assert!(holds(1).await);
    let let_go = async {
        while !holds(0).await || rig.mock.left.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), let_go)
        .await
        .unwrap();
    // Who comes for the rest after all is told.
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    let rest = String::from_utf8_lossy(&rest);
    let end = &rest[rest.len() - 300..];
    assert!(end.contains("total-ms") && !end.contains("[DONE]"), "{end}");
    let mut admin = stopped(rig, &folder).await;
    assert_eq!(admin.requests(Some(Outcome::ClientGone)).unwrap().requests, 1);
}

#[tokio::test]
async fn thoughts_after_the_first_words_are_paid_for_too() {
    // Words, and then nothing for as long as somebody waits.
    let model = "m/stall=2";
    let more = format!("[prices.\"{model}\"]\ninput = 4\noutput = 1\n");
    let (rig, folder) = paid(NewKey::default(), &more).await;
    let body = chat(model, true);
    let mut response = rig.send("/v1/chat/completions", &body).await;
    while let Ok(Some(frame)) =
        tokio::time::timeout(Duration::from_millis(1500), response.body_mut().frame()).await
    {
        frame.unwrap();
    }
    drop(response);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut admin = stopped(rig, &folder).await;
    let gone = admin.requests(Some(Outcome::ClientGone)).unwrap();
    let prompt = body.len().div_ceil(4) as u64 * 4;
    // 1.5 s of silence are 75 tokens; the words are three.
    assert!(
        (prompt + 70..prompt + 130).contains(&gone.spent.0),
        "{gone:?}, {prompt}"
    );
}

#[tokio::test]
async fn a_hurry_says_nothing_of_who_was_asked() {
    let rig = rig("").await;
    let hurried = || rig.hurried("1.1", "m/slow=1500", false);
    let replies = tokio::join!(hurried(), hurried(), hurried(), hurried(), hurried());
    let replies = [replies.0, replies.1, replies.2, replies.3, replies.4];
    assert!(replies.iter().all(|reply| reply.status == 504));
    let metrics = rig.get("/metrics").await.text;
    assert!(
        metrics.contains("carat_target_resting{target=\"m/slow=1500\"} 0"),
        "{metrics}"
    );
    assert_eq!(rig.chat("m/slow=1500", false).await.status, 200);
}

#[tokio::test]
async fn nobody_else_is_asked_when_its_client_has_given_up() {
    // On one thread, so that connections to providers are at hand for all requests.
    let rig = rig_here("---[routes.r]\ncandidates = [\"m/slow=3000\", \"m/ok\"]").await;
    let warm = tokio::join!(rig.chat("m/slow=50", false), rig.chat("m/slow=50", false));
    assert_eq!((warm.0.status, warm.1.status), (200, 200));
    let reply = rig.hurried("0.3", "r", false).await;
    assert_eq!(reply.status, 504, "{}", reply.text);
    assert!(
        reply.route().ends_with("attempts=1; failed=m/slow=3000:slow"),
        "{}",
        reply.route()
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.mock.of("ok"), 0);
}
