//! Whether a request may be made: one decision over all who pay for it.
//!
//! A [`Meter`] is what became of a payer's limits: what it spent, what is held for requests under way, how full its
//! buckets are. [`admit`] checks all meters and only then takes from all, so that a refusal leaves no trace. A request
//! passes when what was spent, what is held and what it may cost itself stay within every limit. Whether only the holds
//! stand in its way is told apart: then it is worth waiting for.

use std::collections::HashMap;
use std::sync::Arc;

use crate::budget::{Budget, Spending};
use crate::directory::{Holder, Payer};
use crate::hold::{Asked, Refusal, Warning};
use crate::rate::Bucket;
use crate::row::{Open, Row, day_of};
use crate::{Micros, Role};

/// What became of a payer's limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    pub(crate) spending: Spending,
    pub(crate) held: Micros,
    pub(crate) n_open: u64,
    pub(crate) requests: Bucket,
    pub(crate) tokens: Bucket,
    /// The first day of the window in which it was told that the soft limit is passed.
    pub(crate) warned: Option<i64>,
}

/// By what each is counted under.
pub(crate) type Meters = HashMap<Arc<str>, Meter>;

/// When something happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// Milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// Milliseconds of a clock for limits a minute.
    pub(crate) rate_ms: u64,
}

/// Decides about a request, and takes what it needs.
pub(crate) fn admit(
    holder: &Holder,
    meters: &mut Meters,
    asked: &Asked<'_>,
    now: Moment,
) -> Result<Vec<Warning>, Refusal> {
    if holder.role == Role::Viewer {
        return Err(Refusal::Role);
    }
    let is_allowed = |payer: &Payer| payer.limits.allows(asked.route);
    if !asked.is_downgraded && !holder.payers.iter().all(is_allowed) {
        return Err(Refusal::Model);
    }
    if asked.cost.is_none() && holder.payers.iter().any(|payer| payer.limits.has_budget()) {
        return Err(Refusal::Price);
    }
    let mut short = Ok(());
    for payer in &holder.payers {
        let meter = meters.entry(Arc::clone(&payer.scope)).or_default();
        meter.check_rates(payer, asked, now)?;
        if let Err(refusal) = meter.check_money(payer, asked, now) {
            // Where something is spent, waiting for what is held does not help.
            if short.is_ok() || matches!(short, Err(Refusal::Held)) {
                short = Err(refusal);
            }
        }
    }
    if let Some(to) = downgrade(holder, meters, asked, now, short.as_ref().err()) {
        return Err(Refusal::Downgrade { to });
    }
    short?;
    let mut warnings = Vec::new();
    for payer in &holder.payers {
        if let Some(meter) = meters.get_mut(&payer.scope) {
            meter.take(payer, asked);
            warnings.extend(meter.warning(payer, now));
        }
    }
    Ok(warnings)
}

/// What is to answer in place of the model asked for, because a soft limit is passed or a hard one in the way.
fn downgrade(
    holder: &Holder,
    meters: &Meters,
    asked: &Asked<'_>,
    now: Moment,
    short: Option<&Refusal>,
) -> Option<String> {
    if asked.is_downgraded {
        return None;
    }
    let is_short = |payer: &Payer| match short {
        Some(Refusal::Budget { whose }) => *whose == payer.whose,
        _ => false,
    };
    let passed = holder.payers.iter().filter(|payer| {
        is_short(payer)
            || meters
                .get(&payer.scope)
                .is_some_and(|meter| meter.is_past_soft(payer, now))
    });
    let mut fallbacks = passed.filter_map(|payer| payer.limits.fallback.as_ref());
    fallbacks.find(|fallback| *fallback != asked.route).cloned()
}

/// Puts what a request did cost in place of what was held. `is_held`: the meters know of it.
pub(crate) fn settle(meters: &mut Meters, open: &Open, row: &Row, is_held: bool) {
    let (cost, day) = (row.cost.unwrap_or_default(), open.ended_day(row));
    for scope in open.scopes() {
        let meter = meters.entry(scope.into()).or_default();
        meter.spending.add(day, cost);
        if is_held {
            meter.held = meter.held.minus(open.held);
            meter.n_open = meter.n_open.saturating_sub(1);
            meter
                .tokens
                .correct(open.tokens, row.input.saturating_add(row.output));
        }
    }
}

