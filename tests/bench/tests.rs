//! Tests of the parts of the bench: a ruler must be checked before anything is measured with it.
// Not every part is used here, and the whole is another target.
#![allow(dead_code)]

mod broker;
mod clock;
mod engine;
mod figures;
mod http;
mod measure;
mod probe;
mod processes;
mod samples;
mod settings;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use clock::Deadline;
use engine::Engine;
use figures::{Figure, Row};
use measure::load::{Reading, marker};
use probe::{Report, Sighting, Sightings};
use processes::Count;
use samples::{Reading as Read_, Samples};

const LIMIT: Duration = Duration::from_secs(10);

fn sample(values: &[f64]) -> Samples {
    let mut samples = Samples::default();
    for value in values {
        samples.add("x", *value);
    }
    samples
}

#[test]
fn readings_of_a_series() {
    let hundred = sample(&Vec::from_iter((1..=100).rev().map(f64::from)));
    assert_eq!(hundred.read("x", Read_::P99), Some(99.0));
    assert_eq!(hundred.read("x", Read_::Median), Some(50.5));
    assert_eq!(hundred.read("x", Read_::Sum), Some(5050.0));
    assert_eq!(sample(&[3.0, 1.0, 2.0]).read("x", Read_::Median), Some(2.0));
    assert_eq!(sample(&[7.0]).read("x", Read_::P99), Some(7.0));
    assert_eq!(sample(&[]).read("x", Read_::Median), None);
}

fn figure(bar: Option<f64>) -> Figure {
    Figure {
        key: "k".into(),
        title: "time".into(),
        unit: "ms",
        series: "x".into(),
        reading: Read_::Median,
        bar,
        at_least: false,
    }
}

#[test]
fn bars_and_ratios() {
    let figure = figure(Some(2.0));
    let row = |ours, other| Row { figure: &figure, values: vec![ours, other] };
    assert_eq!(row(Some(2.0), None).passes(), Some(true));
    assert_eq!(row(Some(2.1), None).passes(), Some(false));
    assert_eq!(row(None, Some(1.0)).passes(), Some(false), "a bar without a value is missed");
    let least = Figure { at_least: true, ..figure.clone() };
    let row_of = |ours| Row { figure: &least, values: vec![ours] };
    assert_eq!(row_of(Some(2.0)).passes(), Some(true));
    assert_eq!(row_of(Some(1.9)).passes(), Some(false), "too little");
    assert_eq!(row(Some(2.0), Some(5.0)).ratio(), Some(2.5));
    assert_eq!(row(Some(0.0), Some(5.0)).ratio(), None);
}

#[test]
fn the_table_is_aligned_and_marks_misses() {
    let figures = [figure(Some(1.0)), figure(Some(5.0)), figure(None)];
    let rows = figures::rows(&figures, &[sample(&[1.5]), sample(&[300.0])], true);
    let table = figures::table(&rows, &["ours", "other"]);
    let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
    assert!(table.contains("≤ 1.00 ms") && table.contains("MISS") && table.contains("pass"), "{table}");
    assert!(table.contains("× 200"), "{table}");
}

#[test]
fn unmeasured_bars_stay_only_in_a_full_run() {
    let figures = [figure(Some(1.0)), figure(None)];
    assert_eq!(figures::rows(&figures, &[sample(&[])], true).len(), 1);
    assert_eq!(figures::rows(&figures, &[sample(&[])], false).len(), 0);
}

#[test]
fn messages_are_counted_wherever_reads_are_cut() {
    let text: String = [0, 1, 3, 2, 2, 9].map(|number| format!("noise <lo {} \x1b[0m", marker(number))).concat();
    for cut in 0..text.len() {
        let mut reading = Reading::expect(5);
        let fresh = reading.take(&text.as_bytes()[..cut]) + reading.take(&text.as_bytes()[cut..]);
        let found = (fresh, reading.lost(), reading.doubled(), reading.misordered);
        assert_eq!(found, (4, 1, 1, 1), "cut at {cut}");
    }
    let mut reading = Reading::expect(5);
    for byte in text.bytes() {
        reading.take(&[byte]);
    }
    assert_eq!((reading.lost(), reading.doubled(), reading.misordered), (1, 1, 1));
}

#[test]
fn sightings_survive_their_datagram() {
    for report in [Report::Up, Report::Read(b"a\r".to_vec()), Report::FloodBegins, Report::FloodEnds(1 << 40)] {
        let sighting = Sighting { at: 123_456_789_012, probe: 513, report };
        assert_eq!(Sighting::decode(&sighting.encode()), Some(sighting));
    }
    assert_eq!(Sighting::decode(b"short"), None);
    assert_eq!(Sighting::decode(&[9; 20]), None);
}

