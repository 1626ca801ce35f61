//! From a conversation to the model's prompt.

use std::sync::Arc;

use carat_api::{ApiError, ErrorKind, Format, GenerationRequest, MediaSource, Part, Role, Turn};
use carat_engine::{Grammar, Media};
use carat_prompt::{Attached, Attachment, Kind, PromptOptions, Source, compose};
use carat_text::{Message, RenderOptions, Special, Tool};

use crate::limits::VIDEOS;
use crate::model::ServedModel;
use crate::tools;

/// What the engine needs of a request beside its settings.
pub(crate) struct Prompt {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// What stands in the place of some of them.
    pub(crate) media: Vec<Media>,
    /// What the answer is bound to, and the field that says so.
    pub(crate) grammar: Option<(Grammar, &'static str)>,
}

impl Prompt {
    /// A prompt of text alone, bound to nothing.
    pub(crate) fn of_ids(ids: Vec<u32>) -> Self {
        Self {
            ids,
            media: Vec::new(),
            grammar: None,
        }
    }
}

/// A conversation as templates take it.
struct Conversation {
    messages: Vec<Message>,
    attachments: Vec<Attachment>,
}

/// Refuses what the model has no sense for, before anything is fetched for it.
pub(crate) fn check_senses(model: &ServedModel, request: &GenerationRequest) -> Result<(), ApiError> {
    for part in request.turns.iter().flat_map(|turn| &turn.parts) {
        let (kind, media) = match part {
            Part::Text(_) => continue,
            Part::Image(media) => (Kind::Image, media),
            Part::Audio(media) => (Kind::Audio, media),
            Part::Video(media) => (Kind::Video, media),
        };
        let senses = &model.setup.senses;
        senses.check(kind, &media.path).map_err(prompt_error)?;
    }
    Ok(())
}

/// Renders a conversation and encodes its images, sounds and videos, which may take long; `go_on` is asked now and then.
pub(crate) fn render(
    model: &ServedModel,
    request: &GenerationRequest,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Prompt, ApiError> {
    let conversation = conversation(model, request)?;
    if tools::are_offered(request) {
        tools::refuse_circles(request)?;
    }
    let n_max = model.context();
    check_least(model, request, &conversation.messages)?;
    if !go_on() {
        return Err(given_up());
    }
    let attached = attach(model, &conversation, n_max, go_on)?;
    let composed = composed(model, request, &conversation.messages, &attached, n_max)?;
    let mut prompt = composed
        .encode(&model.setup.senses, go_on)
        .map_err(prompt_error)?;
    if let Some(text) = &request.continues {
        begin(model, request, text, &mut prompt.ids)?;
    }
    Ok(Prompt {
        ids: prompt.ids,
        media: prompt.media,
        grammar: match model.call_marks {
            _ if !tools::are_offered(request) => grammar(request)?,
            Some(marks) => Some((tools::native::grammar(request, marks)?, "tools")),
            None => Some((tools::prompted::grammar(request)?, "tools")),
        },
    })
}

/// Puts the beginning of the answer behind the prompt. It is text, whatever it looks like.
fn begin(
    model: &ServedModel,
    request: &GenerationRequest,
    text: &str,
    ids: &mut Vec<u32>,
) -> Result<(), ApiError> {
    let is_bound = request.format != Format::Text || tools::are_offered(request);
    if is_bound || request.thinking == Some(true) {
        let message = "the beginning of an answer (a last message of the assistant; at OpenAI's API with \
                       `continue_final_message`) cannot be used with tools, thinking or a response format";
        return Err(ApiError::field("messages", message));
    }
    check_room(model, ids.len(), text, "messages")?;
    let tokenizer = &model.setup.tokenizer;
    tokenizer.encode_into(text, Special::AsText, ids);
    check_length(model, ids, "messages")
}

/// Refuses a conversation that is far too long for the context before anything is made of it but its text: to count the
/// tokens of megabytes takes seconds.
fn check_least(
    model: &ServedModel,
    request: &GenerationRequest,
    messages: &[Message],
) -> Result<(), ApiError> {
    let texts = messages.iter().flat_map(|message| &message.content);
    let n_least = texts.map(|part| match part {
        carat_text::Part::Text(text) => model.least_tokens(text),
        _ => 0,
    });
    if n_least.fold(0, usize::saturating_add) < model.context() {
        return Ok(());
    }
    // A template may leave out much of what was said: what it writes decides. Where it writes nothing, it says why later.
    let tools = declarations(model, request);
    let rendered = model
        .setup
        .template
        .render(messages, render_options(request, &tools));
    rendered.map_or(Ok(()), |text| check_room(model, 0, &text, "messages"))
}

/// How many tokens a conversation has, be they more than the context holds; no tower runs. `go_on` as for [`render`].
pub(crate) fn n_tokens(
    model: &ServedModel,
    request: &GenerationRequest,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<usize, ApiError> {
    let conversation = conversation(model, request)?;
    let attached = attach(model, &conversation, usize::MAX, go_on)?;
    let composed = composed(model, request, &conversation.messages, &attached, usize::MAX)?;
    let mut ids = composed.ids().to_vec();
    if let Some(text) = &request.continues {
        model.setup.tokenizer.encode_into(text, Special::AsText, &mut ids);
    }
    Ok(ids.len())
}

fn conversation(model: &ServedModel, request: &GenerationRequest) -> Result<Conversation, ApiError> {
    if model.call_marks.is_some() {
        return messages(tools::native::settled(&request.turns)?);
    }
    let mut turns = tools::prompted::as_text(&request.turns)?;
    if tools::are_offered(request) {
        if request.format != Format::Text {
            let field = format_name(request);
            let message = format!("`tools` and `{field}` cannot be used together yet; give one of them");
            return Err(ApiError::field(field, message));
        }
        let n_system = turns.iter().take_while(|turn| turn.role == Role::System).count();
        turns.insert(
            n_system,
            Turn::text(Role::System, tools::prompted::instructions(request)),
        );
    }
    messages(turns)
}

/// The field that binds the answer, without the parts of it that a client who thinks of the field does not think of.
fn format_name(request: &GenerationRequest) -> &'static str {
    let field = request.format_field;
    let field = field.strip_suffix(".schema").unwrap_or(field);
    field.strip_suffix(".json_schema").unwrap_or(field)
}

fn attach(
    model: &ServedModel,
    conversation: &Conversation,
    n_max: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Vec<Arc<Attached>>, ApiError> {
    let senses = &model.setup.senses;
    senses
        .attach_all(&conversation.attachments, n_max, go_on)
        .map_err(prompt_error)
}

fn composed<'a>(
    model: &ServedModel,
    request: &GenerationRequest,
    messages: &[Message],
    attached: &'a [Arc<Attached>],
    n_max: usize,
) -> Result<carat_prompt::Composed<'a>, ApiError> {
    let setup = &model.setup;
    let tools = declarations(model, request);
    let options = PromptOptions {
        render: render_options(request, &tools),
        n_max,
    };
    compose(
        &setup.tokenizer,
        Some(&setup.template),
        messages,
        attached,
        options,
    )
    .map_err(prompt_error)
}

/// The tools that the template tells of.
fn declarations(model: &ServedModel, request: &GenerationRequest) -> Vec<Tool> {
    match model.call_marks {
        Some(_) if tools::are_offered(request) => tools::native::declarations(request),
        _ => Vec::new(),
    }
}

fn render_options<'a>(request: &GenerationRequest, tools: &'a [Tool]) -> RenderOptions<'a> {
    RenderOptions {
        thinking: request.thinking == Some(true),
        tools,
        ..RenderOptions::default()
    }
}

