//! Starting the sidecar again: when, how often, and when no more.

use super::*;
use crate::core::ports::{ProcessNote, SidecarGeneration, SuperviseCommand};
use crate::core::timers::Timer;
use crate::wire::fleet::{RestartPolicy, Supervision};

fn plan(restart_policy: RestartPolicy) -> Supervision {
    Supervision {
        argv: vec!["agent-relay".into(), "fleet".into(), "serve".into()],
        cwd: "/srv/fleet".into(),
        env: [("MODE".to_string(), "x".to_string())].into(),
        restart_policy,
    }
}

fn ended(code: i32) -> ProcessNote {
    ProcessNote::Ended { code: Some(code), signal: None }
}

impl Bench {
    /// An online broker with sidecar 1, which is to be started again by this policy.
    fn supervised(policy: RestartPolicy) -> Bench {
        let mut bench = Bench::online();
        bench.attach(1);
        assert_eq!(bench.register_node(1, Some(plan(policy))).status, 200);
        bench.accept();
        bench.out.clear();
        bench
    }

    fn process(&mut self, note: ProcessNote) {
        self.step(Input::Supervised(note));
    }

    /// Lets time pass on a link whose engine answers.
    fn pass_online(&mut self, ms: Ms) {
        let mut left = ms;
        while left > 0 {
            let step = left.min(10_000);
            self.pass(step);
            self.settle();
            left -= step;
        }
    }

    /// The sidecar attaches, says its plan and is gone without having said so.
    fn flash(&mut self, generation: SidecarGeneration, policy: RestartPolicy) {
        self.attach(generation);
        self.register_node(generation, Some(plan(policy)));
        self.accept();
        self.gone(generation);
    }
}

impl Seen {
    fn supervised(&self) -> Vec<SuperviseCommand> {
        self.each(|effect| match effect {
            Effect::Supervise(command) => Some(command.clone()),
            _ => None,
        })
    }

    fn starts_of_sidecar(&self) -> usize {
        self.supervised().iter().filter(|command| matches!(command, SuperviseCommand::Start { .. })).count()
    }
}

#[test]
fn an_unclean_end_starts_the_sidecar_after_the_cooldown() {
    let mut bench = Bench::supervised(RestartPolicy::default());
    assert_eq!(bench.status()["sidecar"]["supervised"], true);
    assert!(!bench.broker.timers.is_set(&Timer::SidecarHealthy), "nothing to count, nothing to wake for");
    bench.gone(1);
    bench.pass(1_999);
    assert!(bench.take().supervised().is_empty(), "it may come back by itself");
    bench.pass(1);
    let start = SuperviseCommand::Start {
        argv: vec!["agent-relay".into(), "fleet".into(), "serve".into()],
        cwd: "/srv/fleet".into(),
        env: vec![("MODE".into(), "x".into())],
    };
    assert_eq!(bench.take().supervised(), [start]);
    bench.process(ProcessNote::Started { pid: 7 });
    bench.pass_online(600_000);
    assert!(bench.take().supervised().is_empty(), "a child that runs may still attach");
    bench.attach(2);
    let sidecar = bench.status()["sidecar"].clone();
    assert_eq!((&sidecar["attached"], &sidecar["restarts"]), (&json!(true), &json!(1)));
}

#[test]
fn a_sidecar_that_comes_back_by_itself_is_not_started() {
    let mut bench = Bench::supervised(RestartPolicy::default());
    bench.gone(1);
    bench.pass(1_500);
    bench.attach(2);
    bench.pass_online(600_000);
    assert!(bench.take().supervised().is_empty());
    // Its next end has a cooldown of its own.
    bench.gone(2);
    bench.pass(1_999);
    assert!(bench.take().supervised().is_empty());
    bench.pass(1);
    assert_eq!(bench.take().starts_of_sidecar(), 1);
}