impl Meter {
    fn check_rates(&mut self, payer: &Payer, asked: &Asked<'_>, now: Moment) -> Result<(), Refusal> {
        let (limits, whose) = (&payer.limits, payer.whose);
        if limits.concurrency.is_some_and(|most| self.n_open >= most) {
            return Err(Refusal::Concurrency { whose });
        }
        if let Some(limit) = limits.requests_per_minute {
            // Each takes one. Tokens may well be taken beyond what fits, by an answer that was longer than thought.
            self.requests.cap(limit);
            let checked = self.requests.check(limit, 1, now.rate_ms);
            checked.map_err(|wait| Refusal::Requests { whose, wait })?;
        }
        if let Some(limit) = limits.tokens_per_minute {
            let checked = self.tokens.check(limit, asked.tokens, now.rate_ms);
            checked.map_err(|wait| Refusal::Tokens { whose, wait })?;
        }
        Ok(())
    }

    fn check_money(&self, payer: &Payer, asked: &Asked<'_>, now: Moment) -> Result<(), Refusal> {
        let budget = payer
            .limits
            .budget
            .map(|budget| (self.spent(budget, now), budget.limit));
        let credit = payer
            .limits
            .is_prepaid
            .then(|| (self.spending.ever(), payer.granted));
        let cost = asked.cost.unwrap_or_default();
        for (spent, limit) in budget.into_iter().chain(credit) {
            let without_holds = spent.plus(cost);
            if spent >= limit || without_holds > limit {
                return Err(Refusal::Budget { whose: payer.whose });
            }
            if without_holds.plus(self.held) > limit {
                return Err(Refusal::Held);
            }
        }
        Ok(())
    }

    fn take(&mut self, payer: &Payer, asked: &Asked<'_>) {
        self.held = self.held.plus(asked.cost.unwrap_or_default());
        self.n_open += 1;
        let limits = &payer.limits;
        for (bucket, limit, n) in [
            (&mut self.requests, limits.requests_per_minute, 1),
            (&mut self.tokens, limits.tokens_per_minute, asked.tokens),
        ] {
            match limit {
                Some(_) => bucket.take(n),
                // A bucket fills when it is looked at, and without a limit nobody looks: whoever sets one later would
                // find it empty for hours.
                None => *bucket = Bucket::default(),
            }
        }
    }

    fn spent(&self, budget: Budget, now: Moment) -> Micros {
        self.spending.within(budget.period, day_of(now.wall_ms))
    }

    fn is_past_soft(&self, payer: &Payer, now: Moment) -> bool {
        let soft = payer.limits.soft;
        soft.is_some_and(|soft| self.spent(soft, now) >= soft.limit)
    }

