//! The admin API of a running gateway.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carat_gateway::{Config, Source, administer, listen};
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::log::Log;
use crate::support::{Rig, config, env, rig_with};

const ADMIN_KEY: &str = "admin-key-of-the-tests";

struct Office {
    rig: Rig,
    address: std::net::SocketAddr,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Office {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let more = format!(
            "attempts = 2\n---[ledger]\npath = '{}'\n[admin]\n[prices.\"m/ok\"]\ninput = 0\noutput = 1\n",
            folder.path().join("l.db").display()
        );
        let rig = rig_with(&more, "none yet").await;
        let path = folder.path().join("gateway.toml");
        std::fs::write(&path, config(rig.mock_address, &more)).unwrap();
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let source = Source {
            path: path.clone(),
            env: env(),
        };
        let gateway = Arc::clone(&rig.gateway);
        tokio::spawn(async move { administer(gateway, listener, source).await.unwrap() });
        Self {
            rig,
            address,
            path,
            _folder: folder,
        }
    }

    async fn ask(&self, key: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {key}"))
            .body(Full::<Bytes>::from(text))
            .unwrap();
        let (head, body) = self.rig.client.request(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
        (head.status.as_u16(), value)
    }

    async fn good(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, value) = self
            .ask(ADMIN_KEY, method, &format!("/admin/v1/{path}"), &body)
            .await;
        assert_eq!(status, 200, "{method} {path}: {value}");
        value
    }