/// Nobody waits for the prompt any more.
pub(crate) fn given_up() -> ApiError {
    prompt_error(carat_prompt::Error::Cancelled)
}

/// Why a prompt cannot be made, as clients are told.
fn prompt_error(error: carat_prompt::Error) -> ApiError {
    use carat_prompt::Error;
    let message = match &error {
        Error::Text(cause) => format!("{error}: {cause}"),
        _ => error.to_string(),
    };
    match error {
        Error::NoSense { file, .. } => ApiError::field(file, message),
        Error::TooLong { .. } => ApiError::field("messages", message).with_code("context_length_exceeded"),
        Error::Rows { .. } | Error::Model(_) => {
            tracing::error!(error = message, "an image or a sound could not be encoded");
            ApiError::new(
                ErrorKind::Internal,
                "the server made a mistake; its log says more",
            )
        }
        Error::Media(_) => ApiError::field(named(&message).unwrap_or("messages").to_string(), message),
        Error::Cancelled => ApiError::new(ErrorKind::Unavailable, message),
        _ => ApiError::field("messages", message),
    }
}

/// The field that a message about a file names first: files are called as the request names them.
fn named(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once('`')?;
    let (name, _) = rest.split_once('`')?;
    Some(name)
}

/// Ids of a text that is continued as it stands.
pub(crate) fn raw(model: &ServedModel, text: &str) -> Result<Vec<u32>, ApiError> {
    check_room(model, 0, text, "prompt")?;
    let tokenizer = &model.setup.tokenizer;
    let mut ids: Vec<u32> = tokenizer
        .bos()
        .into_iter()
        .filter(|_| tokenizer.adds_bos())
        .collect();
    tokenizer.encode_into(text, Special::Parse, &mut ids);
    check_length(model, &ids, "prompt")?;
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
    check_length(model, &ids, field)?;
    Ok(ids)
}

