//! Pictures taken while the program prints.

use super::super::picture;
use super::super::screen::{Screen, Size};
use super::*;

/// What base64 stands for.
fn unbase64(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for c in text.trim_end_matches('=').chars() {
        bits = bits << 6 | ALPHABET.find(c).expect("base64") as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

fn shown(screen: &mut Screen) -> String {
    let picture = picture::take(screen, SnapshotFormat::Ansi, 0, "");
    String::from_utf8_lossy(&unbase64(&picture.screen)).into_owned()
}

#[test]
fn a_viewer_that_starts_with_a_picture_and_drops_what_it_shows_is_exact() {
    // Every write is a part of something: of a sequence, of a line, of a screen that scrolls within margins. A fork between
    // two of them gives the pictures time to come in between.
    let script = r"stty raw -echo; printf up; i=0
        until [ -e $STOP ]; do
            i=$((i + 1))
            printf '\033[%d;%dH\033[3' $((i % 20 + 1)) $((i * 7 % 70 + 1)); (:); printf '%dm日本 %d' $((i % 8)) $i
            printf '\033[5;'; (:); printf '15r\033[15;1H\r\n\033[1'; (:); printf 'mline %d\033[0' $i; (:); printf 'm é\0337'
            printf '\033[?2026hsynchron'; (:); printf 'ized\033[?2026l\033[?25'; (:); printf 'l\033(0lqk\033'; (:); printf '(B\0338'
        done; printf '\033[r\033[24;1Hdone'; read x";
    let scratch = Scratch::new("pictures");
    let stop = scratch.file("stop");
    let mut stage = Stage::start_with(
        launch_of("sh", &["-c", script]),
        Timing::default(),
        &[("STOP", stop.to_str().expect("UTF-8"))],
        &[],
    );
    stage.until_text("up");
    let mut pictures = Vec::new();
    for _ in 0..60 {
        let at = stage.text.len();
        let picture = stage.snapshot(SnapshotFormat::Ansi);
        assert_eq!(picture.offset, stage.text.len() as u64, "told before: all that it shows, and no more");
        pictures.push(picture);
        while stage.text.len() == at {
            stage.take(LIMIT).expect("it goes on printing");
        }
    }
    std::fs::write(&stop, "").expect("a file");
    stage.until_text("done");
    pictures.push(stage.snapshot(SnapshotFormat::Ansi));
    let size = Size { rows: pictures[0].rows, cols: pictures[0].cols };
    let from = |picture: &Snapshot| {
        let mut viewer = Screen::new(size);
        viewer.feed(&unbase64(&picture.screen));
        viewer
    };
    for pair in pictures.windows(2) {
        let between = pair[0].offset as usize..pair[1].offset as usize;
        let mut viewer = from(&pair[0]);
        viewer.feed(&stage.text.as_bytes()[between.clone()]);
        viewer.end_sync();
        assert_eq!(shown(&mut viewer), shown(&mut from(&pair[1])), "{:?}", &stage.text[between]);
    }
    let mut whole = Screen::new(size);
    whole.feed(stage.text.as_bytes());
    assert_eq!(shown(&mut whole), shown(&mut from(&pictures[60])));
}

#[test]
fn the_same_size_again_is_no_news_to_the_program() {
    let mut stage = Stage::sh("trap 'stty size' WINCH; echo up; while :; do read x; done");
    stage.until_text("up");
    for (ticket, rows) in [(1, 30), (2, 30), (3, 30), (4, 31)] {
        stage.agent.send(AgentCommand::Resize { ticket, rows, cols: 100 }).expect("room");
        stage.until("resized", |note| *note == AgentNote::Resized { ticket, rows, cols: 100 });
        if ticket == 1 {
            stage.until_text("30 100");
        }
    }
    stage.until_text("31 100");
    assert_eq!(stage.text.matches("30 100").count(), 1, "{:?}", stage.text);
}