#[test]
fn proc_files_are_read_right() {
    assert_eq!(processes::parent_of("12 (a) b (c)) S 7 12 12 0"), Some(7));
    let rollup = "00 ---p\nRss:  4096 kB\nPss: 9 kB\nPrivate_Clean: 8 kB\nPrivate_Dirty: 100 kB\n";
    assert_eq!(processes::kibibytes(rollup, &["Private_Clean:", "Private_Dirty:"]), 108);
    let status = "voluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t2\n";
    assert_eq!(processes::switches_of(status), Count { voluntary: 5, involuntary: 2 });
    let parents = [(2, 1), (3, 2), (4, 3), (9, 8)].into_iter().collect();
    let mut found = processes::descendants(2, &parents);
    found.sort_unstable();
    assert_eq!(found, [2, 3, 4]);
}

#[test]
fn switches_of_new_threads_count_from_zero() {
    let count = |voluntary, involuntary| Count { voluntary, involuntary };
    let before = [((1, 1), count(10, 1)), ((1, 2), count(5, 5))].into_iter().collect();
    let after = [((1, 1), count(14, 2)), ((1, 3), count(2, 7))].into_iter().collect();
    assert_eq!(processes::switched(&before, &after), count(6, 8));
}

#[test]
fn a_process_with_another_program_is_left_out() {
    let mut child = std::process::Command::new("sleep").arg("30").spawn().expect("sleep starts");
    let own = std::process::id() as i32;
    let deadline = Deadline::after(LIMIT);
    // Until its exec the child still runs our program.
    while processes::of_broker(own).contains(&(child.id() as i32)) {
        assert!(!deadline.passed(), "{:?}", processes::of_broker(own));
    }
    let cost = processes::cost(own).expect("own cost");
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert!(cost.rss > 500 && cost.private > 100 && cost.private <= cost.rss && cost.threads >= 1, "{cost:?}");
}

#[test]
fn the_engine_serves_what_a_broker_asks_at_its_start() {
    let engine = Engine::start().expect("engine");
    let url = engine.url();
    let mut client = http::Client::new(url.trim_start_matches("http://"), "rk_live_x");
    let mut ask = |method: &str, path: &str, body: Value| {
        let body = (!body.is_null()).then_some(body);
        let answer = client.call(method, path, body.as_ref()).expect(path);
        (answer.status, serde_json::from_str::<Value>(&answer.body).expect("JSON"))
    };
    let (status, workspace) = ask("POST", "/v1/workspaces", json!({"name": "relay-1"}));
    assert_eq!(status, 201);
    assert!(workspace["data"]["api_key"].as_str().is_some_and(|key| key.starts_with("rk_live_") && key.len() == 40));
    let (status, node) = ask("POST", "/v1/nodes", json!({"node_id": "node_1", "name": "vm", "version": "x/1"}));
    assert_eq!((status, &node["data"]["id"]), (201, &json!("node_1")));
    assert!(node["data"]["token"].as_str().is_some_and(|token| token.starts_with("nt_live_") && token.len() == 56));
    assert_eq!(ask("GET", "/v1/nodes/vm", Value::Null).0, 404);
    assert_eq!(ask("POST", "/v1/channels/general/join", Value::Null).0, 200);
    assert_eq!(ask("GET", "/v1/elsewhere", Value::Null).1["error"]["code"], "not_found");
}

/// The broker's side of a node socket.
struct Link(WebSocket<TcpStream>);

impl Link {
    fn open(engine: &Engine) -> Link {
        let address = engine.url().trim_start_matches("http://").to_string();
        let request = format!("ws://{address}/v1/node/ws").into_client_request().expect("request");
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(LIMIT)).expect("timeout");
        Link(tungstenite::client(request, stream).expect("upgrade").0)
    }

    fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).expect("send");
    }

    fn hear(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.0.read().expect("read") {
                return serde_json::from_str(&text).expect("JSON");
            }
        }
    }

    fn register(&mut self) {
        self.say(json!({"type": "node.register", "v": 1, "id": "r", "name": "vm", "node_id": "node_1"}));
        assert_eq!(self.hear()["id"], "r");
    }
}