/// What the answer is bound to, and the field that says so.
pub(crate) fn grammar(request: &GenerationRequest) -> Result<Option<(Grammar, &'static str)>, ApiError> {
    let grammar = match &request.format {
        Format::Text => return Ok(None),
        Format::JsonObject => Grammar::JsonObject,
        Format::JsonSchema(schema) => {
            tools::check_schema(schema, request.format_field)?;
            Grammar::JsonSchema(schema.clone())
        }
        Format::Regex(regex) => Grammar::Regex(regex.clone()),
        Format::Lark(text) => Grammar::Lark(text.clone()),
        Format::Gbnf(text) => Grammar::Gbnf(text.clone()),
    };
    Ok(Some((grammar, request.format_field)))
}

/// A prompt that leaves no room for an answer is refused, with both numbers.
fn check_length(model: &ServedModel, ids: &[u32], field: &str) -> Result<(), ApiError> {
    if ids.len() < model.context() {
        return Ok(());
    }
    Err(too_long(model, &ids.len().to_string(), field))
}

/// The same before `text` is tokenized, behind `n_before` tokens, where its bytes alone say that it leaves no room.
fn check_room(model: &ServedModel, n_before: usize, text: &str, field: &str) -> Result<(), ApiError> {
    let n = model.least_tokens(text).saturating_add(n_before);
    if n < model.context() {
        return Ok(());
    }
    Err(too_long(model, &format!("at least {n}"), field))
}

fn too_long(model: &ServedModel, n: &str, field: &str) -> ApiError {
    let context = model.context();
    let message = format!(
        "this model's context is {context} tokens here, but the prompt has {n} and at least one must be left for the \
         answer; shorten the prompt or serve with a larger --ctx"
    );
    ApiError::field(field, message).with_code("context_length_exceeded")
}

/// Turns as templates take them: one system text in front, neighbours of the same role joined; and what is attached.
fn messages(turns: Vec<Turn>) -> Result<Conversation, ApiError> {
    let mut messages: Vec<Message> = Vec::new();
    let mut attachments = Vec::new();
    // Instructions alone are a question: templates want somebody to have asked.
    let is_asked = turns.iter().any(|turn| turn.role != Role::System);
    for turn in turns {
        // Only the first place is the system's; later instructions speak as the user.
        let is_start = messages
            .iter()
            .all(|message| message.role == carat_text::Role::System);
        let role = match turn.role {
            Role::System if is_start && is_asked => carat_text::Role::System,
            Role::System | Role::User => carat_text::Role::User,
            Role::Tool => carat_text::Role::Tool,
            Role::Assistant => carat_text::Role::Assistant,
        };
        let mut parts = Vec::with_capacity(turn.parts.len());
        for part in turn.parts {
            parts.push(place(part, role, &mut attachments)?);
        }
        let calls = turn.tool_calls.into_iter().map(|call| carat_text::ToolCall {
            id: call.id,
            name: call.name,
            arguments: call.arguments,
        });
        match messages.last_mut() {
            Some(last) if last.role == role && role != carat_text::Role::Tool => {
                if says_something(&last.content) && says_something(&parts) {
                    last.content.push(carat_text::Part::Text("\n\n".to_string()));
                }
                last.content.append(&mut parts);
                last.tool_calls.extend(calls);
                last.reasoning = last.reasoning.take().or(turn.reasoning);
            }
            _ => {
                let mut message = Message::new(role, parts);
                message.tool_calls = calls.collect();
                (message.reasoning, message.tool_call_id, message.name) =
                    (turn.reasoning, turn.tool_call_id, turn.name);
                messages.push(message);
            }
        }
    }
    for message in &mut messages {
        message.content = joined(std::mem::take(&mut message.content));
    }
    Ok(Conversation {
        messages,
        attachments,
    })
}

