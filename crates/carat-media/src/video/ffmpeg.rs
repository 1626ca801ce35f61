//! Videos by the `ffmpeg` and `ffprobe` of the machine.
//!
//! `ffprobe` counts the frames (packets, without decoding), then `ffmpeg` decodes and writes the chosen ones as a
//! stream of PPM images, whose headers tell their sizes. Names never pass through a shell, and are given as
//! `file:` with an absolute path, so that none is taken for an option, another protocol or a pattern. What a file
//! may refer to is restricted to files as well. What somebody sent ([`Origin::Sent`]) may be of no format that
//! refers to other files, has less time and fewer pixels, and lies in a file of its own while it is decoded.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::command::Running;
use super::{FrameSampling, VideoFrame};
use crate::error::{Error, Result};
use crate::image::{RgbImage, check_size};
use crate::input;
use crate::limits::{
    MAX_IMAGE_PIXELS, MAX_SENT_VIDEO_DECODE_SECONDS, MAX_SENT_VIDEO_PIXELS, MAX_VIDEO_DECODE_SECONDS,
};

/// Longest answer of ffprobe that is looked at, in bytes.
const MAX_PROBE_BYTES: usize = 1 << 20;
/// Longest head of a PPM image, in bytes: `P6\n65535 65535\n255\n` and room.
const MAX_PPM_HEAD_BYTES: usize = 64;
/// What the reference assumes where a file tells no rate.
const DEFAULT_FRAMES_PER_SECOND: f64 = 24.0;

/// Formats of videos that somebody sent. Playlists and the like, which name other files, are not among them.
const SENT_FORMATS: &str =
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,h264,hevc";

/// The two programs that decode videos, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VideoTools {
    /// Decodes.
    pub ffmpeg: PathBuf,
    /// Counts frames.
    pub ffprobe: PathBuf,
    /// The folder where a video that came as bytes lies while it is decoded.
    pub scratch: PathBuf,
}

/// Where a video comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The user names a file.
    Named,
    /// Somebody else sent it.
    Sent,
}

impl Origin {
    fn time_limit(self) -> Duration {
        Duration::from_secs(match self {
            Origin::Named => MAX_VIDEO_DECODE_SECONDS,
            Origin::Sent => MAX_SENT_VIDEO_DECODE_SECONDS,
        })
    }

    /// What both programs are told about what they read.
    fn restrictions(self) -> Vec<String> {
        let (n_pixels, formats) = match self {
            Origin::Named => (MAX_IMAGE_PIXELS, None),
            Origin::Sent => (MAX_SENT_VIDEO_PIXELS, Some(SENT_FORMATS)),
        };
        let mut all = vec!["-protocol_whitelist", "file", "-max_pixels"];
        let n_pixels = n_pixels.to_string();
        all.push(&n_pixels);
        if let Some(formats) = formats {
            all.extend(["-format_whitelist", formats]);
        }
        all.into_iter().map(str::to_owned).collect()
    }
}

impl VideoTools {
    /// Looks for both in the folders of `search_path` (the value of `PATH`); `scratch` is as in the field.
    #[must_use]
    pub fn find(search_path: &OsStr, scratch: &Path) -> Option<VideoTools> {
        let find = |program: &str| {
            let file = format!("{program}{}", std::env::consts::EXE_SUFFIX);
            let folders = std::env::split_paths(search_path);
            // An empty entry would mean the current folder, where nobody wants programs from.
            let mut files = folders
                .filter(|folder| folder.is_absolute())
                .map(|folder| folder.join(&file));
            files.find(|path| path.is_file())
        };
        Some(VideoTools {
            ffmpeg: find("ffmpeg")?,
            ffprobe: find("ffprobe")?,
            scratch: scratch.to_owned(),
        })
    }
}

/// Frames of the file at `path`.
pub(super) fn read(
    path: &Path,
    sampling: FrameSampling,
    tools: &VideoTools,
    take: &mut dyn FnMut(VideoFrame) -> Result<()>,
) -> Result<()> {
    let name = input::display(path);
    let video = Video {
        address: address(path, &name)?,
        name: &name,
        origin: Origin::Named,
    };
    video.read(sampling, tools, take)
}

/// Frames of a file that somebody sent. Its bytes are written to a file that only this user may read, which is gone
/// afterwards: the index of many videos stands at their end, so no pipe will do.
pub(super) fn decode(
    bytes: &[u8],
    name: &str,
    sampling: FrameSampling,
    tools: &VideoTools,
    take: &mut dyn FnMut(VideoFrame) -> Result<()>,
) -> Result<()> {
    let failed = |source| Error::Io {
        action: "store",
        file: name.to_owned(),
        source,
    };
    let mut file = tempfile::Builder::new()
        .prefix("carat-video-")
        .tempfile_in(&tools.scratch)
        .map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.flush())
        .map_err(failed)?;
    let video = Video {
        address: address(file.path(), name)?,
        name,
        origin: Origin::Sent,
    };
    // Whoever sent it need not know where it lay.
    let place = video.address.to_string_lossy().into_owned();
    video.read(sampling, tools, take).map_err(|error| match error {
        Error::VideoTool { file, tool, reason } => Error::VideoTool {
            file,
            tool,
            reason: reason.replace(&place, name),
        },
        other => other,
    })
}

