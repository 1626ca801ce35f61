//! carat's own store: what a pull leaves behind, and what `list` and `rm` work on.
//!
//! ```text
//! store/
//!   models/<owner>/<repo>/<file>   finished, verified files
//!   manifests/<id>.json            one per model; written last, so a model without it does not exist
//!   models/.partial/<id>/          unfinished files with the state of their ranges
//!   locks/<id>.lock                held by the process that pulls this model
//! ```
//!
//! A file is moved from `.partial` to its place by a rename after its digest was checked, and only then is the
//! manifest written. Whatever happens in between leaves either the old model or none. Both lie below `models`, since
//! that folder is the one which people put on a larger disk, and no rename crosses disks.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fs::{make_dir, make_parent, read_limited, remove_if_there, rename, sha256_hex, write_atomic};
use crate::local::{Identity, LocalModel, ModelFormat, Place};
use crate::name::is_inside;
use crate::progress::{Event, Watch};

/// A manifest larger than this (bytes) was not written by us.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// How often a waiting process asks for the lock again.
const LOCK_POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

/// Where a stored model came from; also its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// One GGUF file of a repository (the first part of a split one).
    HfFile { repo: String, file: String },
    /// A checkpoint folder.
    HfFolder { repo: String },
    /// A file assembled from Python packages.
    Pypi {
        package: String,
        version: String,
        file: String,
    },
}

impl Origin {
    /// A name that is safe as a file name and differs for different origins.
    pub(crate) fn id(&self) -> String {
        let key = match self {
            Origin::HfFile { repo, file } => format!("hf/{repo}/{file}"),
            Origin::HfFolder { repo } => format!("hf/{repo}"),
            Origin::Pypi {
                package,
                version,
                file,
            } => format!("pypi/{package}/{version}/{file}"),
        };
        let readable: String = key
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "._-".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .take(120)
            .collect();
        // Cutting and replacing may make two keys equal; twelve digits of their digest keep them apart.
        format!("{readable}-{}", &sha256_hex(key.as_bytes())[..12])
    }

    /// The folder below `models` where the files go.
    pub(crate) fn folder(&self) -> PathBuf {
        match self {
            Origin::HfFile { repo, .. } | Origin::HfFolder { repo } => repo.split('/').collect(),
            Origin::Pypi { package, version, .. } => {
                ["pypi", &format!("{package}-{version}")].iter().collect()
            }
        }
    }

    /// How the user can name it.
    pub(crate) fn name(&self) -> String {
        match self {
            Origin::HfFile { repo, file } => format!("hf:{repo}:{file}"),
            Origin::HfFolder { repo } => format!("hf:{repo}"),
            Origin::Pypi { file, .. } => file.clone(),
        }
    }
}

/// What a manifest file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    schema: u32,
    /// Catalogue name it was pulled under, if any.
    catalogue: Option<String>,
    origin: Origin,
    format: ModelFormat,
    /// The GGUF file, or the folder, below `models`.
    main: PathBuf,
    files: Vec<StoredFile>,
    /// Seconds since 1970.
    pulled_at_s: u64,
}

/// A finished file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredFile {
    /// Below `models`.
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
    /// As computed from the bytes on disk before they were moved here.
    pub(crate) sha256: String,
}

/// A verified file that still lies in the partial folder.
#[derive(Debug)]
pub(crate) struct NewFile {
    /// Where it lies now.
    pub(crate) from: PathBuf,
    /// Its name inside the model's folder.
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
}

