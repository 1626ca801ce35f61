//! The planner on made-up machines and texts, by a clock of its own: guessing pays where it can, and where it cannot it
//! costs no more than 3 %.

use super::acceptance::Source;
use super::plan::{Offers, Planner};
use super::{Draft, Drafting, MAX_DRAFT};

/// Passes of 2, 4, 8 and 16 rows in passes of one, as measured (docs/benchmarks.md): the 12B in Q4_0, which waits for
/// memory, and the 270M, which spends half of its time on logits. Beyond, as prefill's rows cost.
const MACHINES: [[(usize, f64); 6]; 2] = [
    [(1, 1.0), (2, 1.14), (4, 1.17), (8, 1.58), (16, 2.9), (128, 17.0)],
    [(1, 1.0), (2, 1.11), (4, 1.34), (8, 1.87), (16, 2.86), (128, 20.0)],
];
/// A drafter's token in passes of one row.
const GUESS: f64 = 0.05;
/// Rows of the largest pass in which anything is guessed.
const ALIKE: usize = 16;

fn pass_s(machine: usize, n_rows: usize) -> f64 {
    let points = &MACHINES[machine];
    let i = points.iter().position(|(n, _)| *n >= n_rows).unwrap();
    let (n, s) = points[i];
    if n == n_rows {
        return s;
    }
    let (before, s_before) = points[i - 1];
    s_before + (s - s_before) * (n_rows - before) as f64 / (n - before) as f64
}

/// How probable it is that a guess is right, by the number of tokens before.
type Right = fn(usize) -> f64;

/// What a pass takes longer than it should, by its number and a number of chance.
type Disturbance = fn(usize, f64) -> f64;

/// Shares of guesses that are right.
const RIGHT: [(f64, Right); 6] = [
    (0.0, |_| 0.0),
    (0.05, |_| 0.05),
    (0.1, |_| 0.1),
    (0.3, |_| 0.3),
    (0.5, |_| 0.5),
    (0.8, |_| 0.8),
];

/// A fixed row of numbers that look like chance, from 0 to 1.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// What happens.
#[derive(Clone, Copy, Debug)]
struct World {
    machine: usize,
    n_streams: usize,
    has_text: bool,
    has_drafter: bool,
    /// Rows of the largest pass with guesses.
    most_rows: usize,
    right: Right,
    disturbance: Disturbance,
    seed: u64,
}

const QUIET: World = World {
    machine: 0,
    n_streams: 1,
    has_text: true,
    has_drafter: false,
    most_rows: ALIKE,
    right: |_| 0.0,
    disturbance: |_, _| 1.0,
    seed: 1,
};

impl World {
    /// Tokens per second, of an undisturbed machine, by those of plain decoding: each stream says `n_tokens`.
    fn speed_up(&self, planner: &mut Planner, n_tokens: usize) -> f64 {
        let mut drafts: Vec<Draft> = (0..self.n_streams)
            .map(|_| Draft::new(Drafting::Adaptive))
            .collect();
        let mut dice = Dice(self.seed);
        let (mut n_said, mut seconds) = (0, 0.0);
        for i_pass in 0.. {
            if n_said >= n_tokens * self.n_streams {
                break;
            }
            let offers: Vec<Offers> = drafts
                .iter()
                .map(|draft| self.offers(planner, draft, &mut dice))
                .collect();
            let mut all: Vec<&mut Draft> = drafts.iter_mut().collect();
            let room = self.most_rows.saturating_sub(self.n_streams);
            let choices = planner.choose(&mut all, &offers, room);
            let right = (self.right)(n_said / self.n_streams);
            let (mut n_rows, mut deepest) = (self.n_streams, 0);
            for (draft, choice) in drafts.iter_mut().zip(choices) {
                n_said += 1;
                n_rows += choice.n;
                let Some(source) = choice.source() else { continue };
                if source == Source::Drafter {
                    deepest = deepest.max(choice.n);
                }
                draft.source = source;
                draft.chain = vec![1; choice.n + 1];
                let mut i = 0;
                while draft.compare(i, u32::from(dice.roll() < right)) {
                    (i, n_said) = (i + 1, n_said + 1);
                }
                draft.settle();
                planner.record_outcome(draft);
            }
            let (pass, guesses) = (pass_s(self.machine, n_rows), GUESS * deepest as f64);
            let slowness = (self.disturbance)(i_pass, dice.roll());
            planner.record_pass(n_rows, pass * slowness);
            planner.cost.record_guesses(deepest, guesses * slowness);
            seconds += pass + guesses;
        }
        n_said as f64 / seconds * pass_s(self.machine, self.n_streams) / self.n_streams as f64
    }