/// A file that the programs are to read.
struct Video<'a> {
    address: OsString,
    /// What errors call it.
    name: &'a str,
    origin: Origin,
}

impl Video<'_> {
    fn read(
        &self,
        sampling: FrameSampling,
        tools: &VideoTools,
        take: &mut dyn FnMut(VideoFrame) -> Result<()>,
    ) -> Result<()> {
        let (total, rate) = self.probe(&tools.ffprobe)?;
        let indices = sampling.indices(total, total as f64 / rate);
        if indices.is_empty() {
            return Ok(());
        }
        let mut command = Command::new(&tools.ffmpeg);
        command.args(["-nostdin", "-v", "error"]);
        command
            .args(self.origin.restrictions())
            .arg("-i")
            .arg(&self.address);
        command.args(["-map", "0:v:0", "-an", "-sn", "-dn", "-vf", &selection(&indices)]);
        command.args(["-frames:v", &indices.len().to_string()]);
        // The filters give the frames times so far apart, so that this rate neither repeats nor drops any.
        command.args(["-r", "1/1000000", "-f", "image2pipe", "-c:v", "ppm"]);
        // Of a video with more than 8 bits a channel the encoder would write 16.
        command.args(["-pix_fmt", "rgb24", "-"]);
        let running = Running::start(command, "ffmpeg", self.name, self.origin.time_limit())?;
        let mut stream = PpmStream::new(running, self.name);
        for index in indices {
            // A file may hold fewer pictures than packets.
            let Some(image) = stream.next_image()? else {
                break;
            };
            let seconds = index as f64 / rate;
            take(VideoFrame { image, seconds })?;
        }
        stream.finish()
    }

    /// Number of frames, and frames a second.
    fn probe(&self, ffprobe: &Path) -> Result<(usize, f64)> {
        let mut command = Command::new(ffprobe);
        command.args(["-v", "error", "-select_streams", "v:0", "-count_packets"]);
        command.args(["-show_entries", "stream=nb_read_packets,avg_frame_rate"]);
        command.args(["-of", "json"]);
        command
            .args(self.origin.restrictions())
            .arg("-i")
            .arg(&self.address);
        let mut running = Running::start(command, "ffprobe", self.name, self.origin.time_limit())?;
        let mut answer = Vec::new();
        while let Some(piece) = running.next_piece()? {
            answer.extend(piece);
            if answer.len() > MAX_PROBE_BYTES {
                return Err(running.failed("its answer is too long".into()));
            }
        }
        running.finish()?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|error| Error::VideoTool {
            file: self.name.to_owned(),
            tool: "ffprobe",
            reason: format!("its answer is no JSON ({error})"),
        })?;
        let stream = &answer["streams"][0];
        let count = stream["nb_read_packets"]
            .as_str()
            .and_then(|text| text.parse().ok());
        let rate = stream["avg_frame_rate"].as_str().and_then(fraction);
        match count {
            Some(count) => Ok((count, rate.unwrap_or(DEFAULT_FRAMES_PER_SECOND))),
            None => Err(Error::NoFrames {
                file: self.name.to_owned(),
            }),
        }
    }
}

/// How the file is named to the programs.
fn address(path: &Path, name: &str) -> Result<OsString> {
    let absolute = std::path::absolute(path).map_err(|source| Error::Io {
        action: "find",
        file: name.to_owned(),
        source,
    })?;
    let mut address = OsString::from("file:");
    address.push(absolute);
    Ok(address)
}

/// The filters that keep the frames of these numbers, 10^6 seconds apart: more than any frame is shown. Newer programs
/// repeat a frame that is shown for longer than one of the output's, whatever the next one's time.
fn selection(indices: &[usize]) -> String {
    format!("select='{}',settb=1,setpts=1000000*N", any_of(indices))
}

/// The expression that is not zero for the frames of these numbers. Its terms are added in pairs: ffmpeg refuses
/// expressions that are nested more than 100 deep, which a plain sum of as many terms is.
fn any_of(indices: &[usize]) -> String {
    match indices {
        [] => "0".to_owned(),
        [index] => format!("eq(n,{index})"),
        _ => {
            let (left, right) = indices.split_at(indices.len() / 2);
            format!("({}+{})", any_of(left), any_of(right))
        }
    }
}

/// A rate such as `30000/1001`; none for `0/0`.
fn fraction(text: &str) -> Option<f64> {
    let (numerator, denominator) = text.split_once('/')?;
    let rate = numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

/// Images one after the other on a program's output.
struct PpmStream<'a> {
    running: Running<'a>,
    name: &'a str,
    buffer: Vec<u8>,
}