#[test]
fn who_is_not_to_be_started_is_not() {
    let disabled = RestartPolicy { enabled: false, ..RestartPolicy::default() };
    for supervision in [None, Some(plan(disabled))] {
        let mut bench = Bench::supervised(RestartPolicy::default());
        // Said anew, the plan of before is no more.
        bench.register_node(1, supervision.clone());
        bench.accept();
        bench.gone(1);
        bench.pass_online(60_000);
        let seen = bench.take();
        assert!(seen.supervised().is_empty(), "{supervision:?}:\n{seen:?}");
        assert!(seen.logs(log::Level::Error).is_empty(), "nothing is given up:\n{seen:?}");
        assert_eq!(bench.status()["sidecar"]["supervised"], false, "{supervision:?}");
    }
    let mut bench = Bench::online();
    bench.attach(1);
    bench.gone(1);
    bench.pass_online(60_000);
    assert!(bench.take().supervised().is_empty(), "nobody has said how");
}

#[test]
fn a_plan_said_anew_replaces_the_old_one() {
    let mut bench = Bench::supervised(RestartPolicy::default());
    let other = Supervision {
        argv: vec!["other".into()],
        restart_policy: RestartPolicy { cooldown_ms: 10_000, ..RestartPolicy::default() },
        ..plan(RestartPolicy::default())
    };
    bench.register_node(1, Some(other));
    bench.accept();
    bench.gone(1);
    bench.pass(9_999);
    assert!(bench.take().supervised().is_empty());
    bench.pass(1);
    let supervised = bench.take().supervised();
    assert!(matches!(&supervised[0], SuperviseCommand::Start { argv, .. } if argv == &["other"]), "{supervised:?}");
}

#[test]
fn a_plan_without_a_program_is_refused_and_changes_nothing() {
    for argv in [vec![], vec![" ".to_string()]] {
        let mut bench = Bench::supervised(RestartPolicy::default());
        let answer = bench.register_node(1, Some(Supervision { argv, ..plan(RestartPolicy::default()) }));
        assert_eq!((answer.status, &answer.body["code"]), (400, &json!("frame_failed")));
        assert!(bench.take().node_registers().is_empty());
        bench.gone(1);
        bench.pass(2_000);
        assert_eq!(bench.take().starts_of_sidecar(), 1, "by the old plan");
    }
}

#[test]
fn starts_that_bring_no_sidecar_are_given_up_after_three_in_a_row() {
    for note in [ProcessNote::Failed { error: "no such file".into() }, ended(3)] {
        let mut bench = Bench::supervised(RestartPolicy::default());
        bench.gone(1);
        for n in 1..=3 {
            bench.pass(2_000);
            let seen = bench.take();
            assert_eq!(seen.starts_of_sidecar(), 1, "start {n}:\n{seen:?}");
            assert!(seen.logs(log::Level::Error).is_empty(), "start {n}:\n{seen:?}");
            bench.process(note.clone());
        }
        let seen = bench.take();
        let errors = seen.logs(log::Level::Error);
        assert_eq!(errors.len(), 1, "{seen:?}");
        let why = if note == ended(3) { "it ended with code 3" } else { "no such file" };
        assert!(errors[0].contains(why) && errors[0].contains("3 starts in a row"), "{errors:?}");
        bench.pass_online(3_600_000);
        let seen = bench.take();
        assert!(seen.supervised().is_empty() && seen.logs(log::Level::Error).is_empty(), "said once:\n{seen:?}");
        let sidecar = bench.status()["sidecar"].clone();
        assert_eq!((&sidecar["supervised"], &sidecar["restarts"]), (&json!(false), &json!(3)));
        assert!(sidecar["last_error"].as_str().is_some_and(|error| error.contains(why)), "{sidecar}");
    }
}

#[test]
fn a_sidecar_that_never_lasts_is_given_up_after_five_starts() {
    let policy = RestartPolicy::default();
    let mut bench = Bench::supervised(policy);
    bench.gone(1);
    for n in 1..=5 {
        bench.pass(2_000);
        assert_eq!(bench.take().starts_of_sidecar(), 1, "start {n}");
        // Each says its plan anew, which resets nothing.
        bench.flash(n + 1, policy);
        bench.process(ended(1));
    }
    let seen = bench.take();
    assert!(seen.logs(log::Level::Error)[0].contains("started 5 times"), "{seen:?}");
    bench.pass_online(3_600_000);
    assert!(bench.take().supervised().is_empty());
}

