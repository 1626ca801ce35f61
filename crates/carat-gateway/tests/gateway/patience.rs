//! Clients that say how long they wait, as OpenAI's and Anthropic's libraries do.

use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Full};

use crate::support::{Reply, Rig, chat, rig};

impl Rig {
    /// A chat request of a client that waits so many seconds for a word.
    async fn hurried(&self, seconds: &str, model: &str, is_stream: bool) -> Reply {
        let started = std::time::Instant::now();
        let request = Request::post(format!("http://{}/v1/chat/completions", self.address))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.secret))
            .header("x-stainless-read-timeout", seconds)
            .body(Full::from(chat(model, is_stream)))
            .unwrap();
        let (head, body) = self.client.request(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
            took: started.elapsed(),
        }
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