    async fn get(&self, path: &str) -> Value {
        self.good("GET", path, Value::Null).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_accounts_are_made_used_seen_and_taken_back() {
    let mut office = Office::open().await;
    office
        .good(
            "PUT",
            "teams/research",
            json!({"limits": {"budget": {"limit_micros": 100000, "period": "day"}}}),
        )
        .await;
    let new = json!({"name": "alice", "team": "research", "limits": {"models": ["m/*"]}});
    let made = office.good("POST", "keys", new.clone()).await;
    let secret = made["key"].as_str().unwrap().to_string();
    let (status, again) = office.ask(ADMIN_KEY, "POST", "/admin/v1/keys", &new).await;
    assert_eq!(status, 409, "{again}");
    office.rig.secret = secret.clone();
    let until = Instant::now() + Duration::from_secs(10);
    while office.rig.chat("m/ok", false).await.status == 401 {
        assert!(Instant::now() < until, "the gateway notices");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(office.rig.chat("m/ok", true).await.status, 200);
    let until = Instant::now() + Duration::from_secs(10);
    let rows = loop {
        let all = office.get("requests?key=alice").await;
        if all["requests"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["outcome"] == "complete")
            .count()
            == 2
        {
            break office.get("requests?key=alice&outcome=complete&limit=1").await;
        }
        assert!(Instant::now() < until, "{all}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let row = &rows["requests"][0];
    assert_eq!(
        (&row["target"], &row["cost_micros"], &row["team"]),
        (&json!("m/ok"), &json!(4), &json!("research"))
    );
    let next = rows["next"].as_str().unwrap();
    let second = office.get(&format!("requests?limit=5&before={next}")).await;
    assert_eq!(second["requests"].as_array().unwrap().len(), 1, "{second}");
    for by in ["key", "team", "model", "day", "user", "project"] {
        let spend = office.get(&format!("spend?by={by}")).await;
        assert_eq!(
            (&spend["spend"][0]["micros"], &spend["spend"][0]["requests"]),
            (&json!(8), &json!(2)),
            "{by}"
        );
    }
    let key = office.get("keys/alice").await;
    assert_eq!(
        (&key["total"]["spent_micros"], &key["rights"]["team"]),
        (&json!(8), &json!("research"))
    );
    assert_eq!(
        office.get("teams/research").await["limits"]["budget"]["limit_micros"],
        100000
    );
    assert_eq!(office.get("targets").await["targets"][0]["answers"], 2);
    assert_eq!(office.get("status").await["responses"]["2xx"], 2);
    let rotated = office
        .good("POST", "keys/alice/rotate", json!({"overlap_s": 60}))
        .await;
    assert_ne!(rotated["key"], json!(secret));
    office
        .good("PUT", "keys/alice", json!({"limits": {"requests_per_minute": 5}}))
        .await;
    let credit = json!({"id": "a", "scope": "team:research", "micros": 5});
    assert_eq!(
        office.good("POST", "credits", credit.clone()).await["is_new"],
        true
    );
    assert_eq!(office.good("POST", "credits", credit).await["is_new"], false);
    assert_eq!(office.get("credits").await["credits"][0]["micros"], 5);
    office.good("DELETE", "keys/alice", Value::Null).await;
    office.good("DELETE", "teams/research", Value::Null).await;
    let audit = office.get("audit").await;
    let acts: Vec<&str> = audit["audit"]
        .as_array()
        .unwrap()
        .iter()
        .map(|act| act["act"].as_str().unwrap())
        .collect();
    assert_eq!(
        acts,
        [
            "remove team",
            "revoke key",
            "top up",
            "set key",
            "rotate key",
            "add key",
            "set team"
        ]
    );
    assert_eq!(audit["audit"][0]["actor"], "admin key");
    let everything = format!("{audit}{}{rows}", office.get("keys").await);
    assert!(!everything.contains(&secret), "texts of keys are shown once");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_act_and_only_viewers_look() {
    let office = Office::open().await;
    office.good("PUT", "users/root", json!({"role": "admin"})).await;
    office.good("PUT", "users/eye", json!({"role": "viewer"})).await;
    let mut keys = Vec::new();
    for (name, user) in [
        ("a", Some("root")),
        ("b", Some("eye")),
        ("c", Some("plain")),
        ("d", None),
    ] {
        let made = office
            .good("POST", "keys", json!({"name": name, "user": user}))
            .await;
        keys.push(made["key"].as_str().unwrap().to_string());
    }
    let until = Instant::now() + Duration::from_secs(10);
    while office
        .ask(&keys[0], "GET", "/admin/v1/keys", &Value::Null)
        .await
        .0
        != 200
    {
        assert!(Instant::now() < until, "the gateway notices");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let new = json!({"name": "new"});
    let mut statuses = Vec::new();
    for key in &keys {
        let read = office.ask(key, "GET", "/admin/v1/spend", &Value::Null).await.0;
        let written = office.ask(key, "POST", "/admin/v1/keys", &new).await.0;
        statuses.push((read, written));
    }
    assert_eq!(statuses, [(200, 200), (200, 403), (403, 403), (401, 401)]);
    assert_eq!(
        office.get("audit?limit=1").await["audit"][0]["actor"],
        "user root"
    );
    for (path, status) in [
        ("/admin/v1/keys", 401),
        ("/metrics", 401),
        ("/admin/v1/nothing", 401),
        ("/", 200),
    ] {
        assert_eq!(
            office
                .ask("admin-key-of-the-test", "GET", path, &Value::Null)
                .await
                .0,
            status,
            "{path}"
        );
    }
    assert_eq!(
        office.ask(ADMIN_KEY, "GET", "/metrics", &Value::Null).await.0,
        200
    );
    for (method, path, status) in [
        ("GET", "/admin/v1/nothing", 404),
        ("GET", "/v1/keys", 404),
        ("GET", "/admin/v1/keys/nobody", 404),
        ("PATCH", "/admin/v1/keys", 400),
        ("GET", "/admin/v1/spend?by=magic", 400),
        ("GET", "/admin/v1/requests?limit=x", 400),
        ("POST", "/admin/v1/keys", 400),
        ("DELETE", "/admin/v1/keys/nobody", 409),
    ] {
        assert_eq!(
            office.ask(ADMIN_KEY, method, path, &Value::Null).await.0,
            status,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn bodies_that_are_too_large_or_do_not_come_are_told_apart() {
    let office = Office::open().await;
    let large = json!({"name": "x".repeat(100_000)});
    let (status, value) = office.ask(ADMIN_KEY, "POST", "/admin/v1/keys", &large).await;
    assert_eq!(status, 413, "{value}");
    let mut stream = tokio::net::TcpStream::connect(office.address).await.unwrap();
    let head = format!(
        "POST /admin/v1/keys HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\ncontent-length: 9\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    // Its connection is closed, since the rest of the body may still come.
    tokio::time::timeout(Duration::from_secs(30), read)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_read_anew_on_demand() {
    let office = Office::open().await;
    let text = std::fs::read_to_string(&office.path).unwrap();
    std::fs::write(
        &office.path,
        format!("{text}\n[routes.new]\ncandidates = [\"m/ok\"]\n"),
    )
    .unwrap();
    office.good("POST", "reload", Value::Null).await;
    assert_eq!(office.get("status").await["routes"], json!(["new"]));
    std::fs::write(&office.path, "listen = 7").unwrap();
    let (status, value) = office
        .ask(ADMIN_KEY, "POST", "/admin/v1/reload", &Value::Null)
        .await;
    assert_eq!(status, 400, "{value}");
    assert_eq!(
        office.get("status").await["routes"],
        json!(["new"]),
        "the one before is in force"
    );
    assert_eq!(office.get("audit").await["audit"][1]["detail"], "taken");
}

#[test]
fn an_admin_api_without_a_key_or_beyond_this_machine_is_refused() {
    let refused = |text: &str, env: &carat_gateway::Env| Config::parse(text, env).unwrap_err().to_string();
    let none: carat_gateway::Env = Arc::new(|_| None);
    let short: carat_gateway::Env = Arc::new(|_| Some("short".into()));
    let ledger = "[ledger]\npath = \"x\"\n";
    assert!(refused("[admin]\n", &env()).contains("[ledger]"));
    assert!(refused(&format!("{ledger}[admin]\n"), &none).contains("CARAT_ADMIN_KEY"));
    assert!(refused(&format!("{ledger}[admin]\n"), &short).contains("16"));
    let remote = format!("{ledger}[admin]\nlisten = \"0.0.0.0:1\"\n");
    assert!(refused(&remote, &env()).contains("allow-remote"));
    assert!(
        Config::parse(&format!("{remote}allow-remote = true\n"), &env())
            .unwrap()
            .admin()
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_log_no_error_and_no_answer() {
    let log = Log::of_all_tests();
    let mut office = Office::open().await;
    let made = office.good("POST", "keys", json!({"name": "k"})).await;
    let secret = made["key"].as_str().unwrap().to_string();
    let rotated = office
        .good("POST", "keys/k/rotate", json!({"overlap_s": 60}))
        .await;
    let rotated = rotated["key"].as_str().unwrap().to_string();
    office.rig.secret = secret.clone();
    let until = Instant::now() + Duration::from_secs(10);
    while office.rig.chat("m/ok", false).await.status == 401 {
        assert!(Instant::now() < until, "the gateway notices");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut seen = String::new();
    for model in [
        "m/ok",
        "m/status=401",
        "m/status=500",
        "m/status=429",
        "m/reset",
        "m/html",
        "m/bad-json",
        "m/cut=2",
        "m/fail=1",
        "x/y",
    ] {
        for is_stream in [false, true] {
            let reply = office.rig.chat(model, is_stream).await;
            seen += &format!("{:?} {}", reply.headers, reply.text);
        }
    }
    for path in [
        "keys", "keys/k", "status", "targets", "requests", "spend", "audit", "users",
    ] {
        seen += &office.get(path).await.to_string();
    }
    for path in ["/v1/models", "/metrics", "/health", "/nothing"] {
        seen += &office.rig.get(path).await.text;
    }
    let logged = log.text();
    assert!(logged.contains("a target failed"), "the log is heard");
    for text in ["sk-mock-secret", ADMIN_KEY, &secret, &rotated] {
        assert!(!seen.contains(text), "{text} in an answer");
        assert!(!logged.contains(text), "{text} in the log");
    }
}