#[test]
fn only_a_minute_of_health_resets_the_counts() {
    for (healthy_ms, again) in [(59_999, false), (60_000, true)] {
        let policy = RestartPolicy { max_restarts: 1, ..RestartPolicy::default() };
        let mut bench = Bench::supervised(policy);
        bench.gone(1);
        bench.pass(2_000);
        bench.attach(2);
        bench.register_node(2, Some(plan(policy)));
        bench.accept();
        bench.pass_online(healthy_ms);
        let expected = if again { 0 } else { 1 };
        assert_eq!(bench.status()["sidecar"]["restarts"], expected, "{healthy_ms}");
        bench.take();
        bench.gone(2);
        bench.process(ended(1));
        bench.pass(2_000);
        assert_eq!(bench.take().starts_of_sidecar(), usize::from(again), "{healthy_ms}");
        assert_eq!(bench.status()["sidecar"]["restarts"], 1, "a minute that it was not there does not count");
    }
    // An hour of silence is none.
    let policy = RestartPolicy { max_restarts: 1, ..RestartPolicy::default() };
    let mut bench = Bench::supervised(policy);
    bench.gone(1);
    bench.pass(2_000);
    bench.pass_online(3_600_000);
    bench.process(ended(1));
    bench.take();
    bench.pass(2_000);
    assert!(bench.take().supervised().is_empty());
}

#[test]
fn after_giving_up_a_sidecar_started_by_hand_is_supervised_again_once_it_is_well() {
    let policy = RestartPolicy { max_restarts: 0, ..RestartPolicy::default() };
    let mut bench = Bench::supervised(policy);
    bench.gone(1);
    assert_eq!(bench.take().logs(log::Level::Error).len(), 1, "never started, and said");
    let policy = RestartPolicy { max_restarts: 1, ..policy };
    bench.attach(2);
    bench.register_node(2, Some(plan(policy)));
    bench.accept();
    bench.gone(2);
    bench.pass(2_000);
    assert_eq!(bench.take().starts_of_sidecar(), 1, "the new plan allows one");
    bench.process(ended(1));
    assert_eq!(bench.take().logs(log::Level::Error).len(), 1);
    bench.attach(3);
    bench.pass_online(60_000);
    assert_eq!(bench.status()["sidecar"]["supervised"], true);
    assert_eq!(bench.status()["sidecar"]["last_error"], Value::Null);
    bench.gone(3);
    bench.take();
    bench.pass(2_000);
    assert_eq!(bench.take().starts_of_sidecar(), 1);
}

#[test]
fn the_ends_of_process_and_connection_may_come_in_any_order() {
    for process_first in [true, false] {
        let mut bench = Bench::supervised(RestartPolicy::default());
        bench.gone(1);
        bench.pass(2_000);
        bench.attach(2);
        bench.take();
        if process_first {
            bench.process(ended(0));
            bench.pass(5_000);
            assert!(bench.take().supervised().is_empty(), "somebody is still attached");
            bench.gone(2);
        } else {
            bench.gone(2);
            bench.pass(5_000);
            assert!(bench.take().supervised().is_empty(), "the process still lives");
            bench.process(ended(0));
        }
        bench.pass(1_999);
        assert!(bench.take().supervised().is_empty());
        bench.pass(1);
        assert_eq!(bench.take().starts_of_sidecar(), 1, "process first: {process_first}");
        assert_eq!(bench.status()["sidecar"]["restarts"], 2);
    }
}

