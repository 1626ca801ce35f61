//! Frames of animations, folders and videos.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use carat_media::{Error, FrameSampling, VideoFrame, VideoTools, decode_video, read_video};
use carat_testkit::fixture;

fn frames(path: &Path, n: usize, tools: Option<&VideoTools>) -> Result<Vec<VideoFrame>, Error> {
    let mut frames = Vec::new();
    let sampling = FrameSampling::count(n).unwrap();
    let n_taken = read_video(path, sampling, tools, &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    assert_eq!(n_taken, frames.len());
    Ok(frames)
}

/// The same of bytes that somebody sent.
fn sent(bytes: &[u8], n: usize, tools: Option<&VideoTools>) -> Result<Vec<VideoFrame>, Error> {
    let mut frames = Vec::new();
    let sampling = FrameSampling::count(n).unwrap();
    decode_video(bytes, "sent", sampling, tools, &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    Ok(frames)
}

/// The `PATH`'s ffmpeg and ffprobe; `None`, said aloud, when what needs them is to be skipped.
fn tools(test: &str, scratch: &Path) -> Option<VideoTools> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let tools = set("PATH").and_then(|path| VideoTools::find(&path, scratch));
    if tools.is_none() {
        assert!(
            set("CARAT_REQUIRE_FFMPEG").is_none(),
            "CARAT_REQUIRE_FFMPEG is set but ffmpeg and ffprobe are not both on the PATH"
        );
        // Not `eprintln!`, which the test harness keeps to itself when a test passes.
        let line = format!("skipped: {test}: ffmpeg and ffprobe are not both on the PATH\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    tools
}

/// Checks that `frames` are those of the fixture's `motion` with these numbers.
fn check(frames: &[VideoFrame], numbers: &[u8], tolerance: u8) {
    assert_eq!(frames.len(), numbers.len());
    for (frame, k) in frames.iter().zip(numbers) {
        assert_eq!((frame.image.width(), frame.image.height()), (32, 24));
        assert!(
            (frame.seconds - f64::from(*k) / 10.0).abs() < 1e-9,
            "{}",
            frame.seconds
        );
        let pixel = |x: usize, y: usize| &frame.image.pixels()[(y * 32 + x) * 3..][..3];
        let near =
            |pixel: &[u8], want: [u8; 3]| pixel.iter().zip(want).all(|(a, b)| a.abs_diff(b) <= tolerance);
        assert!(
            near(pixel(31, 23), [20 * k, 255 - 20 * k, 128]),
            "{k}: {:?}",
            pixel(31, 23)
        );
        assert!(near(pixel(2 * usize::from(*k) + 4, 12), [255; 3]));
    }
}

#[test]
fn animations_need_no_program() {
    // The GIF's palette is shared by all frames; WebP's are blended in whole levels.
    for (name, tolerance) in [("media/motion.gif", 3), ("media/motion.webp", 1)] {
        let path = fixture(name);
        check(&frames(&path, 4, None).unwrap(), &[0, 3, 6, 9], tolerance);
        check(
            &frames(&path, 100, None).unwrap(),
            &(0..12).collect::<Vec<_>>(),
            tolerance,
        );
        check(
            &sent(&fs::read(&path).unwrap(), 2, None).unwrap(),
            &[0, 6],
            tolerance,
        );
    }
    // A still image of these formats is a video of one frame.
    assert_eq!(frames(&fixture("media/palette.gif"), 32, None).unwrap().len(), 1);
    assert_eq!(
        frames(&fixture("media/lossless.webp"), 32, None).unwrap().len(),
        1
    );
}

/// A GIF of frames of one side, of whose pixels only the first few are there.
fn gif(screen: u16, side: u16, n_frames: usize) -> Vec<u8> {
    let square = |side: u16| [side.to_le_bytes(), side.to_le_bytes()].concat();
    let mut gif = b"GIF89a".to_vec();
    gif.extend(square(screen));
    gif.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
    let frame = [&[0x2c, 0, 0, 0, 0], &square(side)[..], &[0, 2, 2, 0x4c, 0x01, 0]].concat();
    gif.extend(frame.repeat(n_frames));
    gif.push(0x3b);
    gif
}

/// What is outside of the screen is decoded as well before it is cut off.
#[test]
fn frames_larger_than_the_screen_count_whole() {
    for (side, n_frames) in [(4096, 33), (u16::MAX, 1)] {
        let error = sent(&gif(1, side, n_frames), 1, None).unwrap_err();
        assert!(matches!(error, Error::AnimationTooLarge { .. }), "{error}");
    }
    let error = sent(&gif(1, 1, 200_001), 1, None).unwrap_err();
    assert!(matches!(error, Error::AnimationTooLarge { .. }), "{error}");
    // An honest one whose screen is smaller than its frames is shown as far as the screen goes.
    let mut motion = fs::read(fixture("media/motion.gif")).unwrap();
    motion[6..10].copy_from_slice(&[16, 0, 12, 0]);
    let frames = sent(&motion, 100, None).unwrap();
    assert_eq!(frames.len(), 12);
    assert!(
        frames
            .iter()
            .all(|frame| (frame.image.width(), frame.image.height()) == (16, 12))
    );
}

#[test]
fn folders_are_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for (name, from) in [
        ("f10.png", "grey.png"),
        ("f9.png", "rgb.png"),
        ("notes.txt", "make.py"),
    ] {
        fs::copy(fixture(format!("media/{from}")), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join(".hidden.png"), b"no image").unwrap();
    let frames = frames(dir.path(), 32, None).unwrap();
    let grey = |frame: &VideoFrame| {
        frame
            .image
            .pixels()
            .chunks(3)
            .all(|p| p[0] == p[1] && p[1] == p[2])
    };
    assert_eq!(frames.iter().map(grey).collect::<Vec<_>>(), [false, true]);
    assert!((frames[1].seconds - 1.0 / 24.0).abs() < 1e-9);
    let empty = tempfile::tempdir().unwrap();
    let error = read_video(empty.path(), FrameSampling::default(), None, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::NoFrames { .. }));
}

#[test]
fn without_ffmpeg_the_message_says_what_to_do() {
    let error = frames(&fixture("media/motion.mp4"), 4, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("motion.mp4` needs ffmpeg to be decoded"),
        "{error}"
    );
    assert!(error.contains("install ffmpeg, or give an animated GIF or WebP, or a folder of frames"));
    assert_eq!(
        VideoTools::find("relative:/nowhere".as_ref(), Path::new(".")),
        None
    );
}

#[test]
fn videos_by_ffmpeg() {
    let Some(tools) = tools("videos_by_ffmpeg", &std::env::temp_dir()) else {
        return;
    };
    let video = fixture("media/motion.mp4");
    check(&frames(&video, 4, Some(&tools)).unwrap(), &[0, 3, 6, 9], 3);
    check(
        &frames(&video, 32, Some(&tools)).unwrap(),
        &(0..12).collect::<Vec<_>>(),
        3,
    );

    // Names that a shell, an option parser or a protocol would stumble over.
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "-i.mp4",
        "$(touch pwned) `x`;&.mp4",
        "concat:a|b.mp4",
        "%03d.mp4",
        "a\nb'\".mp4",
    ] {
        let path = dir.path().join(name);
        fs::copy(&video, &path).unwrap();
        check(&frames(&path, 1, Some(&tools)).unwrap(), &[0], 3);
    }
    assert!(!dir.path().join("pwned").exists());

    let broken = dir.path().join("broken.mp4");
    for content in [&b"no video at all"[..], b"", &fs::read(&video).unwrap()[..700]] {
        fs::write(&broken, content).unwrap();
        let error = frames(&broken, 4, Some(&tools)).unwrap_err().to_string();
        assert!(error.contains("broken.mp4") && !error.contains('\n'), "{error}");
    }
    let playlist = dir.path().join("list.m3u8");
    fs::write(&playlist, "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n").unwrap();
    assert!(frames(&playlist, 4, Some(&tools)).is_err());
    assert!(matches!(
        frames(&fixture("media/tone.mp3"), 4, Some(&tools)),
        Err(Error::NoFrames { .. } | Error::VideoTool { .. })
    ));
}

/// ffmpeg reads no sum of so many terms unless it is nested little, and hands over 16 bits of such a video unasked.
#[test]
fn many_frames_of_ten_bits_a_channel_are_given() {
    let dir = tempfile::tempdir().unwrap();
    let Some(tools) = tools("many_frames_of_ten_bits_a_channel_are_given", dir.path()) else {
        return;
    };
    let path = dir.path().join("long.mkv");
    // The grey of frame k is k, of 1023.
    let source = "color=black:s=32x24:r=10:d=60,format=gray10,geq=lum=N,format=yuv444p10";
    let made = Command::new(&tools.ffmpeg)
        .args(["-v", "error", "-f", "lavfi", "-i", source, "-c:v", "ffv1"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    let frames = frames(&path, 500, Some(&tools)).unwrap();
    assert_eq!(frames.len(), 500);
    for (k, frame) in frames.iter().enumerate() {
        let n = k * 600 / 500;
        assert!((frame.seconds - n as f64 / 10.0).abs() < 1e-9, "{k}");
        assert_eq!(frame.image.pixels().len(), 32 * 24 * 3, "{k}");
    }
    let grey = |k: usize| frames[k].image.pixels()[0];
    assert!((0..499).all(|k| grey(k) <= grey(k + 1)));
    assert!(grey(0) == 0 && (135..170).contains(&grey(499)), "{}", grey(499));
}

/// Playlists and lists name other files: fine where the user names them, not where somebody sends them.
#[test]
fn what_is_sent_reads_no_other_file_and_leaves_none() {
    let scratch = tempfile::tempdir().unwrap();
    let video = fixture("media/motion.mp4");
    let bytes = fs::read(&video).unwrap();
    let error = sent(&bytes, 4, None).unwrap_err().to_string();
    assert!(error.contains("`sent` needs ffmpeg"), "{error}");
    let Some(tools) = tools("what_is_sent_reads_no_other_file_and_leaves_none", scratch.path()) else {
        return;
    };
    check(&sent(&bytes, 4, Some(&tools)).unwrap(), &[0, 3, 6, 9], 3);
    let path = video.display();
    for text in [
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nfile:{path}\n#EXT-X-ENDLIST\n"),
        format!("ffconcat version 1.0\nfile '{path}'\n"),
        "no video at all".to_owned(),
        String::new(),
    ] {
        let error = sent(text.as_bytes(), 4, Some(&tools)).unwrap_err().to_string();
        assert!(
            error.contains("`sent`") && !error.contains('\n'),
            "{text}: {error}"
        );
        assert!(!error.contains("carat-video-"), "{error}");
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    let nowhere = VideoTools {
        scratch: scratch.path().join("nowhere"),
        ..tools
    };
    assert!(matches!(sent(&bytes, 4, Some(&nowhere)), Err(Error::Io { .. })));
}
