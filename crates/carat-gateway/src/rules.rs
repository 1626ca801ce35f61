//! A route that chooses another by what the request is: `model = "auto"`.
//!
//! Rules are tried in the order in which they are written; all that one says must hold. They look at the request alone,
//! so the same request always goes the same way.

use serde::Deserialize;

use crate::fields::Fields;
use crate::needs::Needs;

/// One rule: what must hold, and where such requests go.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Rule {
    /// The route, or `provider/model`.
    pub(crate) route: String,
    /// At least so many tokens of prompt.
    #[serde(default)]
    min_tokens: Option<u64>,
    /// At most so many.
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    images: Option<bool>,
    #[serde(default)]
    audio: Option<bool>,
    #[serde(default)]
    video: Option<bool>,
    #[serde(default)]
    tools: Option<bool>,
    #[serde(default)]
    json_schema: Option<bool>,
    /// Whether it holds code.
    #[serde(default)]
    code: Option<bool>,
    /// One of these words is in what the user says, in whatever case.
    #[serde(default)]
    words: Vec<String>,
}

/// What a rule may look at.
#[derive(Debug)]
pub(crate) struct Facts {
    needs: Needs,
    has_code: bool,
    /// In small letters, if any rule asks for words.
    text: String,
}

/// Rules, and where everything else goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules {
    pub(crate) rules: Vec<Rule>,
    pub(crate) otherwise: String,
}

impl Rules {
    /// Where a request goes, and the rule that says so, counted from 1.
    pub(crate) fn choose(&self, needs: &Needs, fields: &Fields<'_>) -> (&str, Option<usize>) {
        let facts = Facts::read(
            needs,
            fields,
            self.rules.iter().any(|rule| !rule.words.is_empty()),
        );
        let found = self.rules.iter().position(|rule| rule.holds(&facts));
        match found {
            Some(i) => (&self.rules[i].route, Some(i + 1)),
            None => (&self.otherwise, None),
        }
    }

    /// Every route that may be chosen.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &str> {
        let rules = self.rules.iter().map(|rule| rule.route.as_str());
        rules.chain([self.otherwise.as_str()])
    }
}

impl Rule {
    fn holds(&self, facts: &Facts) -> bool {
        let needs = &facts.needs;
        let is = |wanted: Option<bool>, there: bool| wanted.is_none_or(|wanted| wanted == there);
        self.min_tokens.is_none_or(|min| needs.prompt_tokens >= min)
            && self.max_tokens.is_none_or(|max| needs.prompt_tokens <= max)
            && is(self.images, needs.images)
            && is(self.audio, needs.audio)
            && is(self.video, needs.video)
            && is(self.tools, needs.tools)
            && is(self.json_schema, needs.schema)
            && is(self.code, facts.has_code)
            && (self.words.is_empty()
                || self
                    .words
                    .iter()
                    .any(|word| facts.text.contains(&word.to_lowercase())))
    }
}

impl Facts {
    fn read(needs: &Needs, fields: &Fields<'_>, wants_text: bool) -> Self {
        let said = ["messages", "contents", "input", "prompt"];
        let texts: Vec<&str> = said.iter().filter_map(|name| fields.raw(name)).collect();
        Self {
            needs: *needs,
            has_code: texts.iter().any(|text| has_code(text)),
            text: if wants_text {
                texts.join("\n").to_lowercase()
            } else {
                String::new()
            },
        }
    }
}

/// Whether a text has code in it: a fence, or several signs of it.
fn has_code(text: &str) -> bool {
    let find = |sign: &str| memchr::memmem::find(text.as_bytes(), sign.as_bytes()).is_some();
    // Line ends are escaped in JSON.
    let signs = [
        "\\ndef ",
        "\\nclass ",
        "\\nfn ",
        "\\nimport ",
        "#include",
        "function(",
        "();",
        ") {\\n",
        "SELECT ",
        "</",
        "=> {",
        "Traceback (most recent call last)",
    ];
    find("```") || signs.iter().filter(|sign| find(sign)).count() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    fn chosen(body: &str) -> (String, Option<usize>) {
        let rules: Vec<Rule> = toml::from_str::<std::collections::BTreeMap<String, Vec<Rule>>>(
            "rules = [{ images = true, route = \"eyes\" }, { code = true, max-tokens = 1000, route = \"coder\" }, \
             { min-tokens = 1000, route = \"long\" }, { words = [\"Vertrag\"], tools = false, route = \"law\" }]",
        )
        .unwrap()
        .remove("rules")
        .unwrap();
        let rules = Rules {
            rules,
            otherwise: "small".into(),
        };
        let fields = Fields::read(body.as_bytes()).unwrap();
        let needs = Needs::read(Endpoint::Chat, &fields, None);
        let (route, rule) = rules.choose(&needs, &fields);
        (route.to_string(), rule)
    }

    #[test]
    fn a_request_goes_where_the_first_rule_that_holds_says() {
        let says = |text: &str| format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}");
        assert_eq!(chosen(&says("Hi")), ("small".into(), None));
        assert_eq!(chosen(&says("why? ```x = 1```")), ("coder".into(), Some(2)));
        assert_eq!(
            chosen(&says("#include <a>\\nint main() {\\n}")),
            ("coder".into(), Some(2))
        );
        assert_eq!(chosen(&says(&"word ".repeat(1000))), ("long".into(), Some(3)));
        assert_eq!(chosen(&says("Lies den VERTRAG.")), ("law".into(), Some(4)));
        let with_tools = says("Lies den Vertrag.").replace("}]}", "}],\"tools\":[{}]}");
        assert_eq!(chosen(&with_tools), ("small".into(), None));
        let seen = "{\"messages\":[{\"content\":[{\"image_url\":{\"url\":\"x\"}}]}]}";
        assert_eq!(chosen(seen), ("eyes".into(), Some(1)));
    }
}