    /// In half of the passes the text has something to say.
    fn offers(&self, planner: &Planner, draft: &Draft, dice: &mut Dice) -> Offers {
        let past = (dice.roll() * 24.0) as usize;
        let is_found = self.has_text && past >= 12;
        let drafter = self.has_drafter.then_some(Source::Drafter);
        let text = is_found.then(|| Source::after(past - 12));
        let offer = |source| planner.offer(draft, source, MAX_DRAFT);
        Offers {
            text: text.map(offer),
            drafter: drafter.map(offer),
        }
    }
}

/// All machines, numbers of streams and sources.
fn worlds() -> impl Iterator<Item = World> {
    let machines = (0..MACHINES.len()).flat_map(|machine| [1, 2, 4, 8, 12, 16, 24].map(|n| (machine, n)));
    let sources = [(true, false), (false, true), (true, true)];
    machines.flat_map(move |(machine, n_streams)| {
        sources.map(|(has_text, has_drafter)| World {
            machine,
            n_streams,
            has_text,
            has_drafter,
            ..QUIET
        })
    })
}

/// Very short answers in a row may cost a little more: every source has to fail before it is known to.
#[test]
fn where_nothing_is_right_guessing_costs_less_than_three_percent() {
    for world in worlds() {
        for (n_tokens, first, second) in [
            (20, 0.95, 0.955),
            (50, 0.97, 0.98),
            (100, 0.975, 0.98),
            (2000, 0.99, 0.99),
        ] {
            let mut planner = Planner::default();
            let speed_ups = [0, 1].map(|_| world.speed_up(&mut planner, n_tokens));
            assert!(
                speed_ups[0] > first && speed_ups[1] > second,
                "{n_tokens} tokens: {speed_ups:?} in {world:?}"
            );
        }
    }
}

#[test]
fn guesses_pay_alone_and_stop_in_a_batch() {
    for world in worlds() {
        for (share, right) in RIGHT {
            // As if any number of rows were computed alike: then only the costs speak against guessing.
            for most_rows in [ALIKE, 128] {
                let world = World {
                    right,
                    most_rows,
                    ..world
                };
                let speed_up = world.speed_up(&mut Planner::default(), 1000);
                assert!(speed_up > 0.98, "{share}: {speed_up} in {world:?}");
                if most_rows == ALIKE && world.n_streams >= ALIKE {
                    assert!((speed_up - 1.0).abs() < 1e-9, "{speed_up} in {world:?}");
                }
            }
        }
    }
    let alone = |machine, right| {
        let world = World {
            machine,
            has_drafter: true,
            right,
            ..QUIET
        };
        world.speed_up(&mut Planner::default(), 1000)
    };
    for (machine, right, least) in [
        (0, RIGHT[4].1, 1.3),
        (0, RIGHT[5].1, 1.9),
        (0, (|_| 0.95) as Right, 2.6),
        (1, RIGHT[4].1, 1.2),
        (1, RIGHT[5].1, 1.7),
    ] {
        let speed_up = alone(machine, right);
        assert!(speed_up > least, "{speed_up}, not {least}, on machine {machine}");
    }
}

/// Passes that other programs slow down are no reason to guess where it does not pay, nor to give up where it does.
#[test]
fn a_disturbed_machine_is_not_misread_for_long() {
    let disturbances: [(&str, Disturbance); 4] = [
        ("noise", |_, x| 1.0 + x * x),
        ("half of the machine, at times", |i, _| {
            if i / 300 % 2 == 0 { 2.0 } else { 1.0 }
        }),
        ("a slow start", |i, _| if i < 3 { 6.0 } else { 1.0 }),
        ("spikes", |_, x| if x < 0.05 { 5.0 } else { 1.0 }),
    ];
    for (what, disturbance) in disturbances {
        for machine in 0..MACHINES.len() {
            for (share, right) in RIGHT {
                let quiet = World {
                    machine,
                    has_drafter: true,
                    right,
                    ..QUIET
                };
                let disturbed = World { disturbance, ..quiet };
                let [quiet, disturbed] =
                    [quiet, disturbed].map(|w| w.speed_up(&mut Planner::default(), 3000));
                assert!(disturbed > 0.98, "{what}, {share}: {disturbed}");
                assert!(
                    disturbed > 0.85 * quiet,
                    "{what}, {share}: {disturbed}, {quiet} without"
                );
            }
        }
    }
}

/// A hundred tokens of prose, a hundred of quotation, and so on: 1.4 would be perfect.
#[test]
fn guessing_comes_back_when_the_text_changes() {
    let right = |n| if n / 100 % 2 == 0 { 0.0 } else { 0.9 };
    let world = World {
        has_drafter: true,
        right,
        ..QUIET
    };
    let speed_up = world.speed_up(&mut Planner::default(), 2000);
    assert!(speed_up > 1.15, "{speed_up}");
}