#[test]
fn f34_a_second_sidecar_restarts_nothing() {
    let mut bench = Bench::supervised(RestartPolicy::default());
    bench.attach(2);
    bench.gone(1);
    bench.pass_online(60_000);
    assert!(bench.take().supervised().is_empty());
    // Twin: its own end does, by the plan of before.
    bench.gone(2);
    bench.pass(2_000);
    assert_eq!(bench.take().starts_of_sidecar(), 1);
}

#[test]
fn a_clean_end_cancels_the_supervision() {
    let mut bench = Bench::supervised(RestartPolicy::default());
    bench.ask(ApiCall::DeregisterNode { sidecar: 1 });
    bench.gone(1);
    bench.accept();
    bench.pass_online(60_000);
    assert!(bench.take().supervised().is_empty(), "no child, nothing to stop");
    // With a child it is told to end, once, and its end starts nothing.
    let mut bench = Bench::supervised(RestartPolicy::default());
    bench.gone(1);
    bench.pass(2_000);
    bench.attach(2);
    bench.take();
    bench.ask(ApiCall::DeregisterNode { sidecar: 2 });
    bench.accept();
    assert_eq!(bench.take().supervised(), [SuperviseCommand::Stop]);
    assert_eq!(bench.status()["sidecar"]["supervised"], false);
    // A new sidecar that is gone while the old child still ends waits for that end.
    bench.flash(3, RestartPolicy::default());
    bench.pass(5_000);
    assert!(bench.take().supervised().is_empty());
    bench.process(ProcessNote::Ended { code: None, signal: Some(15) });
    let seen = bench.take();
    assert!(seen.logs(log::Level::Warn).is_empty(), "an end that was asked for:\n{seen:?}");
    bench.pass(2_000);
    assert_eq!(bench.take().starts_of_sidecar(), 1);
    assert_eq!(bench.status()["sidecar"]["last_error"], Value::Null);
}

#[test]
fn a_stop_ends_the_child_and_waits_for_it_within_its_bound() {
    let with_child = || {
        let mut bench = Bench::supervised(RestartPolicy::default());
        bench.gone(1);
        bench.pass(2_000);
        bench.take();
        bench.step(Input::Stop { reason: "SIGTERM" });
        let seen = bench.take();
        assert_eq!(seen.supervised(), [SuperviseCommand::Stop], "{seen:?}");
        assert_eq!(seen.closes(), 0, "the child still lives:\n{seen:?}");
        bench
    };
    let mut bench = with_child();
    bench.process(ended(0));
    assert_eq!(bench.take().closes(), 1, "at once");
    let mut bench = with_child();
    bench.pass(2_599);
    assert_eq!(bench.take().closes(), 0);
    bench.pass(1);
    let seen = bench.take();
    assert_eq!(seen.closes(), 1, "{seen:?}");
    assert!(seen.logs(log::Level::Error)[0].contains("the supervised sidecar"), "{seen:?}");
    // During the cooldown there is nothing to end, and nothing is started any more.
    let mut bench = Bench::supervised(RestartPolicy::default());
    bench.gone(1);
    bench.take();
    bench.step(Input::Stop { reason: "SIGTERM" });
    bench.pass(60_000);
    let seen = bench.take();
    assert!(seen.supervised().is_empty(), "{seen:?}");
    assert_eq!(seen.closes(), 1);
}

#[test]
fn no_policy_makes_the_broker_spin_or_overflow() {
    let eager = RestartPolicy { cooldown_ms: 0, max_restarts: u32::MAX, ..RestartPolicy::default() };
    let mut bench = Bench::supervised(eager);
    bench.gone(1);
    for n in 0..100 {
        bench.pass(99);
        assert!(bench.take().supervised().is_empty(), "start {n}");
        bench.pass(1);
        assert_eq!(bench.take().starts_of_sidecar(), 1, "start {n}");
        bench.flash(n + 2, eager);
        bench.process(ended(1));
        bench.take();
    }
    let mut bench = Bench::supervised(RestartPolicy { cooldown_ms: u64::MAX, ..RestartPolicy::default() });
    bench.gone(1);
    bench.pass_online(3_600_000);
    assert!(bench.take().supervised().is_empty());
}