impl Store {
    pub(crate) fn new(root: &Path) -> Self {
        Store {
            root: root.to_owned(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder for unfinished files of this model; made if needed.
    pub(crate) fn partial_dir(&self, origin: &Origin) -> Result<PathBuf> {
        let dir = self.partial_path(origin);
        make_dir(&dir)?;
        Ok(dir)
    }

    /// Waits until no other process pulls this model. The lock falls with the process that holds it,
    /// however that ends.
    pub(crate) fn lock(&self, origin: &Origin, watch: &mut Watch<'_>) -> Result<File> {
        let path = self.lock_path(origin);
        make_parent(&path)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open the lock", &path, e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !told {
                        watch.tell(Event::Waiting { lock: &path });
                        told = true;
                    }
                    watch.pause(LOCK_POLL)?;
                }
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
            }
        }
    }

    /// Throws away what an unfinished pull left, unless another process is at it; returns the bytes freed.
    pub(crate) fn discard_partial(&self, origin: &Origin) -> u64 {
        let dir = self.partial_path(origin);
        if !dir.is_dir() {
            return 0;
        }
        let lock = File::options().write(true).open(self.lock_path(origin));
        let is_free = lock.as_ref().is_ok_and(|lock| lock.try_lock().is_ok());
        let size = folder_size(&dir, 4);
        match is_free && fs::remove_dir_all(&dir).is_ok() {
            true => size,
            false => 0,
        }
    }

    /// Moves verified files into place and writes the manifest that makes them a model.
    pub(crate) fn install(
        &self,
        origin: &Origin,
        catalogue: Option<&str>,
        format: ModelFormat,
        files: Vec<NewFile>,
    ) -> Result<LocalModel> {
        let models = self.root.join("models");
        let manifest_path = self.manifest_path(origin);
        // A model that is replaced file by file must not look whole meanwhile.
        remove_if_there(&manifest_path)?;
        let mut stored = Vec::new();
        for file in files {
            let path = origin.folder().join(&file.name);
            let to = models.join(&path);
            make_parent(&to)?;
            rename(&file.from, &to)?;
            stored.push(StoredFile {
                path,
                size_bytes: file.size_bytes,
                sha256: file.sha256,
            });
        }
        let main = match (format, stored.first()) {
            (ModelFormat::Gguf, Some(first)) => first.path.clone(),
            _ => origin.folder(),
        };
        let manifest = Manifest {
            schema: 1,
            catalogue: catalogue.map(str::to_owned),
            origin: origin.clone(),
            format,
            main,
            files: stored,
            pulled_at_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        };
        let bad = |e: serde_json::Error| Error::io("write", &manifest_path, e.into());
        let text = serde_json::to_vec_pretty(&manifest).map_err(bad)?;
        make_parent(&manifest_path)?;
        write_atomic(&manifest_path, &text)?;
        Ok(self.local(&manifest))
    }

    /// All models whose files are all there with the right sizes.
    pub(crate) fn list(&self) -> Vec<LocalModel> {
        self.manifests()
            .iter()
            .filter(|(_, m)| self.is_whole(m))
            .map(|(_, m)| self.local(m))
            .collect()
    }

    /// The model of an origin, if all its files are there.
    pub(crate) fn find(&self, origin: &Origin) -> Option<LocalModel> {
        let manifests = self.manifests();
        let found = manifests
            .iter()
            .find(|(_, m)| m.origin == *origin && self.is_whole(m));
        found.map(|(_, m)| self.local(m))
    }

    /// Removes a model: its manifest first, then the files that no other model shares.
    ///
    /// Returns the bytes freed, or `None` if no manifest satisfies `is_it`.
    pub(crate) fn remove(&self, is_it: impl Fn(&LocalModel) -> bool) -> Result<Option<u64>> {
        let all = self.manifests();
        let Some((path, gone)) = all.iter().find(|(_, m)| is_it(&self.local(m))) else {
            return Ok(None);
        };
        remove_if_there(path)?;
        let kept = |file: &PathBuf| {
            all.iter()
                .any(|(other, m)| other != path && m.files.iter().any(|f| &f.path == file))
        };
        let mut freed = 0;
        for file in gone.files.iter().filter(|f| is_inside(&f.path) && !kept(&f.path)) {
            let full = self.root.join("models").join(&file.path);
            remove_if_there(&full)?;
            freed += file.size_bytes;
            // Folders that became empty go too; a folder with other files refuses, which is right.
            for folder in full
                .ancestors()
                .skip(1)
                .take_while(|f| *f != self.root.join("models"))
            {
                if fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        Ok(Some(freed))
    }

    /// No repository's owner begins with a dot.
    fn partial_path(&self, origin: &Origin) -> PathBuf {
        self.root.join("models").join(".partial").join(origin.id())
    }

    fn lock_path(&self, origin: &Origin) -> PathBuf {
        self.root.join("locks").join(format!("{}.lock", origin.id()))
    }

    fn manifest_path(&self, origin: &Origin) -> PathBuf {
        self.root.join("manifests").join(format!("{}.json", origin.id()))
    }

    /// Manifests that can be read; a foreign or damaged file among them is not a model.
    fn manifests(&self) -> Vec<(PathBuf, Manifest)> {
        let Ok(entries) = fs::read_dir(self.root.join("manifests")) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
        paths.sort();
        let read = |path: &Path| -> Option<Manifest> {
            let bytes = read_limited(path, MAX_MANIFEST_BYTES).ok()?;
            let manifest: Manifest = serde_json::from_slice(&bytes).ok()?;
            let inside = is_inside(&manifest.main) && manifest.files.iter().all(|f| is_inside(&f.path));
            (manifest.schema == 1 && inside && !manifest.files.is_empty()).then_some(manifest)
        };
        paths
            .into_iter()
            .filter_map(|path| read(&path).map(|manifest| (path, manifest)))
            .collect()
    }

    fn is_whole(&self, manifest: &Manifest) -> bool {
        manifest.files.iter().all(|file| {
            let path = self.root.join("models").join(&file.path);
            fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == file.size_bytes)
        })
    }

    fn local(&self, manifest: &Manifest) -> LocalModel {
        LocalModel {
            name: manifest
                .catalogue
                .clone()
                .unwrap_or_else(|| manifest.origin.name()),
            path: self.root.join("models").join(&manifest.main),
            format: manifest.format,
            place: Place::Store,
            size_bytes: manifest
                .files
                .iter()
                .fold(0, |sum, file| sum.saturating_add(file.size_bytes)),
            modified: UNIX_EPOCH.checked_add(Duration::from_secs(manifest.pulled_at_s)),
            identity: match &manifest.origin {
                Origin::HfFile { repo, file } => Identity::Hf {
                    repo: repo.clone(),
                    file: Some(file.clone()),
                },
                Origin::HfFolder { repo } => Identity::Hf {
                    repo: repo.clone(),
                    file: None,
                },
                Origin::Pypi { file, .. } => Identity::Other(file.clone()),
            },
        }
    }
}

