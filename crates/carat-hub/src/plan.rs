//! What has to be fetched for a model that is not on this machine, and from where.

use crate::catalogue::{Entry, HfSource, PypiSource};
use crate::error::Attempt;
use crate::store::Origin;

/// A download that [`Hub::pull`](crate::Hub::pull) can carry out.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) asked: String,
    pub(crate) entry: Option<Box<Entry>>,
    pub(crate) sources: Vec<Source>,
    pub(crate) searched: Vec<Attempt>,
}

/// One way to get the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file, a number format or (without a file) whatever the repository holds.
    Hf(HfSource),
    Pypi(PypiSource),
}

impl Plan {
    pub(crate) fn of_entry(asked: &str, entry: &Entry, searched: Vec<Attempt>) -> Self {
        let mut sources: Vec<Source> = entry.hf.iter().cloned().map(Source::Hf).collect();
        sources.extend(entry.pypi.iter().cloned().map(Source::Pypi));
        Plan {
            asked: asked.to_owned(),
            entry: Some(Box::new(entry.clone())),
            sources,
            searched,
        }
    }

    pub(crate) fn of_repo(asked: &str, repo: &str, file: Option<&str>, searched: Vec<Attempt>) -> Self {
        let source = HfSource {
            repo: repo.to_owned(),
            file: file.map(str::to_owned),
            sha256: None,
        };
        Plan {
            asked: asked.to_owned(),
            entry: None,
            sources: vec![Source::Hf(source)],
            searched,
        }
    }

    /// Full name of the model: the catalogue's, or what was asked for.
    pub fn name(&self) -> &str {
        self.entry.as_ref().map_or(&self.asked, |entry| &entry.name)
    }

    /// The catalogue entry, with size, licence and description, if the model has one.
    pub fn entry(&self) -> Option<&Entry> {
        self.entry.as_deref()
    }

    /// The sources that will be tried, in order, as a person knows them.
    pub fn sources(&self) -> Vec<String> {
        self.sources.iter().map(Source::describe).collect()
    }

    /// The places on this machine that were looked at in vain.
    pub fn searched(&self) -> &[Attempt] {
        &self.searched
    }
}

impl Source {
    pub(crate) fn describe(&self) -> String {
        match self {
            Source::Hf(HfSource {
                repo,
                file: Some(file),
                ..
            }) => format!("Hugging Face {repo} ({file})"),
            Source::Hf(HfSource { repo, .. }) => format!("Hugging Face {repo}"),
            Source::Pypi(pypi) => match pypi.packages.first() {
                Some(first) => format!("PyPI {} {}", first.name, pypi.version),
                None => "PyPI".to_owned(),
            },
        }
    }

    /// Identity in the store and name of the lock: fixed before anything is asked of the network.
    pub(crate) fn origin(&self) -> Origin {
        match self {
            Source::Hf(HfSource {
                repo,
                file: Some(file),
                ..
            }) => Origin::HfFile {
                repo: repo.clone(),
                file: file.clone(),
            },
            Source::Hf(HfSource { repo, .. }) => Origin::HfFolder { repo: repo.clone() },
            Source::Pypi(pypi) => Origin::Pypi {
                package: pypi.packages.first().map(|p| p.name.clone()).unwrap_or_default(),
                version: pypi.version.clone(),
                file: pypi.file.clone(),
            },
        }
    }
}