    fn warning(&mut self, payer: &Payer, now: Moment) -> Option<Warning> {
        let soft = payer.limits.soft.filter(|_| self.is_past_soft(payer, now))?;
        let window = soft.period.start(day_of(now.wall_ms));
        let is_first = self.warned != Some(window);
        self.warned = Some(window);
        Some(Warning {
            whose: payer.whose,
            scope: Arc::clone(&payer.scope),
            spent: self.spent(soft, now),
            soft,
            is_first,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Period};

    const NOW: Moment = Moment {
        wall_ms: 5 * 86_400_000,
        rate_ms: 0,
    };

    fn holder(limits: Limits, granted: u64) -> Holder {
        let payer = |whose, scope: &str, limits| Payer {
            whose,
            scope: scope.into(),
            limits,
            granted: Micros(granted),
        };
        Holder {
            payers: vec![
                payer("key", "key:1", Limits::default()),
                payer("team", "team:t", limits),
            ],
            ..Holder::default()
        }
    }

    fn budget(limit: u64) -> Option<Budget> {
        Some(Budget {
            limit: Micros(limit),
            period: Period::Day,
        })
    }

    fn asked(cost: u64) -> Asked<'static> {
        Asked {
            id: [0; 16],
            route: "chat",
            tokens: 1,
            cost: Some(Micros(cost)),
            is_downgraded: false,
        }
    }

    fn open(held: u64) -> (Open, impl Fn(u64) -> Row) {
        let open = Open {
            id: [0; 16],
            key: 1,
            team: Some("t".into()),
            user: None,
            project: None,
            route: "chat".into(),
            held: Micros(held),
            tokens: 1,
            started_ms: NOW.wall_ms,
        };
        (open, |cost| Row {
            cost: Some(Micros(cost)),
            ..Row::nothing(0)
        })
    }

    #[test]
    fn holds_count_but_can_be_waited_for() {
        let holder = holder(
            Limits {
                budget: budget(10),
                ..Limits::default()
            },
            0,
        );
        let mut meters = Meters::new();
        let spent = || Some(Refusal::Budget { whose: "team" });
        admit(&holder, &mut meters, &asked(6), NOW).unwrap();
        assert_eq!(
            admit(&holder, &mut meters, &asked(5), NOW).err(),
            Some(Refusal::Held)
        );
        assert_eq!(admit(&holder, &mut meters, &asked(11), NOW).err(), spent());
        let (open, row) = open(6);
        settle(&mut meters, &open, &row(1), true);
        admit(&holder, &mut meters, &asked(9), NOW).unwrap();
        settle(
            &mut meters,
            &Open {
                held: Micros(9),
                ..open
            },
            &row(9),
            true,
        );
        assert_eq!(admit(&holder, &mut meters, &asked(0), NOW).err(), spent());
        let tomorrow = Moment {
            wall_ms: 6 * 86_400_000,
            ..NOW
        };
        assert!(
            admit(&holder, &mut meters, &asked(10), tomorrow).is_ok(),
            "a new day"
        );
    }

    #[test]
    fn credits_are_used_up_and_a_refusal_leaves_no_trace() {
        let limits = Limits {
            is_prepaid: true,
            requests_per_minute: Some(2),
            ..Limits::default()
        };
        let poor = holder(limits.clone(), 5);
        let mut meters = Meters::new();
        for _ in 0..9 {
            let refusal = admit(&poor, &mut meters, &asked(6), NOW).err();
            assert_eq!(
                refusal,
                Some(Refusal::Budget { whose: "team" }),
                "no request was taken"
            );
        }
        let rich = holder(limits, 15);
        admit(&rich, &mut meters, &asked(6), NOW).unwrap();
        admit(&rich, &mut meters, &asked(6), NOW).unwrap();
        assert!(matches!(
            admit(&rich, &mut meters, &asked(1), NOW).err(),
            Some(Refusal::Requests { .. })
        ));
    }

    #[test]
    fn a_limit_a_minute_begins_when_it_is_set() {
        let mut meters = Meters::new();
        let free = holder(Limits::default(), 0);
        let many = Asked {
            tokens: 10_000,
            ..asked(0)
        };
        let (open, row) = open(0);
        let used = Row {
            output: 20_000,
            ..row(0)
        };
        for _ in 0..1_000 {
            admit(&free, &mut meters, &many, NOW).unwrap();
            settle(&mut meters, &open, &used, true);
        }
        let limited = |n| {
            let limits = Limits {
                requests_per_minute: Some(n),
                tokens_per_minute: Some(1_000 * n),
                ..Limits::default()
            };
            holder(limits, 0)
        };
        admit(&limited(60), &mut meters, &many, NOW).unwrap();
        // Taken away, it is forgotten.
        (0..1_000).for_each(|_| drop(admit(&free, &mut meters, &many, NOW).unwrap()));
        (0..100).for_each(|_| drop(admit(&limited(1_000), &mut meters, &many, NOW).unwrap()));
        // A lower one does not wait for what the higher one allowed.
        let mut requests_only = limited(2);
        requests_only.payers[1].limits.tokens_per_minute = None;
        let refusal = admit(&requests_only, &mut meters, &many, NOW).err();
        let Some(Refusal::Requests { wait, .. }) = refusal else {
            panic!("{refusal:?}")
        };
        assert!(wait.as_secs_f64() < 30.1, "{wait:?}");
    }

    #[test]
    fn a_soft_limit_is_told_once_a_window_and_sends_elsewhere() {
        let soft = Limits {
            soft: budget(5),
            ..Limits::default()
        };
        let mut meters = Meters::new();
        let plain = holder(soft.clone(), 0);
        assert!(admit(&plain, &mut meters, &asked(9), NOW).unwrap().is_empty());
        let (open, row) = open(9);
        settle(&mut meters, &open, &row(9), true);
        let told = |meters: &mut Meters| admit(&plain, meters, &asked(1), NOW).unwrap()[0].is_first;
        assert!(told(&mut meters) && !told(&mut meters));
        let cheap = holder(
            Limits {
                fallback: Some("small".into()),
                ..soft
            },
            0,
        );
        let to = || Some(Refusal::Downgrade { to: "small".into() });
        assert_eq!(admit(&cheap, &mut meters, &asked(1), NOW).err(), to());
        let downgraded = Asked {
            route: "small",
            is_downgraded: true,
            ..asked(1)
        };
        assert_eq!(admit(&cheap, &mut meters, &downgraded, NOW).unwrap().len(), 1);
        // The fallback itself is asked for as any other model.
        assert!(
            admit(
                &cheap,
                &mut meters,
                &Asked {
                    route: "small",
                    ..asked(1)
                },
                NOW
            )
            .is_ok()
        );
        let hard = holder(
            Limits {
                budget: budget(10),
                fallback: Some("small".into()),
                ..Limits::default()
            },
            0,
        );
        assert_eq!(
            admit(&hard, &mut meters, &asked(5), NOW).err(),
            to(),
            "the rest is too little for the model"
        );
    }
}
