//! Grammars in llama.cpp's notation (GBNF), rewritten in Lark's.
//!
//! `root ::= "ab" item*` becomes `start: c61 c62 r1_item*` with `c61: "a"` and `c62: "b"`. Names get a number, since Lark
//! takes capitals for terminals and knows no hyphens: without it names that differ in these alone would be one. Texts are
//! taken apart and character classes become regular expressions of one character, so that every terminal is one
//! character: the lexer takes the longest terminal and never goes back, and with `"true" | [a-z]+` would demand `true` of
//! everything that begins with `tr`. A character has one rule wherever it stands, since llguidance counts symbols.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// The same grammar in Lark's notation, or what is wrong with it.
pub(crate) fn to_lark(text: &str) -> Result<String, String> {
    let mut reader = Reader {
        rest: text,
        numbers: HashMap::new(),
        letters: BTreeSet::new(),
    };
    let mut lark = String::new();
    let mut has_root = false;
    loop {
        reader.skip_blanks(Lines::Skip);
        if reader.rest.is_empty() {
            break;
        }
        let name = reader.name().ok_or_else(|| reader.unexpected("a rule's name"))?;
        reader.skip_blanks(Lines::Keep);
        reader.rest = reader
            .rest
            .strip_prefix("::=")
            .ok_or_else(|| reader.unexpected("`::=`"))?;
        has_root |= name == "root";
        let rule = reader.rule(name);
        let body = reader.alternatives(Lines::Keep, 0)?;
        let _infallible = writeln!(lark, "{rule}: {body}");
    }
    if !has_root {
        return Err("it has no rule `root`".to_string());
    }
    for c in reader.letters {
        // A character as JSON and Lark write it.
        let text = serde_json::Value::from(c.to_string());
        let _infallible = writeln!(lark, "{}: {text}", letter(c));
    }
    Ok(lark)
}

/// Parentheses may be this deep.
const MAX_DEPTH: usize = 64;

/// Whether a line's end ends what is read.
#[derive(Clone, Copy, PartialEq)]
enum Lines {
    Keep,
    Skip,
}

struct Reader<'t> {
    rest: &'t str,
    /// Of each name, as it is written.
    numbers: HashMap<&'t str, usize>,
    /// Characters of texts.
    letters: BTreeSet<char>,
}

impl<'t> Reader<'t> {
    fn skip_blanks(&mut self, lines: Lines) {
        loop {
            let is_blank =
                |c: char| c == ' ' || c == '\t' || lines == Lines::Skip && (c == '\n' || c == '\r');
            self.rest = self.rest.trim_start_matches(is_blank);
            match self.rest.strip_prefix('#') {
                Some(comment) => self.rest = comment.find('\n').map_or("", |end| &comment[end..]),
                None => return,
            }
        }
    }

