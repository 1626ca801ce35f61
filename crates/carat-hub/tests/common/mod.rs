//! A small web server and a fake hub on it: ranges, redirects to another port, and faults on demand.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carat_hub::{Event, Hub, HubSettings, LocalModel, Plan, Progress, Resolution};
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const PIECE: u64 = 64 << 10;

/// What the server saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Seen {
    /// `(start, end)` of the asked range, half-open.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let (start, end) = self
            .headers
            .get("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((start.parse().ok()?, end.parse::<u64>().ok()? + 1))
    }
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut_after: Option<usize>,
    /// After the (cut) body keep the connection open and silent.
    pub(crate) hang: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut_after: None,
            hang: false,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, handler): (_, Arc<Handler>) = (Arc::clone(&seen), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
                std::thread::spawn(move || serve(stream, &log, &*handler));
            }
        });
        Server { address, seen }
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Seen>>, handler: &Handler) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let request = Seen {
        method,
        path,
        headers,
    };
    log.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-length"))
    {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    let body = match request.method.as_str() {
        "HEAD" => &[][..],
        _ => &reply.body[..reply.cut_after.unwrap_or(reply.body.len()).min(reply.body.len())],
    };
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
    let _ = stream.flush();
    if reply.hang {
        // Longer than any stall timeout of the tests; the client goes first.
        let mut rest = Vec::new();
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let _ = std::io::Read::read_to_end(&mut reader, &mut rest);
    }
}

/// How the storage host misbehaves.
#[derive(Default)]
pub(crate) struct Faults {
    /// So many answers are given, then 503.
    pub(crate) dead_after: Option<usize>,
    /// So many answers are given, the next ones fall silent in the middle.
    pub(crate) hang_after: Option<usize>,
    /// So many answers are cut in the middle.
    pub(crate) cut_first: usize,
    /// So many answers fall silent in the middle.
    pub(crate) hang_first: usize,
    /// Ignores `Range`.
    pub(crate) no_ranges: bool,
    /// Speaks of this total in `Content-Range`.
    pub(crate) total: Option<u64>,
    /// So many answers are a page of something in between, with status 200.
    pub(crate) page_first: usize,
    /// Speaks of this length of a whole file.
    pub(crate) length: Option<u64>,
    /// Starts each range so many bytes too late.
    pub(crate) shift: u64,
}

/// Status and `Retry-After` in seconds.
type Refusals = Vec<(u16, Option<u64>)>;

/// A hub with one repository `o/r`, whose files lie on a second server.
pub(crate) struct FakeHub {
    pub(crate) hub: Server,
    pub(crate) storage: Server,
    pub(crate) faults: Arc<Mutex<Faults>>,
    pub(crate) answered: Arc<AtomicUsize>,
    pub(crate) files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Instead of the true ones: digest, size.
    pub(crate) claims: Arc<Mutex<(Option<String>, Option<u64>)>>,
    /// Extra names in the file list.
    pub(crate) extra: Arc<Mutex<Vec<String>>>,
    /// Status and headers of the next answers of the hub itself.
    pub(crate) refusals: Arc<Mutex<Refusals>>,
    /// Small files are served by the hub itself, as the true one does.
    pub(crate) inline_below: usize,
}

pub(crate) fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that differ everywhere and begin as a GGUF file.
pub(crate) fn gguf(len: usize) -> Vec<u8> {
    let mut state = 12345u32;
    let noise = (0..len).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let mut bytes: Vec<u8> = noise.collect();
    bytes[..4].copy_from_slice(b"GGUF");
    bytes
}

impl FakeHub {
    pub(crate) fn start(files: &[(&str, Vec<u8>)]) -> FakeHub {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(n, b)| ((*n).to_owned(), b.clone())).collect();
        let files = Arc::new(Mutex::new(files));
        let faults = Arc::new(Mutex::new(Faults::default()));
        let answered = Arc::new(AtomicUsize::new(0));
        let storage = {
            let (files, faults, answered) = (Arc::clone(&files), Arc::clone(&faults), Arc::clone(&answered));
            Server::start(move |request| {
                storage_reply(request, &files, &mut faults.lock().unwrap(), &answered)
            })
        };
        let claims = Arc::new(Mutex::new((None, None)));
        let extra = Arc::new(Mutex::new(Vec::new()));
        let refusals = Arc::new(Mutex::new(Vec::new()));
        let inline_below = 1000;
        let hub = {
            let (files, claims, extra) = (Arc::clone(&files), Arc::clone(&claims), Arc::clone(&extra));
            let (refusals, storage) = (Arc::clone(&refusals), storage.address.clone());
            Server::start(move |request| {
                let mut refusals = refusals.lock().unwrap();
                if !refusals.is_empty() {
                    let (status, after) = refusals.remove(0);
                    let reply = Reply::new(status, "no");
                    return match after {
                        Some(seconds) => reply.header("Retry-After", seconds),
                        None => reply,
                    };
                }
                let files = files.lock().unwrap();
                hub_reply(
                    request,
                    &files,
                    &claims.lock().unwrap(),
                    &extra.lock().unwrap(),
                    &storage,
                    inline_below,
                )
            })
        };
        FakeHub {
            hub,
            storage,
            faults,
            answered,
            files,
            claims,
            extra,
            refusals,
            inline_below,
        }
    }

    /// Settings with short times, this hub and a store in `dir`.
    pub(crate) fn settings(&self, dir: &Path) -> HubSettings {
        let mut settings = quick(dir);
        settings.hf_endpoint = self.hub.address.clone();
        settings
    }

    /// Bytes asked of the storage host since it was last told to forget.
    pub(crate) fn bytes_asked(&self) -> u64 {
        self.storage
            .requests()
            .iter()
            .filter_map(Seen::range)
            .map(|(start, end)| end - start)
            .sum()
    }
}

