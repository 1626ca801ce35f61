//! Gemma 3's prompt format, for instruction models whose file carries no template.
//!
//! Turns are `<start_of_turn>ROLE`, newline, content, `<end_of_turn>`, newline. There are two roles, `user` and `model`,
//! which must alternate; a system message goes in front of the first turn's content. Each text part is trimmed, the
//! system text is not. This follows the official template; where that one drops something without a word
//! (a system message alone, further parts of a system message), this one refuses or keeps it.

use crate::chat::{Message, Part, RenderOptions, Role};
use crate::error::{Error, Result};

/// Renders `messages`; `bos` is put in front.
pub(crate) fn render(messages: &[Message], options: RenderOptions<'_>, bos: &str) -> Result<String> {
    let mut prompt = String::from(bos);
    let (system, turns) = match messages {
        [first, turns @ ..] if first.role == Role::System => (Some(first), turns),
        turns => (None, turns),
    };
    if system.is_some() && turns.is_empty() {
        return Err(Error::RoleOrder {
            index: 0,
            found: Role::System.name(),
            expected: Role::User.name(),
        });
    }
    let offset = messages.len() - turns.len();
    for (i, turn) in turns.iter().enumerate() {
        let expected = if i % 2 == 0 { Role::User } else { Role::Assistant };
        if turn.role != expected {
            let (found, expected) = (turn.role.name(), expected.name());
            return Err(Error::RoleOrder {
                index: offset + i,
                found,
                expected,
            });
        }
        prompt.push_str("<start_of_turn>");
        prompt.push_str(if turn.role == Role::User { "user" } else { "model" });
        prompt.push('\n');
        if let (0, Some(system)) = (i, system) {
            push_parts(&mut prompt, &system.content, |text| text);
            prompt.push_str("\n\n");
        }
        push_parts(&mut prompt, &turn.content, python_strip);
        prompt.push_str("<end_of_turn>\n");
    }
    if options.add_generation_prompt {
        prompt.push_str("<start_of_turn>model\n");
    }
    Ok(prompt)
}

fn push_parts(prompt: &mut String, parts: &[Part], trim: fn(&str) -> &str) {
    for part in parts {
        prompt.push_str(match part {
            Part::Text(text) => trim(text),
            Part::Image => "<start_of_image>",
            // Gemma 3 has no placeholder for others: a video is given to it as images.
            Part::Audio | Part::Video => "",
        });
    }
}

/// `str.strip` of Python, on which the reference's templates run: the four information separators count as blanks.
pub(crate) fn python_strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_must_alternate() {
        let say = Message::text;
        let options = RenderOptions::default();
        let error = render(&[say(Role::Assistant, "x")], options, "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "message 0 has the role assistant, expected user: user and assistant must alternate"
        );
        let twice = [say(Role::System, "s"), say(Role::User, "a"), say(Role::User, "b")];
        assert!(matches!(
            render(&twice, options, ""),
            Err(Error::RoleOrder { index: 2, .. })
        ));
        assert!(matches!(
            render(&twice[..1], options, ""),
            Err(Error::RoleOrder { index: 0, .. })
        ));
    }

    #[test]
    fn strips_as_python_does() {
        assert_eq!(python_strip("\u{1c} \u{3000}a\u{200b}\u{85}\n"), "a\u{200b}");
    }
}