    fn name(&mut self) -> Option<&'t str> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then_some(name)
    }

    fn unexpected(&self, expected: &str) -> String {
        let found: String = self.rest.chars().take(20).collect();
        format!("{expected} is expected at `{found}`")
    }

    fn alternatives(&mut self, lines: Lines, depth: usize) -> Result<String, String> {
        if depth > MAX_DEPTH {
            return Err(format!("its parentheses are more than {MAX_DEPTH} deep"));
        }
        let mut all = String::new();
        loop {
            // A line may end after `|` and after `::=`.
            self.skip_blanks(Lines::Skip);
            let before = all.len();
            while let Some(item) = self.item(lines, depth)? {
                all.push_str(&item);
                all.push(' ');
            }
            if all.len() == before {
                all.push_str("\"\" ");
            }
            self.skip_blanks(lines);
            match self.rest.strip_prefix('|') {
                Some(rest) => {
                    self.rest = rest;
                    all.push_str("| ");
                }
                None => return Ok(all),
            }
        }
    }

    /// One item with its repetition; `None` at the end of a sequence.
    fn item(&mut self, lines: Lines, depth: usize) -> Result<Option<String>, String> {
        self.skip_blanks(lines);
        let is_text = self.rest.starts_with('"');
        let item = match self.rest.chars().next() {
            Some('"') => self.text()?,
            Some('[') => {
                let class = self.class()?;
                format!("/{class}/")
            }
            Some('.') => {
                self.rest = &self.rest[1..];
                "/(.|\\n)/".to_string()
            }
            Some('(') => {
                self.rest = &self.rest[1..];
                let inner = self.alternatives(Lines::Skip, depth + 1)?;
                self.rest = self
                    .rest
                    .strip_prefix(')')
                    .ok_or_else(|| self.unexpected("`)`"))?;
                format!("({inner})")
            }
            _ => match self.name() {
                Some(name) => self.rule(name),
                None => return Ok(None),
            },
        };
        let repetition = self.repetition()?;
        Ok(Some(if is_text && !repetition.is_empty() {
            format!("({item}){repetition}")
        } else {
            item + repetition
        }))
    }

    /// A text, character by character.
    fn text(&mut self) -> Result<String, String> {
        let text = self.until('"')?;
        if text.is_empty() {
            return Ok("\"\"".to_string());
        }
        self.letters.extend(text.chars());
        Ok(text.chars().map(letter).collect::<Vec<_>>().join(" "))
    }

    /// What a rule is called in Lark.
    fn rule(&mut self, name: &'t str) -> String {
        if name == "root" {
            return "start".to_string();
        }
        let next = self.numbers.len() + 1;
        let number = self.numbers.entry(name).or_insert(next);
        format!("r{number}_{}", name.replace('-', "_").to_ascii_lowercase())
    }

    fn repetition(&mut self) -> Result<&'t str, String> {
        let n = match self.rest.chars().next() {
            Some('*' | '+' | '?') => 1,
            Some('{') => {
                1 + self
                    .rest
                    .find('}')
                    .ok_or_else(|| self.unexpected("`}` after `{`"))?
            }
            _ => 0,
        };
        let (repetition, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(repetition)
    }

    /// A literal's text, its escapes resolved.
    fn until(&mut self, end: char) -> Result<String, String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == end {
                self.rest = &self.rest[at + c.len_utf8()..];
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let (_, escaped) = chars
                .next()
                .ok_or_else(|| format!("a text is not closed by `{end}`"))?;
            let n_digits = match escaped {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                _ => 0,
            };
            text.push(match escaped {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'x' | 'u' | 'U' => {
                    let digits: String = chars.by_ref().take(n_digits).map(|(_, c)| c).collect();
                    let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                    code.ok_or_else(|| format!("`\\{escaped}{digits}` is no character"))?
                }
                other => other,
            });
        }
        Err(format!("a text is not closed by `{end}`"))
    }

    /// A character class as it stands, but for what a regular expression reads otherwise.
    fn class(&mut self) -> Result<String, String> {
        let mut class = String::from("[");
        let mut chars = self.rest.char_indices().skip(1).peekable();
        if chars.next_if(|(_, c)| *c == '^').is_some() {
            class.push('^');
        }
        while let Some((at, c)) = chars.next() {
            match c {
                ']' => {
                    self.rest = &self.rest[at + 1..];
                    class.push(']');
                    return Ok(class);
                }
                '\\' => {
                    let (_, escaped) = chars.next().ok_or("a class is not closed by `]`")?;
                    let n_digits = match escaped {
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        _ => 0,
                    };
                    if n_digits > 0 {
                        let digits: String = chars.by_ref().take(n_digits).map(|(_, c)| c).collect();
                        let _infallible = write!(class, "\\x{{{digits}}}");
                    } else {
                        class.push('\\');
                        class.push(escaped);
                    }
                }
                '[' | '/' | '&' | '~' => {
                    class.push('\\');
                    class.push(c);
                }
                other => class.push(other),
            }
        }
        Err("a class is not closed by `]`".to_string())
    }
}

/// What a character's rule is called.
fn letter(c: char) -> String {
    format!("c{:x}", u32::from(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_classes_and_repetitions_are_rewritten() {
        let gbnf = "# a list\nroot ::= \"- \" item-name+ (\"!\" |\n  [^\\n/]{2,3})?\nitem-name ::= [a-z] .\n";
        let rules =
            "start: c2d c20 r1_item_name+ (c21 | /[^\\n\\/]/{2,3} )? \nr1_item_name: /[a-z]/ /(.|\\n)/ \n";
        let letters = "c20: \" \"\nc21: \"!\"\nc2d: \"-\"\n";
        assert_eq!(to_lark(gbnf).unwrap(), [rules, letters].concat());
    }

    #[test]
    fn texts_are_taken_apart_and_repeated_whole() {
        let lark = to_lark("root ::= \"ab\"{2} \"\\\"é\"? \"\"* \"\"").unwrap();
        let (rules, letters) = lark.split_once('\n').unwrap();
        assert_eq!(rules, "start: (c61 c62){2} (c22 ce9)? (\"\")* \"\" ");
        assert_eq!(letters, "c22: \"\\\"\"\nc61: \"a\"\nc62: \"b\"\nce9: \"é\"\n");
    }

    #[test]
    fn names_that_look_alike_in_lark_stay_apart() {
        let lark = to_lark("root ::= a-b a_b A_B a-b\nA_B ::= \"x\"\n").unwrap();
        assert_eq!(
            lark,
            "start: r1_a_b r2_a_b r3_a_b r1_a_b \nr3_a_b: c78 \nc78: \"x\"\n"
        );
    }

    #[test]
    fn defects_are_named() {
        assert_eq!(to_lark("a ::= \"x\"").unwrap_err(), "it has no rule `root`");
        assert!(
            to_lark("root = \"x\"")
                .unwrap_err()
                .starts_with("`::=` is expected")
        );
        assert!(to_lark("root ::= \"x").unwrap_err().contains("not closed"));
        assert!(to_lark("root ::= [a").unwrap_err().contains("not closed"));
        assert!(
            to_lark(&format!("root ::= {}", "(".repeat(1000)))
                .unwrap_err()
                .contains("deep")
        );
        assert!(to_lark("root ::= ( \"a\"").is_err());
    }
}
