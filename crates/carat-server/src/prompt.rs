//! From a conversation to the model's prompt.

use carat_api::{ApiError, ErrorKind, Format, GenerationRequest, Part, Role, Turn};
use carat_engine::Grammar;
use carat_text::{Message, RenderOptions, Special};

use crate::model::ServedModel;
use crate::tools;

/// What the engine needs of a request beside its settings.
pub(crate) struct Prompt {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// What the answer is bound to, and the field that says so.
    pub(crate) grammar: Option<(Grammar, &'static str)>,
}

/// Renders a conversation.
pub(crate) fn render(model: &ServedModel, request: &GenerationRequest) -> Result<Prompt, ApiError> {
    let mut turns = tools::as_text(&request.turns)?;
    let offers_tools = tools::are_offered(request);
    if offers_tools {
        if request.format != Format::Text {
            let message = "`tools` and `response_format` cannot be used together yet; give one of them";
            return Err(ApiError::field("response_format", message));
        }
        let n_system = turns.iter().take_while(|turn| turn.role == Role::System).count();
        turns.insert(n_system, Turn::text(Role::System, tools::instructions(request)));
    }
    let messages = messages(&turns)?;
    let options = RenderOptions {
        thinking: request.thinking == Some(true),
        ..RenderOptions::default()
    };
    let ids = model
        .setup
        .template
        .encode(&model.setup.tokenizer, &messages, options)
        .map_err(|error| {
            ApiError::field(
                "messages",
                format!("the model's chat template cannot write this: {error}"),
            )
        })?;
    check_length(model, &ids)?;
    Ok(Prompt {
        ids,
        grammar: if offers_tools {
            Some((tools::grammar(request), "tools"))
        } else {
            grammar(&request.format)
        },
    })
}

/// Ids of a text that is continued as it stands.
pub(crate) fn raw(model: &ServedModel, text: &str) -> Result<Vec<u32>, ApiError> {
    let tokenizer = &model.setup.tokenizer;
    let mut ids: Vec<u32> = tokenizer
        .bos()
        .into_iter()
        .filter(|_| tokenizer.adds_bos())
        .collect();
    tokenizer.encode_into(text, Special::Parse, &mut ids);
    check_length(model, &ids)?;
    Ok(ids)
}

/// Ids that a client gave, if the vocabulary has them.
pub(crate) fn given(model: &ServedModel, ids: Vec<u32>, field: &str) -> Result<Vec<u32>, ApiError> {
    let n_tokens = model.setup.tokenizer.len();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= n_tokens) {
        let message = format!("`{field}` names token {id}, but the vocabulary has {n_tokens} tokens");
        return Err(ApiError::field(field, message));
    }
    if ids.is_empty() {
        return Err(ApiError::field(
            field,
            format!("`{field}` has no tokens; give at least one"),
        ));
    }
    check_length(model, &ids)?;
    Ok(ids)
}

/// What the answer is bound to.
pub(crate) fn grammar(format: &Format) -> Option<(Grammar, &'static str)> {
    match format {
        Format::Text => None,
        Format::JsonObject => Some((Grammar::JsonObject, "response_format")),
        Format::JsonSchema(schema) => Some((
            Grammar::JsonSchema(schema.clone()),
            "response_format.json_schema.schema",
        )),
        Format::Regex(regex) => Some((Grammar::Regex(regex.clone()), "guided_regex")),
        Format::Lark(text) => Some((Grammar::Lark(text.clone()), "guided_grammar")),
        Format::Gbnf(text) => Some((Grammar::Gbnf(text.clone()), "grammar")),
    }
}

/// A prompt that leaves no room for an answer is refused, with both numbers.
fn check_length(model: &ServedModel, ids: &[u32]) -> Result<(), ApiError> {
    let (n, context) = (ids.len(), model.context());
    if n < context {
        return Ok(());
    }
    let message = format!(
        "this model's context is {context} tokens here, but the prompt has {n} and at least one must be left for the \
         answer; shorten the prompt or serve with a larger --ctx"
    );
    let error = ApiError::new(ErrorKind::InvalidRequest, message).with_code("context_length_exceeded");
    Err(ApiError {
        param: Some("messages".into()),
        ..error
    })
}

/// Turns as templates take them: one system text in front, neighbours of the same role joined.
fn messages(turns: &[Turn]) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<(Role, String)> = Vec::new();
    for turn in turns {
        let text = text_of(turn)?;
        // Only the first place is the system's; later instructions speak as the user.
        let role = match turn.role {
            Role::System if messages.iter().all(|(role, _)| *role == Role::System) => Role::System,
            Role::System | Role::User | Role::Tool => Role::User,
            Role::Assistant => Role::Assistant,
        };
        match messages.last_mut() {
            Some((last, all)) if *last == role => {
                all.push_str("\n\n");
                all.push_str(&text);
            }
            _ => messages.push((role, text)),
        }
    }
    let message = |(role, text)| {
        let role = match role {
            Role::System => carat_text::Role::System,
            Role::Assistant => carat_text::Role::Assistant,
            Role::User | Role::Tool => carat_text::Role::User,
        };
        Message::text(role, text)
    };
    Ok(messages.into_iter().map(message).collect())
}

/// A turn's text; what is no text yet is refused.
pub(crate) fn text_of(turn: &Turn) -> Result<String, ApiError> {
    let mut text = String::new();
    for part in &turn.parts {
        let (path, what) = match part {
            Part::Text(more) => {
                text.push_str(more);
                continue;
            }
            Part::Image(path) => (path, "images"),
            Part::Audio(path) => (path, "audio"),
        };
        let message = format!("`{path}`: this server does not take {what} yet; send text");
        return Err(ApiError::field(path.clone(), message));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_the_same_role_are_joined() {
        let turns = [
            Turn::text(Role::System, "a"),
            Turn::text(Role::System, "b"),
            Turn::text(Role::User, "c"),
            Turn::text(Role::System, "d"),
            Turn::text(Role::Assistant, "e"),
        ];
        let expected = [
            Message::text(carat_text::Role::System, "a\n\nb"),
            Message::text(carat_text::Role::User, "c\n\nd"),
            Message::text(carat_text::Role::Assistant, "e"),
        ];
        assert_eq!(messages(&turns).unwrap(), expected);
    }

    #[test]
    fn images_are_refused_by_name() {
        let turn = Turn::new(Role::User, vec![Part::Image("messages[0].content[1]".into())]);
        let error = text_of(&turn).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[0].content[1]"));
    }
}
