//! What a configuration says that is allowed and hardly meant: it is served by all the same, and told.

use std::collections::BTreeSet;

use super::Config;
use crate::engine;
use crate::route::Candidate;

impl Config {
    /// What the gateway can hardly have been meant to do, in sentences.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.providers.is_empty() {
            doubts.push(
                "no provider is named, so that nothing can be answered; add one such as [providers.openai]"
                    .into(),
            );
        }
        let mut providers: Vec<_> = self.providers.values().collect();
        providers.sort_by(|a, b| a.name.cmp(&b.name));
        let without_key = providers
            .iter()
            .filter_map(|provider| Some((&provider.name, provider.lacks_key.as_ref()?)));
        doubts.extend(without_key.map(|(name, variable)| {
            format!("[providers.{name}] has no key: {variable} is not set, and `carat gateway set-secret {variable}` has kept none")
        }));
        let in_plain = providers
            .iter()
            .filter(|provider| provider.shows_its_key())
            .map(|provider| {
                let (name, host) = (&provider.name, &provider.base.authority);
                format!("[providers.{name}] sends its key to http://{host}, where everybody on the way can read it; use https")
            });
        doubts.extend(in_plain);
        doubts
    }

    /// Settings that differ in `other` and are looked at when a gateway starts, and never again.
    pub(crate) fn only_at_start(&self, other: &Self) -> Vec<&'static str> {
        let admin = |config: &Self| config.admin.as_ref().map(|admin| admin.listen);
        let place = |config: &Self| config.ledger.as_ref().map(|place| format!("{place:?}"));
        let differ = [
            ("listen", self.listen != other.listen),
            ("tls", self.tls.is_some() != other.tls.is_some()),
            ("ledger", place(self) != place(other)),
            ("admin.listen", admin(self) != admin(other)),
        ];
        let differ = differ.into_iter().filter(|(_, differs)| *differs);
        differ.map(|(setting, _)| setting).collect()
    }

    /// Models that routes want of the engine of the gateway's own process.
    pub fn engine_models(&self) -> BTreeSet<&str> {
        let candidates = self.routes.values().flat_map(|route| &route.candidates);
        let is_inside = |one: &&Candidate| one.provider.base.authority.host() == engine::HOST;
        candidates
            .filter(is_inside)
            .map(|candidate| candidate.model.as_str())
            .collect()
    }

    /// Whether something that can be asked for is called so, or begins so where the name ends in `*`.
    pub fn answers_to(&self, name: &str) -> bool {
        let Some(start) = name.strip_suffix('*') else {
            return self.routes.contains_key(name) || self.target(name).is_some();
        };
        let mut providers = self.providers.keys().map(|provider| format!("{provider}/"));
        self.routes.keys().any(|route| route.starts_with(start))
            || providers.any(|provider| provider.starts_with(start) || start.starts_with(&provider))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Env;

    fn config(text: &str) -> Config {
        let env: Env = Arc::new(|name| (name == "GROQ_API_KEY").then(|| "k".to_string()));
        Config::parse(text, &env).unwrap()
    }

    #[test]
    fn providers_without_the_key_that_they_want_are_told_of() {
        let doubts = config("[providers.openai]\n[providers.groq]\n[providers.ollama]\n").doubts();
        assert_eq!(doubts.len(), 1, "{doubts:?}");
        assert!(doubts[0].contains("[providers.openai]") && doubts[0].contains("OPENAI_API_KEY"));
        assert!(config("").doubts()[0].contains("no provider"));
    }

    #[test]
    fn keys_that_everybody_on_the_way_can_read_are_told_of() {
        let doubts = |text: &str| config(&format!("[providers.p]\n{text}")).doubts();
        let told = doubts("base-url = \"http://10.0.0.5:8000/v1\"\nkey = \"k\"");
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("[providers.p]") && told[0].contains("http://10.0.0.5:8000"));
        assert_eq!(
            doubts("like = \"replicate\"\nbase-url = \"http://replicate.test/v1\"\nkey = \"k\"").len(),
            1
        );
        for fine in [
            "base-url = \"https://api.example.com/v1\"\nkey = \"k\"",
            "base-url = \"http://10.0.0.5:8000/v1\"",
            "base-url = \"http://10.0.0.5:8000/v1\"\nkey = \"k\"\nauth = \"none\"",
            "base-url = \"http://127.0.0.1:8000/v1\"\nkey = \"k\"",
            "base-url = \"http://vllm:8000/v1\"\nkey = \"k\"\nlocal = true",
        ] {
            assert_eq!(doubts(fine), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn what_is_only_looked_at_at_the_start_is_told_of() {
        let (one, other) = (
            config(""),
            config("listen = \"127.0.0.1:1\"\n[ledger]\npath = \"x\""),
        );
        assert_eq!(one.only_at_start(&other), ["listen", "ledger"]);
        assert!(one.only_at_start(&config("attempts = 3")).is_empty());
    }

    #[test]
    fn names_of_limits_are_those_that_can_be_asked_for() {
        let config = config(
            "[providers.groq]\n[providers.local]\nlike = \"engine\"\n[routes.chat]\ncandidates = [\"groq/x\", \"local/gemma3:4b\"]",
        );
        for name in ["chat", "ch*", "groq/y", "groq/*", "gr*", "groq/lla*", "*"] {
            assert!(config.answers_to(name), "{name}");
        }
        for name in ["chatt", "openai/gpt", "openai/*", "x*"] {
            assert!(!config.answers_to(name), "{name}");
        }
        assert_eq!(
            config.engine_models().into_iter().collect::<Vec<_>>(),
            ["gemma3:4b"]
        );
    }
}
