//! The flags that attach images, sounds and videos, and how a message is made of them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use carat_hub::{Hub, LocalModel};
use carat_media::{FrameSampling, MediaOptions, PanAndScan, TokenBudget, VideoTools};
use carat_model::{Checkpoint, EncoderPrecision, MediaSource, Model};
use carat_prompt::{Attached, Attachment, Kind, Senses, SensesOptions, Source};
use carat_text::{Message, Part, Role};
use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::compute_args::Arithmetic;
use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::output;
use crate::planning::Towers;
use crate::pull_progress::PullProgress;
use crate::settings::Settings;

/// How images, sounds and videos are taken.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Images, sounds and videos")]
pub(crate) struct MediaArgs {
    #[command(flatten)]
    pub(crate) attachments: Attachments,
    /// Tokens of an image at most (Gemma 4): 70 or 140 for an overview, 560 or 1120 for documents and small print
    #[arg(long, value_name = "N", default_value = "280", value_parser = parse_budget)]
    image_tokens: TokenBudget,
    /// Look at elongated images in crops too (Gemma 3)
    #[arg(long)]
    pan_and_scan: bool,
    /// Frames to take from a video
    #[arg(long, value_name = "N", default_value = "32", value_parser = parse_frames)]
    frames: FrameSampling,
    /// The GGUF model's encoders [default: a file with mmproj in its name beside the model]
    #[arg(long, value_name = "FILE.gguf")]
    mmproj: Option<PathBuf>,
}

/// Pulls the encoders of a model that has just been pulled, if it can see. It can do without: only being stopped is an
/// error.
pub(crate) fn pull_towers(hub: &Hub, model: &LocalModel, interrupt: &Interrupt) -> Result<()> {
    let can_have = |checkpoint: &Checkpoint| {
        let is_there = MediaSource::find(checkpoint).is_ok_and(|found| found.is_some());
        carat_plan::vision_bytes(checkpoint.config()).is_some() && !is_there
    };
    if !Checkpoint::open(&model.path).is_ok_and(|checkpoint| can_have(&checkpoint)) {
        return Ok(());
    }
    match hub.pull_towers(model, &mut PullProgress::new(), interrupt.flag()) {
        Ok(_) => Ok(()),
        Err(error @ carat_hub::Error::Cancelled) => Err(error.into()),
        Err(error) => {
            output::note(&format!(
                "its encoders for images and sounds cannot be had, and it takes text only: {error}"
            ));
            Ok(())
        }
    }
}

impl MediaArgs {
    /// The towers to plan for where any may be needed.
    pub(crate) fn towers(&self) -> Towers<'_> {
        self.mmproj.as_deref().map_or(Towers::Own, Towers::OfFile)
    }

    /// The model's senses. Those of a model of text alone refuse everything by name.
    pub(crate) fn senses(
        &self,
        source: &ModelSource,
        model: &Model,
        arithmetic: Arithmetic,
        settings: &Settings,
    ) -> anyhow::Result<Senses> {
        let options = SensesOptions {
            media: MediaOptions {
                pan_and_scan: self.pan_and_scan.then(PanAndScan::default),
                image_budget: self.image_tokens,
                sampling: self.frames,
                ..MediaOptions::default()
            },
            precision: match arithmetic {
                Arithmetic::F32 => EncoderPrecision::F32,
                Arithmetic::Auto | Arithmetic::Int8 | Arithmetic::Int16 => EncoderPrecision::Half,
            },
            mmproj: self.mmproj.clone(),
            video_tools: video_tools(settings),
            ..SensesOptions::default()
        };
        Ok(Senses::of_model(
            &source.local.name,
            model,
            &source.checkpoint,
            options,
        )?)
    }
}

/// The machine's ffmpeg, if it has one.
pub(crate) fn video_tools(settings: &Settings) -> Option<VideoTools> {
    let path = settings.search_path.as_deref()?;
    VideoTools::find(path.as_ref(), &std::env::temp_dir())
}

fn parse_budget(text: &str) -> Result<TokenBudget, String> {
    let tokens = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    TokenBudget::new(tokens).map_err(|error| error.to_string())
}

fn parse_frames(text: &str) -> Result<FrameSampling, String> {
    let n = text.parse().map_err(|_| format!("`{text}` is not a number"))?;
    FrameSampling::count(n).map_err(|error| error.to_string())
}

/// What `--image`, `--audio` and `--video` name, in the order of the line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attachments(pub(crate) Vec<Attachment>);

const FLAGS: [(&str, Kind, &str); 3] = [
    (
        "image",
        Kind::Image,
        "Look at an image: PNG, JPEG, WebP, GIF, BMP or TIFF; may be repeated",
    ),
    (
        "audio",
        Kind::Audio,
        "Listen to a sound of up to 30 seconds: WAV, MP3, FLAC, OGG or M4A; may be repeated",
    ),
    (
        "video",
        Kind::Video,
        "Watch a video (needs ffmpeg), an animated GIF or WebP, or a folder of frames; may be repeated",
    ),
];

/// A file as an attachment.
pub(crate) fn attachment(kind: Kind, path: PathBuf) -> Attachment {
    match kind {
        Kind::Image => Attachment::Image(Source::File(path)),
        Kind::Audio => Attachment::Audio(Source::File(path)),
        Kind::Video => Attachment::Video(Source::File(path)),
    }
}

impl Args for Attachments {
    fn augment_args(command: Command) -> Command {
        let flag = |(name, _, help): (&'static str, Kind, &'static str)| {
            Arg::new(name)
                .long(name)
                .value_name("FILE")
                .help(help)
                .action(ArgAction::Append)
                .value_parser(ValueParser::path_buf())
        };
        command.args(FLAGS.map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Attachments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut all = Self::default();
        all.update_from_arg_matches(matches)?;
        Ok(all)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let mut found = Vec::new();
        for (name, kind, _) in FLAGS {
            let indices = matches.indices_of(name).into_iter().flatten();
            let paths = matches.get_many::<PathBuf>(name).into_iter().flatten();
            found.extend(
                indices
                    .zip(paths)
                    .map(|(i, path)| (i, attachment(kind, path.clone()))),
            );
        }
        found.sort_by_key(|(i, _)| *i);
        self.0 = found.into_iter().map(|(_, attachment)| attachment).collect();
        Ok(())
    }
}

/// A user's message. As Gemma's makers advise, what is seen comes before the text and what is heard behind it, each in
/// the order given. The inputs come back in the order of their places.
pub(crate) fn message(text: &str, attached: Vec<Arc<Attached>>) -> (Message, Vec<Arc<Attached>>) {
    let (heard, seen): (Vec<_>, Vec<_>) = attached.into_iter().partition(|one| one.kind() == Kind::Audio);
    let mut parts: Vec<Part> = seen.iter().map(|one| one.kind().part()).collect();
    if !text.is_empty() || heard.is_empty() && seen.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
    parts.extend(heard.iter().map(|one| one.kind().part()));
    (
        Message::new(Role::User, parts),
        seen.into_iter().chain(heard).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        media: MediaArgs,
    }

    #[test]
    fn the_order_of_the_line_is_kept() {
        let line = [
            "carat",
            "--video",
            "c",
            "--image",
            "a",
            "--audio=b",
            "--image",
            "d",
        ];
        let found = Line::parse_from(line).media.attachments.0;
        let names: Vec<String> = found.iter().map(Attachment::name).collect();
        assert_eq!(names, ["c", "a", "b", "d"]);
        assert_eq!(found[0].kind(), Kind::Video);
        assert!(Line::parse_from(["carat"]).media.attachments.0.is_empty());
    }
}
