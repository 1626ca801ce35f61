//! `carat run`: one answer, or a chat.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};
use carat_engine::FinishReason;
use carat_model::{LoadOptions, Model};
use carat_plan::Wish;
use carat_prompt::{Attachment, Prompt, Senses, Source};
use carat_text::{Message, Role};
use clap::Args;
use serde_json::json;

use crate::answer::{Answer, AnswerOptions, Answerer, print_reading, print_statistics, unusable};
use crate::chat::Chat;
use crate::compute_args::{Arithmetic, ComputeArgs};
use crate::draft_args::{DraftArgs, FoundDrafter, with_room};
use crate::failure::{Hinted, Interrupted, sentence};
use crate::interrupt::Interrupt;
use crate::media_args::{self, MediaArgs};
use crate::model_source::ModelSource;
use crate::planning::Towers;
use crate::prompt_file::PromptFile;
use crate::sampling_args::SamplingArgs;
use crate::settings::Settings;
use crate::thoughts::Show;
use crate::{output, planning, text_input};

/// Ask a model once, or chat with it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat run gemma3:1b                             chat (/help inside)\n  carat run gemma3:1b \
                        \"Why is the sky blue?\"       one answer\n  carat run gemma3:1b \"Sum up:\" < notes.txt       prompt \
                        and piped text together\n  carat run gemma3:270m-pt \"The capital of France is\" --max-tokens 8 \
                        --temperature 0\n  carat run gemma3:1b \"Name a colour\" --json --logprobs 5\n  carat run gemma3:4b --image cat.jpg \"What is this?\"\n  carat run \
                        gemma4:12b --image a.png --image b.png --audio question.wav \"\"\n  carat run gemma4:e4b --video \
                        clip.mp4 \"What happens?\" --frames 16\n  carat run gemma4:12b --think \"How many primes are below \
                        100?\"\n  carat run gemma3:12b \"Who is the thief?\" --prompt-cache novel.kv < novel.txt   reads the novel once\n\nA model that is not \
                        on this machine is pulled first. Base models continue the text as it stands; instruct models \
                        get it as a chat message. What \
                        stdin holds is read to its end, so in a loop over lines write `< /dev/null`."
)]
pub(crate) struct Run {
    /// The model
    model: String,
    /// What to ask; without it and without piped text, a chat begins
    prompt: Option<String>,
    /// Instructions that come before everything
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens to generate [default: until the model ends]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Tokens that prompt and answer together may have [default: the model's context, or what memory has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    ctx: Option<u32>,
    /// Run the model even if memory has no room for it
    #[arg(long)]
    force: bool,
    /// Continue the text as it stands, without a chat template
    #[arg(long, conflicts_with_all = ["chat", "system"])]
    raw: bool,
    /// Use Gemma's chat format even if the model seems to be a base model
    #[arg(long)]
    chat: bool,
    /// Show speed and context use after each answer
    #[arg(long, short)]
    verbose: bool,
    /// Keep what the model has read of the prompt in FILE, and begin from there the next time. A prompt that begins alike
    /// is then not computed again, so piped text comes before the question; Ctrl-C while it is being read keeps what was
    /// read
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
    /// With --json: each token's log-probability and its N likeliest alternatives
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u8).range(0..=100))]
    logprobs: Option<u8>,
    /// Let the model think before it answers (Gemma 4); thoughts are shown dim, and left out of --json's text
    #[arg(long, conflicts_with = "raw")]
    think: bool,
    #[command(flatten)]
    media: MediaArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl Run {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        // Read first: whoever pipes text in should not wait for the model.
        let prompt = self.one_prompt(interrupt)?;
        if prompt.is_none() && self.prompt_cache.is_some() {
            let hint = "give a prompt, or pipe text in";
            return Err(
                Hinted::wrong_arguments("--prompt-cache is for one answer, not for a chat", hint).into(),
            );
        }
        if prompt.is_none() && self.json {
            return Err(Hinted::wrong_arguments("--json needs a prompt", "give one, or pipe text in").into());
        }
        self.check_files()?;
        let source = ModelSource::of(self.draft.obtain(&self.model, settings, interrupt)?)?;
        if let Some(n_max) = self.ctx {
            planning::check_context(n_max as usize, source.checkpoint.config())?;
        }
        let mut drafter = self.draft.find(&source, settings, interrupt)?;
        let towers = if prompt.is_none() || !self.media.attachments.0.is_empty() {
            self.media.towers()
        } else {
            Towers::None
        };
        let (load, context) = self.fitting(&source, settings, towers, &mut drafter)?;
        let tokenizer = source.tokenizer()?;
        let template = match (self.raw, self.chat, source.chat_template(&tokenizer)?) {
            (true, _, _) => None,
            (false, true, None) => Some(source.family_template()),
            (false, _, found) => found,
        };
        if template.is_none() && self.system.is_some() {
            let hint = "leave --system away, or add --chat to use Gemma's chat format";
            return Err(Hinted::wrong_arguments("a base model takes no system text", hint).into());
        }
        let mut model = Model::from_checkpoint(&source.checkpoint, load)?;
        let drafting = self.draft.prepare(&mut model, &mut drafter, &tokenizer)?;
        let options = AnswerOptions {
            sampling: self.sampling.params(&source.sampling_defaults()?),
            max_tokens: self.max_tokens.map(|n| n as usize),
            stop_strings: self.stop.clone(),
            logprobs: self.logprobs.map(usize::from),
            context,
            thinking: self.think,
            show: self.show(prompt.is_none(), settings),
            drafting,
            drafter: drafter.map(|drafter| drafter.local.name),
        };
        let senses = self.senses(&source, &model, prompt.is_none(), settings)?;
        let prompt_file = self
            .prompt_cache
            .as_ref()
            .map(|path| PromptFile::new(path, &source.checkpoint, &model));
        let answerer = Answerer::new(&source, tokenizer, template, model, senses)?;
        if self.think && !answerer.can_think() {
            let hint = "leave --think away, or take a Gemma 4 that follows instructions";
            let message = format!("`{}` has no channel for thoughts", source.local.name);
            return Err(Hinted::wrong_arguments(message, hint).into());
        }
        match prompt {
            Some(prompt) => self.once(answerer, &options, &prompt, prompt_file.as_ref(), interrupt),
            None => {
                let mut chat = Chat::new(answerer, options, self.system, self.verbose, &source.local.name);
                for attachment in &self.media.attachments.0 {
                    chat.attach(attachment)?;
                }
                chat.run(&settings.carat_dir, interrupt)
            }
        }
    }

    /// Files that are not there are told before a model is loaded for them.
    fn check_files(&self) -> Result<()> {
        for attachment in &self.media.attachments.0 {
            let (Attachment::Image(from) | Attachment::Audio(from) | Attachment::Video(from)) = attachment;
            if let Source::File(path) = from
                && !path.exists()
            {
                let what = attachment.kind().name();
                return Err(anyhow!(
                    "`{}`, given as {what}, does not exist",
                    attachment.name()
                ));
            }
        }
        Ok(())
    }

    /// The model's senses, where they may be needed. A chat goes on without them.
    fn senses(
        &self,
        source: &ModelSource,
        model: &Model,
        is_chat: bool,
        settings: &Settings,
    ) -> Result<Senses> {
        let has_some = !self.media.attachments.0.is_empty();
        if !has_some && !is_chat {
            return Ok(Senses::none(&source.local.name));
        }
        match self.media.senses(source, model, self.compute.dtype, settings) {
            Err(error) if is_chat && !has_some => {
                let why = sentence(&error);
                output::note(&format!(
                    "the model's encoders cannot be used, so it takes text only: {why}"
                ));
                Ok(Senses::none(&source.local.name))
            }
            result => result,
        }
    }

    /// Thoughts go where people read; programs get the answer.
    fn show(&self, is_chat: bool, settings: &Settings) -> Show {
        match (settings.color, is_chat || io::stdout().is_terminal()) {
            _ if self.json => Show::Never,
            (true, _) => Show::Dim,
            (false, true) => Show::Plain,
            (false, false) => Show::Never,
        }
    }

    /// How to load the model and the context that there is room for: what the user said, else the best that fits.
    fn fitting(
        &self,
        source: &ModelSource,
        settings: &Settings,
        towers: Towers<'_>,
        drafter: &mut Option<FoundDrafter>,
    ) -> Result<(LoadOptions, Option<usize>)> {
        let options = self.compute.options(settings)?;
        let asked = self.ctx.map(|n| n as usize);
        let is_reference = self.compute.dtype == Arithmetic::F32;
        let wish = Wish {
            context: asked,
            kv_dtype: self.compute.kv_type.or(is_reference.then_some(options.kv_dtype)),
        };
        let chosen = with_room(drafter, |drafter| {
            planning::choose(source, &options, wish, towers, drafter)
        });
        let chosen = match chosen {
            Err(_) if self.force => None,
            result => result?,
        };
        let Some(choice) = chosen else {
            return Ok((options, asked));
        };
        if self.verbose {
            output::note(&format!("memory  {choice}"));
        }
        let load = LoadOptions {
            kv_dtype: choice.kv_dtype,
            ..options
        };
        Ok((load, Some(choice.context)))
    }

    /// Argument and piped text together; `None` begins a chat.
    fn one_prompt(&self, interrupt: &Interrupt) -> Result<Option<String>> {
        match (&self.prompt, text_input::piped(interrupt)?) {
            (Some(prompt), Some(piped)) if !piped.trim().is_empty() => {
                Ok(Some(together(prompt, &piped, self.prompt_cache.is_some())))
            }
            (Some(prompt), _) => Ok(Some(prompt.clone())),
            (None, Some(piped)) if piped.is_empty() => {
                let hint = "give a prompt as an argument, or run in a terminal to chat";
                Err(Hinted::wrong_arguments("there is no prompt: the input is empty", hint).into())
            }
            // The newline that ends a piped line is the shell's, not the prompt's: a base model would go on from it.
            (None, piped) => Ok(piped.map(|mut text| {
                if text.ends_with('\n') {
                    text.pop();
                }
                text
            })),
        }
    }

    fn once(
        &self,
        mut answerer: Answerer,
        options: &AnswerOptions,
        prompt: &str,
        prompt_file: Option<&PromptFile>,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let files: &[Attachment] = &self.media.attachments.0;
        let n_max = options.context.unwrap_or(usize::MAX);
        let began = Instant::now();
        let attached = answerer
            .senses
            .attach_all(files, n_max, &mut || !interrupt.is_raised())
            .map_err(unusable)?;
        let (message, attached) = media_args::message(prompt, attached);
        let system = self.system.iter().map(|text| Message::text(Role::System, text));
        let messages: Vec<Message> = system.chain([message]).collect();
        let ids = answerer.prompt(&messages, &attached, options, interrupt)?;
        if self.verbose && !attached.is_empty() {
            let n: usize = attached.iter().map(|one| one.n_soft_tokens()).sum();
            output::note(&format!(
                "media   {}, {:.2} s",
                output::counted(n, "token"),
                began.elapsed().as_secs_f64()
            ));
        }
        if let Some(file) = prompt_file {
            self.read_first(&mut answerer, file, &ids, options, interrupt)?;
        }
        let streams = !self.json;
        let answer = answerer.answer(ids, options, interrupt, &mut |text| {
            if streams { output::write(text) } else { Ok(()) }
        })?;
        if self.json {
            output::json(&self.answer_json(&answer, &answerer, options))?;
        } else if !answer.text.ends_with('\n') || io::stdout().is_terminal() {
            output::line("")?;
        }
        if self.verbose {
            print_statistics(&answer.finished);
        }
        if answer.finished.reason == FinishReason::Cancelled {
            Err(Interrupted.into())
        } else {
            Ok(())
        }
    }

    /// Reads the prompt on top of what `file` has of it, and keeps that before anything is answered.
    fn read_first(
        &self,
        answerer: &mut Answerer,
        file: &PromptFile,
        prompt: &Prompt,
        options: &AnswerOptions,
        interrupt: &Interrupt,
    ) -> Result<()> {
        answerer.read_from(file, options)?;
        let read = answerer.read(prompt, options, interrupt)?;
        if self.verbose {
            print_reading("file", &read.finished);
        }
        if read.is_news && !read.is_loss {
            match answerer.write_to(file) {
                // The answer is worth more than the file.
                Err(error) if read.is_whole => {
                    output::note(&format!("the prompt is not kept: {}", sentence(&error)));
                }
                result => result?,
            }
        }
        if read.is_whole {
            return Ok(());
        }
        let path = file.path().display();
        output::note(&if read.is_loss {
            format!("`{path}` stays as it was: it holds more of an earlier prompt than was read of this one")
        } else {
            format!("what was read is kept in `{path}`")
        });
        Err(Interrupted.into())
    }

    fn answer_json(
        &self,
        answer: &Answer,
        answerer: &Answerer,
        options: &AnswerOptions,
    ) -> serde_json::Value {
        let piece = |id: u32| answerer.tokenizer.token_piece(id);
        let (usage, timings) = (answer.finished.usage, answer.finished.timings);
        let mut value = json!({
            "model": self.model,
            "text": answer.text,
            "thoughts": Some(&answer.thoughts).filter(|thoughts| !thoughts.is_empty()),
            "finish_reason": match answer.finished.reason {
                FinishReason::Stop => "stop",
                FinishReason::StopString => "stop_string",
                FinishReason::Length => "length",
                FinishReason::ContextFull => "context_full",
                FinishReason::Cancelled => "cancelled",
                FinishReason::Deadline => "deadline",
            },
            "seed": options.sampling.seed,
            "usage": {"prompt_tokens": usage.n_prompt, "completion_tokens": usage.n_generated},
            "drafts": {
                "drafter": options.drafter,
                "drafted": answer.finished.drafts.drafted,
                "accepted": answer.finished.drafts.accepted,
            },
            "timings": {
                "prefill_ms": timings.prefill.as_secs_f64() * 1e3,
                "prefill_tok_per_s": timings.prefill_tok_per_s(),
                "decode_ms": timings.decode.as_secs_f64() * 1e3,
                "decode_tok_per_s": timings.decode_tok_per_s(),
            },
        });
        if options.logprobs.is_some() {
            let tokens: Vec<_> = answer
                .logprobs
                .iter()
                .map(|(id, found)| {
                    let top: Vec<_> = found
                        .top
                        .iter()
                        .map(|&(id, logprob)| json!({"id": id, "piece": piece(id), "logprob": logprob}))
                        .collect();
                    json!({"id": id, "piece": piece(*id), "logprob": found.logprob, "top": top})
                })
                .collect();
            value["logprobs"] = tokens.into();
        }
        value
    }
}

/// Question and piped text as one prompt. What is to be kept comes first, so that another question about the same text
/// begins alike.
fn together(question: &str, piped: &str, is_kept: bool) -> String {
    if is_kept {
        format!("{}\n\n{question}", piped.trim_end_matches(['\r', '\n']))
    } else {
        format!("{question}\n\n{piped}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_text_comes_before_the_question() {
        assert_eq!(together("Sum up:", "notes\n", false), "Sum up:\n\nnotes\n");
        assert_eq!(together("Who?", "novel\n", true), "novel\n\nWho?");
    }
}
