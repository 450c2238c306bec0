use super::{Effect, Event, State, Step, Timer, step};

/// What a cell of the table stands for: the next state (`None`: the same), and the effects.
fn meaning(cell: &str) -> (Option<State>, Vec<Effect>) {
    use Effect::{
        Arm, CountRetry, Deliver, Dial, Disarm, Drop, ForgetRetries, Release, SendKeepalive,
        SendNotification, SendOpen,
    };
    use Timer::{ConnectRetry, Hold, IdleHold, Keepalive};
    match cell {
        "-" => (None, vec![]),
        // Beginnings.
        "start" => (Some(State::Connect), vec![ForgetRetries, Arm(ConnectRetry), Dial]),
        "listen" => (Some(State::Active), vec![ForgetRetries, Arm(ConnectRetry)]),
        "wait" => (Some(State::Active), vec![Arm(ConnectRetry)]),
        "dial" => (Some(State::Connect), vec![Arm(ConnectRetry), Dial]),
        "redial" => (Some(State::Connect), vec![Drop, Arm(ConnectRetry), Dial]),
        "await" => (Some(State::Active), vec![Release, Arm(ConnectRetry)]),
        // The way up.
        "greet" => (
            Some(State::OpenSent),
            vec![Disarm(ConnectRetry), SendOpen, Arm(Hold)],
        ),
        "agree" => (
            Some(State::OpenConfirm),
            vec![Disarm(ConnectRetry), SendKeepalive, Arm(Keepalive), Arm(Hold)],
        ),
        "up" => (Some(State::Established), vec![Arm(Hold)]),
        "alive" => (None, vec![Arm(Hold)]),
        "beat" => (None, vec![SendKeepalive, Arm(Keepalive)]),
        "learn" => (None, vec![Arm(Hold), Deliver]),
        // The ways down: without and with a NOTIFICATION, uncounted, and by the operator.
        "fail" => (Some(State::Idle), vec![Release, CountRetry, Arm(IdleHold)]),
        "notify" => (
            Some(State::Idle),
            vec![SendNotification, Release, CountRetry, Arm(IdleHold)],
        ),
        "quiet" => (Some(State::Idle), vec![Release, Arm(IdleHold)]),
        "stop" => (Some(State::Idle), vec![Release, ForgetRetries]),
        "cease" => (Some(State::Idle), vec![SendNotification, Release, ForgetRetries]),
        "rest" => (Some(State::Idle), vec![Disarm(IdleHold), ForgetRetries]),
        other => panic!("{other} is no cell"),
    }
}

/// RFC 4271 §8.2.2 (test), as a table; the exceptions are marked.
const TABLE: &str = "
    event                Idle    Connect  Active  OpenSent  OpenConfirm  Established
    Start                start   -        -       -         -            -
    StartPassive         listen  -        -       -         -            -
    Stop                 rest    stop     stop    cease     cease        cease
    Abandon              rest    stop     stop    stop      stop         stop
    AutomaticStop        rest    fail     fail    notify    notify       notify
    ConnectRetryExpires  -       redial   dial    notify    notify       notify
    HoldExpires          -       fail     fail    notify    notify       notify
    KeepaliveExpires     -       fail     fail    notify    beat         beat
    IdleHoldExpires      dial    fail     fail    notify    notify       notify
    IdleHoldExpiresPassive wait  fail     fail    notify    notify       notify
    TcpEstablished       -       greet    greet   notify    notify       notify
    TcpFails             -       await*   fail    await     fail         fail
    Open                 -       fail     fail    agree     notify*      notify
    HeaderError          -       fail     fail    notify    notify       notify
    OpenError            -       fail     fail    notify    notify       notify
    CollisionDump        -       fail     fail    notify    notify       notify
    VersionError         -       fail     fail    quiet     quiet        fail
    Notification         -       fail     fail    fail*     fail         fail
    Keepalive            -       fail     fail    notify    up           alive
    Update               -       fail     fail    notify    notify       learn
    UpdateError          -       fail     fail    notify    notify       notify
    RouteRefresh         -       fail     fail    notify    notify       learn
    SendHoldExpires      -       fail     fail    notify    notify       notify
";

#[test]
fn every_event_in_every_state_does_what_the_table_of_rfc_4271_says() {
    let mut rows = TABLE.trim().lines();
    let head: Vec<&str> = rows.next().unwrap().split_whitespace().skip(1).collect();
    assert_eq!(
        head,
        State::ALL.map(|state| state.to_string()),
        "the columns are the states"
    );
    let names: Vec<String> = Event::ALL.iter().map(|event| format!("{event:?}")).collect();
    let mut seen = Vec::new();
    for row in rows {
        let mut cells = row.split_whitespace();
        let name = cells.next().unwrap();
        let event = Event::ALL[names.iter().position(|known| known == name).unwrap()];
        seen.push(name);
        for state in State::ALL {
            let cell = cells.next().unwrap().trim_end_matches('*');
            let (next, effects) = meaning(cell);
            let Step {
                next: got,
                effects: done,
            } = step(state, event);
            assert_eq!(
                (got, done),
                (next.unwrap_or(state), &effects[..]),
                "{event:?} in {state}: {cell}"
            );
        }
        assert_eq!(cells.next(), None, "{name} has a cell for each state");
    }
    assert_eq!(seen, names, "the rows are the events");
}

#[test]
fn whoever_leaves_for_idle_holds_neither_connection_nor_timer() {
    for state in State::ALL.into_iter().filter(|&state| state != State::Idle) {
        for event in Event::ALL {
            let Step { next, effects } = step(state, event);
            let released = effects.iter().position(|&effect| effect == Effect::Release);
            if next == State::Idle {
                let released = released.unwrap();
                let after = &effects[released..];
                assert!(
                    !after.contains(&Effect::SendNotification),
                    "{event:?} in {state}: told too late"
                );
            }
        }
    }
}

#[test]
fn routes_are_taken_in_established_only() {
    for state in State::ALL {
        for event in Event::ALL {
            if step(state, event).effects.contains(&Effect::Deliver) {
                assert_eq!(state, State::Established, "{event:?}");
            }
        }
    }
}