pub(crate) fn quick(dir: &Path) -> HubSettings {
    let mut settings = HubSettings::new(dir.join("store"));
    settings.limits.connect_timeout = Duration::from_millis(500);
    settings.limits.stall_timeout = Duration::from_millis(500);
    settings.limits.backoff = Duration::from_millis(1);
    settings.limits.backoff_max = Duration::from_millis(5);
    settings.limits.piece_bytes = PIECE;
    settings.limits.save_every_bytes = 1;
    settings.limits.connections = 3;
    settings
}

fn hub_reply(
    request: &Seen,
    files: &BTreeMap<String, Vec<u8>>,
    claims: &(Option<String>, Option<u64>),
    extra: &[String],
    storage: &str,
    inline_below: usize,
) -> Reply {
    if request.path.starts_with("/api/models/o/r/") {
        let mut siblings: Vec<String> = files
            .iter()
            .map(|(name, bytes)| match bytes.len() < inline_below {
                true => format!("{{\"rfilename\":\"{name}\",\"size\":{}}}", bytes.len()),
                false => format!(
                    "{{\"rfilename\":\"{name}\",\"lfs\":{{\"sha256\":\"{}\"}}}}",
                    sha(bytes)
                ),
            })
            .collect();
        siblings.extend(extra.iter().map(|name| format!("{{\"rfilename\":\"{name}\"}}")));
        return Reply::new(
            200,
            format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", siblings.join(",")),
        );
    }
    let name = ["main", COMMIT]
        .iter()
        .find_map(|rev| request.path.strip_prefix(&format!("/o/r/resolve/{rev}/")));
    let Some((name, bytes)) = name.and_then(|name| files.get_key_value(name)) else {
        return Reply::new(404, "no");
    };
    if bytes.len() < inline_below {
        return Reply::new(200, bytes.clone())
            .header("ETag", "\"small\"")
            .header("X-Repo-Commit", COMMIT);
    }
    let digest = claims.0.clone().unwrap_or_else(|| sha(bytes));
    let reply = Reply::new(302, "moved")
        .header("Location", format!("{storage}/blob/{name}?signature=secret"))
        .header("X-Linked-Size", claims.1.unwrap_or(bytes.len() as u64))
        .header("X-Repo-Commit", COMMIT);
    match digest.is_empty() {
        true => reply,
        false => reply.header("X-Linked-Etag", format!("\"{digest}\"")),
    }
}

fn storage_reply(
    request: &Seen,
    files: &Mutex<BTreeMap<String, Vec<u8>>>,
    faults: &mut Faults,
    answered: &AtomicUsize,
) -> Reply {
    let name = request
        .path
        .split(['?'])
        .next()
        .unwrap()
        .strip_prefix("/blob/")
        .unwrap()
        .to_owned();
    let bytes = files.lock().unwrap()[&name].clone();
    if request.method == "HEAD" {
        return Reply::new(200, bytes);
    }
    let n = answered.fetch_add(1, Ordering::SeqCst);
    if faults.dead_after.is_some_and(|limit| n >= limit) {
        return Reply::new(503, "dead");
    }
    if faults.page_first > 0 {
        faults.page_first -= 1;
        return Reply::new(200, "<html>the proxy is in trouble</html>");
    }
    let mut reply = match request.range().filter(|_| !faults.no_ranges) {
        None => match faults.length {
            Some(length) => Reply::new(200, bytes).header("Content-Length", length),
            None => Reply::new(200, bytes),
        },
        Some((start, end)) => {
            let (from, to) = (start as usize, (end as usize).min(bytes.len()));
            let total = faults.total.unwrap_or(bytes.len() as u64);
            let first = start + faults.shift;
            Reply::new(206, &bytes[from.min(to)..to]).header(
                "Content-Range",
                format!("bytes {first}-{}/{total}", to.max(1) - 1),
            )
        }
    };
    if faults.hang_after.is_some_and(|limit| n >= limit) {
        reply.cut_after = Some(reply.body.len() / 2);
        reply.hang = true;
    } else if faults.cut_first > 0 {
        faults.cut_first -= 1;
        reply.cut_after = Some(reply.body.len() / 2);
    } else if faults.hang_first > 0 {
        faults.hang_first -= 1;
        reply.cut_after = Some(reply.body.len() / 2);
        reply.hang = true;
    }
    reply
}

/// Keeps every event as text.
#[derive(Default)]
pub(crate) struct Log(pub(crate) Vec<String>);

impl Progress for Log {
    fn event(&mut self, event: Event<'_>) {
        self.0.push(format!("{event:?}"));
    }
}

impl Log {
    pub(crate) fn has(&self, what: &str) -> bool {
        self.0.iter().any(|line| line.contains(what))
    }
}

pub(crate) fn plan(hub: &Hub, model: &str) -> Plan {
    match hub.resolve(model).unwrap() {
        Resolution::NeedsDownload(plan) => plan,
        Resolution::Local(found) => panic!("{model} is there already: {found:?}"),
    }
}

pub(crate) fn local(hub: &Hub, model: &str) -> LocalModel {
    match hub.resolve(model).unwrap() {
        Resolution::Local(found) => found,
        Resolution::NeedsDownload(plan) => panic!("{model} was not found: {:?}", plan.searched()),
    }
}

pub(crate) fn pull(settings: HubSettings, model: &str) -> carat_hub::Result<LocalModel> {
    pull_logged(settings, model, &mut Log::default())
}

pub(crate) fn pull_logged(
    settings: HubSettings,
    model: &str,
    log: &mut Log,
) -> carat_hub::Result<LocalModel> {
    let hub = Hub::new(settings).unwrap();
    hub.pull(&plan(&hub, model), log, &AtomicBool::new(false))
}