/// Size of the files below a folder, in bytes.
fn folder_size(dir: &Path, depth: usize) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() && depth > 0 => folder_size(&entry.path(), depth - 1),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn origin(file: &str) -> Origin {
        Origin::HfFile {
            repo: "o/r".into(),
            file: file.into(),
        }
    }

    fn put(store: &Store, file: &str, parts: &[&str]) -> LocalModel {
        let dir = store.partial_dir(&origin(file)).unwrap();
        let files = parts.iter().map(|name| {
            let from = dir.join(format!("{name}.part"));
            fs::write(&from, "GGUF").unwrap();
            NewFile {
                from,
                name: (*name).to_owned(),
                size_bytes: 4,
                sha256: sha256_hex(b"GGUF"),
            }
        });
        store
            .install(&origin(file), None, ModelFormat::Gguf, files.collect())
            .unwrap()
    }

    #[test]
    fn install_list_remove() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("s"));
        assert!(store.list().is_empty());
        let model = put(&store, "a.gguf", &["a.gguf", "NOTICE.md"]);
        put(&store, "b.gguf", &["b.gguf", "NOTICE.md"]);
        assert_eq!(model.path, dir.path().join("s/models/o/r/a.gguf"));
        assert_eq!(store.list().len(), 2);
        assert_eq!(store.find(&origin("a.gguf")).unwrap().path, model.path);
        assert!(store.find(&origin("c.gguf")).is_none());
        assert_eq!(
            store.remove(|m| m.name == "hf:o/r:a.gguf").unwrap(),
            Some(4),
            "the notice is shared"
        );
        assert!(!model.path.exists() && dir.path().join("s/models/o/r/NOTICE.md").exists());
        assert_eq!(store.remove(|m| m.name == "hf:o/r:b.gguf").unwrap(), Some(8));
        assert!(!dir.path().join("s/models/o").exists());
        assert_eq!(store.remove(|_| true).unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    fn the_models_may_lie_on_another_disk() {
        let dir = tempfile::tempdir().unwrap();
        // Memory is another disk on Linux; elsewhere the folder is just another one.
        let memory = Path::new("/dev/shm");
        let disk = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        std::os::unix::fs::symlink(disk.path(), dir.path().join("models")).unwrap();
        let store = Store::new(dir.path());
        let unfinished = store.partial_dir(&origin("a.gguf")).unwrap();
        let real = |path: &Path| path.canonicalize().unwrap();
        assert!(real(&unfinished).starts_with(real(disk.path())));
        let model = put(&store, "a.gguf", &["a.gguf"]);
        assert_eq!(real(&model.path), real(disk.path()).join("o/r/a.gguf"));
        assert_eq!(store.remove(|_| true).unwrap(), Some(4));
    }

    #[test]
    fn a_model_with_a_short_or_missing_file_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let model = put(&store, "a.gguf", &["a.gguf"]);
        fs::write(&model.path, "GG").unwrap();
        assert!(store.list().is_empty());
        fs::remove_file(&model.path).unwrap();
        assert!(store.list().is_empty());
    }

    #[test]
    fn a_manifest_cannot_point_outside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("s"));
        put(&store, "a.gguf", &["a.gguf"]);
        let outside = dir.path().join("outside");
        fs::write(&outside, "GGUF").unwrap();
        let path = store.manifest_path(&origin("a.gguf"));
        let mut manifest: Manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        manifest.main = "../../outside".into();
        manifest.files[0].path = "../../outside".into();
        fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert!(store.list().is_empty());
        assert_eq!(store.remove(|_| true).unwrap(), None);
        assert!(outside.exists());
    }

    #[test]
    fn ids_differ_and_are_plain() {
        let ids: Vec<String> = ["a/b", "a-b", "a b", &"x".repeat(400)]
            .map(|f| origin(f).id())
            .to_vec();
        let mut unique = ids.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), ids.len());
        assert!(ids.iter().all(|id| id.len() < 150 && !id.contains(['/', ' '])));
    }

    #[test]
    fn the_second_holder_waits() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let cancel = AtomicBool::new(false);
        let held = store
            .lock(
                &origin("a"),
                &mut Watch {
                    progress: &mut (),
                    cancel: &cancel,
                },
            )
            .unwrap();
        struct Seen<'a>(bool, &'a AtomicBool);
        impl crate::Progress for Seen<'_> {
            fn event(&mut self, event: Event<'_>) {
                self.0 |= matches!(event, Event::Waiting { .. });
                self.1.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let stop = AtomicBool::new(false);
        let mut seen = Seen(false, &stop);
        let second = store.lock(
            &origin("a"),
            &mut Watch {
                progress: &mut seen,
                cancel: &stop,
            },
        );
        assert!(matches!(second, Err(Error::Cancelled)) && seen.0);
        drop(held);
        store
            .lock(
                &origin("a"),
                &mut Watch {
                    progress: &mut (),
                    cancel: &cancel,
                },
            )
            .unwrap();
    }
}