fn says_something(parts: &[carat_text::Part]) -> bool {
    let is_silent = |part: &carat_text::Part| matches!(part, carat_text::Part::Text(text) if text.is_empty());
    !parts.iter().all(is_silent)
}

/// A part's place in a message; what is no text is attached.
fn place(
    part: Part,
    role: carat_text::Role,
    attachments: &mut Vec<Attachment>,
) -> Result<carat_text::Part, ApiError> {
    let (media, kind) = match part {
        Part::Text(text) => return Ok(carat_text::Part::Text(text)),
        Part::Image(media) => (media, carat_text::Part::Image),
        Part::Audio(media) => (media, carat_text::Part::Audio),
        Part::Video(media) => (media, carat_text::Part::Video),
    };
    let MediaSource::Bytes(bytes) = media.source else {
        let message = format!("`{}` was not fetched", media.path);
        return Err(ApiError::field(media.path, message));
    };
    if !matches!(role, carat_text::Role::User | carat_text::Role::Tool) {
        let message = format!("`{}` must be in a message of the user", media.path);
        return Err(ApiError::field(media.path, message));
    }
    let is_video = |one: &&Attachment| one.kind() == Kind::Video;
    if kind == carat_text::Part::Video && attachments.iter().filter(is_video).count() == VIDEOS {
        let message = format!(
            "`{}` is one video too many: a request may have {VIDEOS}",
            media.path
        );
        return Err(ApiError::field(media.path, message));
    }
    let source = Source::Bytes {
        name: media.path,
        bytes,
    };
    attachments.push(match kind {
        carat_text::Part::Audio => Attachment::Audio(source),
        carat_text::Part::Video => Attachment::Video(source),
        _ => Attachment::Image(source),
    });
    Ok(kind)
}

/// Neighbouring texts as one: templates may trim each for itself.
fn joined(parts: Vec<carat_text::Part>) -> Vec<carat_text::Part> {
    let mut all: Vec<carat_text::Part> = Vec::with_capacity(parts.len());
    for part in parts {
        match (all.last_mut(), part) {
            (Some(carat_text::Part::Text(before)), carat_text::Part::Text(more)) => before.push_str(&more),
            (_, part) => all.push(part),
        }
    }
    if all.is_empty() {
        all.push(carat_text::Part::Text(String::new()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use carat_api::Media;

    fn media(path: &str) -> Media {
        Media {
            path: path.to_string(),
            source: MediaSource::Bytes((*b"x").into()),
        }
    }

    fn image(path: &str) -> Part {
        Part::Image(media(path))
    }

    #[test]
    fn neighbours_of_the_same_role_are_joined() {
        let turns = vec![
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
        assert_eq!(messages(turns).unwrap().messages, expected);
    }

    #[test]
    fn instructions_alone_are_what_the_user_asks() {
        let turns = vec![Turn::text(Role::System, "a"), Turn::text(Role::System, "b")];
        let expected = [Message::text(carat_text::Role::User, "a\n\nb")];
        assert_eq!(messages(turns).unwrap().messages, expected);
    }

    #[test]
    fn images_keep_their_places_and_belong_to_the_user() {
        let parts = vec![Part::Text("a".into()), image("p"), Part::Text("b".into())];
        let turns = vec![Turn::new(Role::User, parts), Turn::text(Role::User, "c")];
        let conversation = messages(turns).unwrap();
        use carat_text::Part::{Image, Text};
        let expected = [Text("a".into()), Image, Text("b\n\nc".into())];
        assert_eq!(conversation.messages[0].content, expected);
        assert_eq!(conversation.attachments[0].name(), "p");
        let error = messages(vec![Turn::new(Role::Assistant, vec![image("q")])])
            .err()
            .unwrap();
        assert_eq!(error.param.as_deref(), Some("q"));
    }

    #[test]
    fn videos_are_few() {
        let video = |i: usize| Part::Video(media(&format!("v{i}")));
        let of = |n: usize| messages(vec![Turn::new(Role::User, (0..n).map(video).collect())]);
        assert_eq!(of(VIDEOS).unwrap().attachments.len(), VIDEOS);
        let error = of(VIDEOS + 1).err().unwrap();
        assert_eq!(error.param, Some(format!("v{VIDEOS}")));
    }
}