impl<'a> PpmStream<'a> {
    fn new(running: Running<'a>, name: &'a str) -> PpmStream<'a> {
        PpmStream {
            running,
            name,
            buffer: Vec::new(),
        }
    }

    fn next_image(&mut self) -> Result<Option<RgbImage>> {
        let (width, height, head) = loop {
            match ppm_head(&self.buffer) {
                PpmHead::Whole {
                    width,
                    height,
                    length,
                } => break (width, height, length),
                PpmHead::Begun if self.more()? => {}
                PpmHead::Begun if self.buffer.is_empty() => return Ok(None),
                PpmHead::Begun | PpmHead::Wrong => {
                    return Err(self.running.failed("its output is no PPM image".into()));
                }
            }
        };
        check_size(self.name, width, height, u64::from(width) * u64::from(height) * 3)?;
        let length = width as usize * height as usize * 3;
        while self.buffer.len() < head + length {
            if !self.more()? {
                return Err(self.running.failed("its output ends within an image".into()));
            }
        }
        let rest = self.buffer.split_off(head + length);
        let pixels = std::mem::replace(&mut self.buffer, rest).split_off(head);
        RgbImage::new(width, height, pixels).map(Some)
    }

    /// Takes another piece of output; no at its end.
    fn more(&mut self) -> Result<bool> {
        let piece = self.running.next_piece()?;
        if let Some(piece) = &piece {
            self.buffer.extend_from_slice(piece);
        }
        Ok(piece.is_some())
    }

    fn finish(mut self) -> Result<()> {
        while self.more()? {
            self.buffer.clear();
        }
        self.running.finish()
    }
}

#[derive(Debug, PartialEq)]
enum PpmHead {
    Whole { width: u32, height: u32, length: usize },
    Begun,
    Wrong,
}

fn ppm_head(bytes: &[u8]) -> PpmHead {
    let mut fields = Vec::new();
    let mut begin = 0;
    for (at, byte) in bytes.iter().enumerate().take(MAX_PPM_HEAD_BYTES) {
        if byte.is_ascii_whitespace() {
            fields.push(&bytes[begin..at]);
            begin = at + 1;
        }
        if let [magic, width, height, depth] = fields[..] {
            let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u32>().ok();
            return match (number(width), number(height)) {
                (Some(width), Some(height)) if magic == b"P6" && depth == b"255" => PpmHead::Whole {
                    width,
                    height,
                    length: begin,
                },
                _ => PpmHead::Wrong,
            };
        }
    }
    match bytes.len() {
        0..MAX_PPM_HEAD_BYTES => PpmHead::Begun,
        _ => PpmHead::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_images_are_read() {
        let whole = PpmHead::Whole {
            width: 640,
            height: 480,
            length: 15,
        };
        assert_eq!(ppm_head(b"P6\n640 480\n255\n\x0a\x20"), whole);
        assert_eq!(ppm_head(b"P6\n640 480\n25"), PpmHead::Begun);
        assert_eq!(ppm_head(b""), PpmHead::Begun);
        assert_eq!(ppm_head(b"P6\n640 -80\n255\n"), PpmHead::Wrong);
        assert_eq!(ppm_head(b"P5\n640 480\n255\n"), PpmHead::Wrong);
        assert_eq!(ppm_head(&[b'1'; 100]), PpmHead::Wrong);
    }

    #[test]
    fn rates_are_fractions() {
        assert_eq!(fraction("25/1"), Some(25.0));
        assert!((fraction("30000/1001").unwrap() - 29.97).abs() < 0.01);
        for text in ["0/0", "1/0", "0/1", "25", "a/b", "-1/1", "nan/1"] {
            assert_eq!(fraction(text), None, "{text}");
        }
    }

    #[test]
    fn the_filter_names_each_frame() {
        let expected = ["eq(n,7)", "(eq(n,7)+eq(n,8))", "(eq(n,7)+(eq(n,8)+eq(n,9)))"];
        for (n, expected) in (1..).zip(expected) {
            let filter = format!("select='{expected}',settb=1,setpts=1000000*N");
            assert_eq!(selection(&[7, 8, 9][..n]), filter);
        }
    }

    #[test]
    fn the_filter_of_many_frames_is_nested_little() {
        let indices: Vec<usize> = (0..1024).collect();
        let filter = selection(&indices);
        let (mut depth, mut deepest) = (0, 0);
        for c in filter.chars() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        assert_eq!((depth, deepest), (0, 11), "ten sums and `eq` itself");
        for index in indices {
            assert_eq!(filter.matches(&format!("eq(n,{index})")).count(), 1, "{index}");
        }
    }

    #[test]
    fn a_name_is_never_an_option() {
        let address = address(Path::new("-i.mp4"), "-i.mp4").unwrap();
        assert!(address.to_string_lossy().starts_with("file:/") || cfg!(windows));
    }
}
