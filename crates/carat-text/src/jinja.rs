//! A Jinja environment that behaves as the reference's does for chat templates.
//!
//! Blocks are trimmed, nothing is escaped, `raise_exception`, `strftime_now` and `tojson` exist, and strings and maps have
//! Python's methods. Templates come from model files and are not trusted: their size, the instructions they may
//! run, their depth and their output are limited. What their variables may hold is limited by that only: the
//! engine has no bound on the length of a string that a template builds by joining it with itself.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, State};

use crate::deep_stack;
use crate::error::{Error, Result};
use crate::gemma3::python_strip;
use crate::strftime::strftime;
use crate::tojson::to_json;

/// Bytes; Gemma's longest template has 19 kB. Bounds the depth of expressions too, see `deep_stack`.
const SOURCE_LIMIT: usize = 64 << 10;

/// Instructions per rendering of few messages. Bounds the depth of values too.
const FUEL: u64 = 2_000_000;

/// More for each pair of messages: Gemma 4's own template looks from each message back over the ones before it, at seven
/// instructions for each.
const FUEL_PER_PAIR: u64 = 16;

/// So many messages need no more than [`FUEL`].
const FEW_MESSAGES: usize = 64;

/// Instructions per rendering at most; `deep_stack` has room for them.
const MOST_FUEL: u64 = 16_000_000;

/// Nested blocks and calls; a call of a macro counts about ten times.
const DEPTH_LIMIT: usize = 250;

/// Bytes of a rendered conversation.
const OUTPUT_LIMIT: usize = 64 << 20;

/// Name of the only template in an environment.
const NAME: &str = "chat_template";

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// An environment that holds the parsed template `source`.
pub(crate) fn environment(source: &str) -> Result<Environment<'static>> {
    if source.len() > SOURCE_LIMIT {
        return Err(Error::TemplateTooLarge {
            what: "chat template",
            limit: SOURCE_LIMIT,
        });
    }
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.map_err(|error| Error::TemplateSyntax(Box::new(error)))?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    // Errors would hold values of the template, and free them on the caller's stack.
    environment.set_debug(false);
    environment.set_recursion_limit(DEPTH_LIMIT);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", trim);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Value| {
        is_sequence(value) || value.kind() == ValueKind::Iterable
    });
    deep_stack::run(FUEL, || environment.add_template_owned(NAME, source.to_owned()))
        .and_then(|parsed| parsed)
        .map_err(|error| Error::TemplateSyntax(Box::new(error)))?;
    Ok(environment)
}

/// Runs the template with the variables `context`, among them `n_messages` messages.
pub(crate) fn render(
    environment: &Environment<'static>,
    context: Value,
    n_messages: usize,
) -> Result<String> {
    let n_pairs = (n_messages as u64).saturating_mul(n_messages as u64);
    let fuel = FUEL
        .saturating_add(n_pairs.saturating_mul(FUEL_PER_PAIR))
        .min(MOST_FUEL);
    let mut own = None;
    // A copy, but not for those who need none.
    let environment = if n_messages > FEW_MESSAGES {
        let own = own.insert(environment.clone());
        own.set_fuel(Some(fuel));
        &*own
    } else {
        environment
    };
    let mut output = Limited {
        bytes: Vec::new(),
        is_over: false,
    };
    let outcome = deep_stack::run(fuel, || {
        let template = environment.get_template(NAME)?;
        // All that the template made is freed here, on the deep stack.
        template.render_captured_to(context, &mut output).map(drop)
    });
    if output.is_over {
        return Err(Error::TemplateTooLarge {
            what: "rendered conversation",
            limit: OUTPUT_LIMIT,
        });
    }
    outcome
        .and_then(|rendered| rendered)
        .map_err(refusal_or_failure)?;
    // Templates and values are strings, so that this never replaces anything.
    Ok(String::from_utf8(output.bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// A template's own `raise_exception` is the user's business; anything else is a broken template.
fn refusal_or_failure(error: minijinja::Error) -> Error {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref::<Refusal>() {
            return Error::TemplateRefusal {
                message: message.clone(),
            };
        }
        source = cause.source();
    }
    Error::TemplateRun(Box::new(error))
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
    Err(error.with_source(Refusal(message)))
}

fn strftime_now(state: &State<'_, '_>, format: &str) -> String {
    // Set with the other variables of a rendering.
    let seconds = state
        .lookup("carat_now_seconds")
        .and_then(|value| i64::try_from(value).ok());
    strftime(format, seconds.unwrap_or(0))
}

fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Templates pass what they passed to Python; here characters are kept as they are in any case.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = to_json(value, indent);
    json.map(Value::from_safe_string)
        .map_err(|message| minijinja::Error::new(ErrorKind::BadSerialization, message))
}

fn trim(text: &str, chars: Option<&str>) -> String {
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => python_strip(text).to_owned(),
    }
}

/// In Python, strings and mappings have a length and elements too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::String | ValueKind::Bytes | ValueKind::Seq | ValueKind::Map
    )
}

/// Output that stops at the limit.
struct Limited {
    bytes: Vec<u8>,
    is_over: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > OUTPUT_LIMIT - self.bytes.len() {
            self.is_over = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