#[test]
fn deliveries_and_acks_are_timed() {
    let engine = Engine::start().expect("engine");
    assert!(engine.deliver("al", "early").is_err());
    let mut link = Link::open(&engine);
    let before = clock::now();
    link.register();
    let arrival = engine.wait(LIMIT, |book| book.registrations.first().copied()).expect("registration");
    assert!(before <= arrival && arrival <= clock::now());
    assert!(engine.deliver("al", "unknown agent").is_err());
    link.say(json!({"type": "agent.register", "v": 1, "id": "a", "name": "al"}));
    let reply = link.hear();
    let fields: Vec<&String> = reply["data"].as_object().expect("data").keys().collect();
    assert_eq!(fields, ["agent_id", "name", "token"], "an older client refuses further fields");

    let sent: Vec<_> = (0..3).map(|n| engine.deliver("al", &format!("text {n}")).expect("sent")).collect();
    for (seq, sent) in (1..).zip(&sent) {
        let frame = link.hear();
        assert_eq!((&frame["seq"], sent.seq), (&json!(seq), seq));
        assert_eq!(frame["payload"]["data"]["text"], format!("text {}", seq - 1));
        assert_eq!(frame["agent_id"], reply["data"]["agent_id"]);
    }
    assert_eq!(engine.look(|book| (book.unacked(), book.acked_at("al", 1))), (3, None));
    link.say(json!({"type": "delivery.ack", "v": 1, "agent": "al", "up_to_seq": 2}));
    let first = engine.wait(LIMIT, |book| book.acked_at("al", 1)).expect("ack");
    assert!(first >= sent[2].at && first <= clock::now());
    assert_eq!(engine.look(|book| (book.acked_at("al", 2), book.acked_at("al", 3))), (Some(first), None));
    link.say(json!({"type": "delivery.ack", "v": 1, "agent": "al", "up_to_seq": 3}));
    let last = engine.wait(LIMIT, |book| book.acked_at("al", 3)).expect("ack");
    assert!(last > first);
    assert_eq!(engine.look(|book| (book.unacked(), book.last_ack(), book.strange)), (0, Some(last), 0));
}

#[test]
fn what_is_not_acked_is_sent_again_on_the_next_registration() {
    let engine = Engine::start().expect("engine");
    let mut link = Link::open(&engine);
    link.register();
    link.say(json!({"type": "agent.register", "v": 1, "id": "a", "name": "al"}));
    link.hear();
    for number in 0..3 {
        engine.deliver("al", &number.to_string()).expect("sent");
    }
    link.say(json!({"type": "delivery.ack", "v": 1, "agent": "al", "up_to_seq": 1}));
    engine.wait(LIMIT, |book| book.acked_at("al", 1)).expect("ack");
    drop(link);
    let mut link = Link::open(&engine);
    link.register();
    assert_eq!([link.hear()["seq"].clone(), link.hear()["seq"].clone()], [json!(2), json!(3)]);
}

#[test]
fn a_ping_is_answered() {
    let engine = Engine::start().expect("engine");
    let mut link = Link::open(&engine);
    link.0.send(Message::Ping("sign of life".into())).expect("ping");
    match link.0.read().expect("read") {
        Message::Pong(payload) => assert_eq!(&payload[..], b"sign of life"),
        other => panic!("{other:?}"),
    }
}

/// A terminal: its master as a file, its slave for a program.
fn terminal() -> (std::fs::File, OwnedFd) {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("openpt");
    grantpt(&master).expect("grantpt");
    unlockpt(&master).expect("unlockpt");
    let path = ptsname(&master, Vec::new()).expect("ptsname");
    let slave = open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("slave");
    (master.into(), slave)
}

fn sightings(name: &str) -> Sightings {
    Sightings::bind(std::env::temp_dir().join(format!("bench-{}-{name}", std::process::id()))).expect("bind")
}

#[test]
fn a_probe_reports_each_read_and_echoes_it() {
    let (mut master, slave) = terminal();
    let sightings = sightings("probe");
    let socket = sightings.path().to_path_buf();
    let output = std::fs::File::from(slave.try_clone().expect("dup"));
    let program = std::thread::spawn(move || probe::watch(slave, output, &socket, 7));
    let next = || sightings.next(Deadline::after(LIMIT)).expect("sighting");
    assert_eq!((next().report, 0), (Report::Up, 0));
    let before = clock::now();
    master.write_all(b"body\x1b").expect("write");
    let body = next();
    assert_eq!((body.probe, &body.report), (7, &Report::Read(b"body\x1b".to_vec())));
    assert!(before <= body.at && body.at <= clock::now());
    master.write_all(b"\r").expect("write");
    assert_eq!(next().report, Report::Read(b"\r".to_vec()), "the terminal is raw: Enter stays a carriage return");
    let mut shown = [0; 7];
    master.read_exact(&mut shown).expect("echo");
    assert_eq!(&shown, b"body^\r\n");
    drop(master);
    assert!(program.join().expect("program").is_ok() || sightings.next(Deadline::after(Duration::ZERO)).is_none());
}

#[test]
fn a_flood_prints_exactly_what_it_says() {
    let (mut master, slave) = terminal();
    let sightings = sightings("flood");
    let socket = sightings.path().to_path_buf();
    let output = std::fs::File::from(slave.try_clone().expect("dup"));
    let total = 300_000;
    let program = std::thread::spawn(move || probe::flood(slave, output, &socket, 1, total));
    let mut text = vec![0; total as usize];
    master.read_exact(&mut text).expect("output");
    let block = probe::flood_block();
    assert!(text.chunks(block.len()).all(|part| part == &block[..part.len()]));
    let next = || sightings.next(Deadline::after(LIMIT)).expect("sighting");
    let (begin, end) = (next(), next());
    assert_eq!((begin.report, end.report), (Report::FloodBegins, Report::FloodEnds(total)));
    assert!(begin.at < end.at);
    drop(master);
    let _ = program.join().expect("program");
}
