//! Every decoder under damaged messages: each gets an answer that holds together, and costs no more memory than 64 KiB
//! and 40 times the message. Cases are made from a seed, and a failure names the seed and the case.
//!
//! `CULVERT_FUZZ_CASES=100000000 cargo test --release -p culvert-bgp --test fuzz` runs as many messages over the decoders
//! instead of the few of a test run, and `CULVERT_FUZZ_SEED` begins elsewhere.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used)]

mod corpus;
mod extremes;
mod mutate;
mod session;

use culvert_bgp::wire::message::{Message, Open, Update};
use culvert_bgp::wire::{Decoded, Decoder, HEADER_LENGTH, Negotiated, Verdict, decode, encode, frame};

use mutate::{Random, damage};

/// Messages of one test run over each target.
const CASES: u64 = 40_000;
/// The decoder targets below, which share the cases asked for by hand.
const TARGETS: u64 = 6;
/// What a message may cost besides 40 times its own octets.
const ALLOWANCE: u64 = 64 * 1024;

/// A number from the environment.
fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is not a number")),
    )
}

fn seed() -> u64 {
    from_environment("CULVERT_FUZZ_SEED").unwrap_or(1)
}

/// Says which case it was, should the thread panic.
struct Case {
    target: &'static str,
    number: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: seed {}, case {}", self.target, seed(), self.number);
        }
    }
}

/// What became of a message, and what it cost.
struct Answer {
    octets: u64,
    memory: u64,
    /// `None` for one that was refused, else how many faults it had.
    faults: Option<usize>,
}

/// What became of all messages of a target.
#[derive(Debug, Default)]
struct Tally {
    sound: u64,
    faulty: u64,
    refused: u64,
    /// The message that came nearest to what it may cost: its octets, and the memory that they took.
    worst: (u64, u64),
}

impl Tally {
    fn count(&mut self, answer: &Answer) {
        match answer.faults {
            None => self.refused += 1,
            Some(0) => self.sound += 1,
            Some(_) => self.faulty += 1,
        }
        let (octets, memory) = self.worst;
        if answer.memory * most(octets) > memory * most(answer.octets) {
            self.worst = (answer.octets, answer.memory);
        }
    }
}

/// The most memory that a message may cost.
fn most(octets: u64) -> u64 {
    ALLOWANCE + 40 * octets
}

/// Runs a target over its cases, each with numbers of its own.
fn run(target: &'static str, mut one: impl FnMut(&mut Random) -> Answer) -> Tally {
    let mut tally = Tally::default();
    let cases = from_environment("CULVERT_FUZZ_CASES").map_or(CASES, |all| all.div_ceil(TARGETS));
    let mut case = Case { target, number: 0 };
    for number in 0..cases {
        case.number = number;
        let mut random = Random::new(seed().wrapping_mul(0x0100_0000_01b3).wrapping_add(number));
        tally.count(&one(&mut random));
        if number > 0 && number % 5_000_000 == 0 {
            eprintln!("{target}: {number} of {cases}");
        }
    }
    eprintln!("{target}: {cases} cases, {tally:?}");
    // Damage that breaks all, or nothing, would try little.
    assert!(tally.sound > 0 && tally.refused > 0, "{tally:?}");
    tally
}

/// A message with a header that fits it, mostly: else the decoder never gets to the body.
fn with_header(kind: u8, body: &[u8], random: &mut Random) -> Vec<u8> {
    let mut octets = vec![0xff; 16];
    let length = u16::try_from(HEADER_LENGTH + body.len()).unwrap_or(u16::MAX);
    let length = if random.once_in(64) { length ^ 1 } else { length };
    octets.extend(length.to_be_bytes());
    octets.push(kind);
    octets.extend_from_slice(body.get(..65535 - HEADER_LENGTH).unwrap_or(body));
    octets
}

/// What every decoder owes for every message.
fn check(octets: &[u8], decoder: &mut Decoder) -> Answer {
    let negotiated = decoder.negotiated();
    let mut answer = None;
    let cost = allocation_counter::measure(|| answer = Some(decoder.decode(octets)));
    let mut result = Answer {
        octets: u64::try_from(octets.len()).unwrap(),
        memory: cost.bytes_max,
        faults: None,
    };
    assert!(
        result.memory <= most(result.octets),
        "{} octets took {} of memory, with {negotiated:?}: {octets:02x?}",
        octets.len(),
        cost.bytes_max
    );
    let Some(Ok(Decoded { message, faults })) = answer else {
        return result;
    };
    result.faults = Some(faults.len());
    assert!(faults.len() <= 32 && faults.iter().all(|fault| fault.verdict != Verdict::Reset));
    match &message {
        Message::Update(update) => check_update(update, octets, negotiated),
        Message::Open(open) => check_open(open),
        Message::Notification(notification) => {
            let _ = (notification.to_string(), notification.shutdown_text());
        }
        Message::Keepalive | Message::RouteRefresh { .. } => {}
    }
    // What was read can be written, as messages that may be sent.
    let written = encode(&message, negotiated);
    let mut rest = written.as_slice();
    while !rest.is_empty() {
        let length = frame(rest, negotiated).unwrap().unwrap();
        rest = &rest[length..];
    }
    result
}

fn check_update(update: &Update, octets: &[u8], negotiated: Negotiated) {
    assert_eq!(update.attributes.is_some(), !update.announced.is_empty());
    let routes: usize = update.announcements().map(|(nlri, _)| nlri.len()).sum();
    assert!(routes + update.withdrawn.len() <= octets.len());
    for (_, attributes) in update.announcements() {
        assert_eq!(attributes.local_pref.is_some(), negotiated.internal);
        let reflected = attributes.originator_id.is_some() || !attributes.cluster_list.is_empty();
        assert!(negotiated.internal || !reflected);
    }
}

fn check_open(open: &Open) {
    let both = Negotiated::between(open, open);
    assert!(both.internal && both.families().count() <= 2);
}

#[test]
fn any_damaged_message_gets_an_answer() {
    let messages = corpus::all();
    run("any message", |random| {
        let mut octets = random.pick(&messages).clone();
        let other = random.pick::<Vec<u8>>(&messages);
        damage(&mut octets, other, random);
        let mut decoder = Decoder::new(corpus::terms(random));
        let _ = frame(&octets, decoder.negotiated());
        check(&octets, &mut decoder)
    });
}

#[test]
fn any_damaged_open_gets_an_answer() {
    let messages = corpus::opens();
    run("OPEN", |random| {
        let mut body = random.pick(&messages)[HEADER_LENGTH..].to_vec();
        let other = random.pick::<Vec<u8>>(&messages);
        damage(&mut body, other, random);
        let octets = with_header(1, &body, random);
        check(&octets, &mut Decoder::new(Negotiated::plain(true)))
    });
}

#[test]
fn any_damaged_capability_gets_an_answer() {
    let capabilities = corpus::written_capabilities();
    run("capability", |random| {
        let mut parameter = Vec::new();
        for _ in 0..=random.below(4) {
            let (code, value) = random.pick(&capabilities);
            let mut value = value.clone();
            let (_, other) = random.pick(&capabilities);
            damage(&mut value, other, random);
            value.truncate(255);
            parameter.extend([*code, u8::try_from(value.len()).unwrap()]);
            parameter.extend(value);
        }
        // RFC 9072 §2: the extended form holds any length.
        let length = u16::try_from(parameter.len()).unwrap();
        let mut body = vec![4, 0xfc, 0, 0, 90, 192, 0, 2, 1, 255, 255];
        body.extend((length + 3).to_be_bytes());
        body.push(2);
        body.extend(length.to_be_bytes());
        body.extend(parameter);
        let octets = with_header(1, &body, random);
        check(&octets, &mut Decoder::new(Negotiated::plain(true)))
    });
}

/// The fields of an UPDATE that is sound, and its attributes one by one: flags, code, value.
struct Parts {
    withdrawn: Vec<u8>,
    attributes: Vec<(u8, u8, Vec<u8>)>,
    announced: Vec<u8>,
}

impl Parts {
    fn of(message: &[u8]) -> Self {
        let field = |octets: &[u8]| {
            let length = usize::from(u16::from_be_bytes([octets[0], octets[1]]));
            (octets[2..2 + length].to_vec(), octets[2 + length..].to_vec())
        };
        let (withdrawn, rest) = field(&message[HEADER_LENGTH..]);
        let (area, announced) = field(&rest);
        let mut attributes = Vec::new();
        let mut area = area.as_slice();
        while let [flags, code, rest @ ..] = area {
            let (length, rest) = if flags & 0x10 == 0 {
                (usize::from(rest[0]), &rest[1..])
            } else {
                (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..])
            };
            attributes.push((*flags, *code, rest[..length].to_vec()));
            area = &rest[length..];
        }
        Self {
            withdrawn,
            attributes,
            announced,
        }
    }

    /// Damages some parts, and leaves the lengths around them as they should be, mostly.
    fn damaged(mut self, other: &Parts, random: &mut Random) -> Vec<u8> {
        for (flags, _, value) in &mut self.attributes {
            if random.once_in(3) {
                damage(value, &other.announced, random);
            }
            if random.once_in(24) {
                *flags = random.octet();
            }
        }
        for _ in 0..random.below(3) {
            let (from, to) = (random.below(32), random.below(32));
            let count = self.attributes.len().max(1);
            match (other.attributes.get(from), random.below(3)) {
                (Some(foreign), 0) => self.attributes.insert(to % count, foreign.clone()),
                (_, 1) if !self.attributes.is_empty() => drop(self.attributes.remove(to % count)),
                (_, 2) if !self.attributes.is_empty() => self.attributes.swap(from % count, to % count),
                _ => {}
            }
        }
        if random.once_in(3) {
            damage(&mut self.announced, &other.withdrawn, random);
        }
        if random.once_in(3) {
            damage(&mut self.withdrawn, &other.announced, random);
        }
        self.body(random)
    }

    fn body(&self, random: &mut Random) -> Vec<u8> {
        let mut area = Vec::new();
        for (flags, code, value) in &self.attributes {
            let wrong = u16::from(random.once_in(64));
            let length = u16::try_from(value.len()).unwrap_or(u16::MAX).wrapping_add(wrong);
            match u8::try_from(length) {
                Ok(short) if flags & 0x10 == 0 => area.extend([*flags, *code, short]),
                _ => {
                    area.extend([flags | 0x10, *code]);
                    area.extend(length.to_be_bytes());
                }
            }
            area.extend(value);
        }
        let mut body = Vec::new();
        for field in [&self.withdrawn, &area] {
            body.extend(u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
            body.extend(field);
        }
        body.extend(&self.announced);
        body
    }
}

#[test]
fn any_damaged_update_gets_an_answer() {
    let messages = corpus::updates();
    let mut decoder = Decoder::new(Negotiated::plain(true));
    let tally = run("UPDATE", |random| {
        if random.once_in(16) {
            decoder = Decoder::new(corpus::terms(random));
        }
        let parts = Parts::of(random.pick::<Vec<u8>>(&messages));
        let other = Parts::of(random.pick::<Vec<u8>>(&messages));
        let body = parts.damaged(&other, random);
        let octets = with_header(2, &body, random);
        let answer = check(&octets, &mut decoder);
        // What is remembered of the messages before changes nothing.
        if random.once_in(8) {
            assert_eq!(decoder.decode(&octets), decode(&octets, decoder.negotiated()));
        }
        answer
    });
    assert!(tally.faulty > 0, "{tally:?}");
}

#[test]
fn any_damaged_notification_gets_an_answer() {
    let messages = corpus::notifications();
    run("NOTIFICATION", |random| {
        let mut body = random.pick(&messages)[HEADER_LENGTH..].to_vec();
        let other = random.pick::<Vec<u8>>(&messages);
        damage(&mut body, other, random);
        let octets = with_header(3, &body, random);
        check(&octets, &mut Decoder::new(corpus::terms(random)))
    });
}

#[test]
fn any_damaged_route_refresh_gets_an_answer() {
    let messages = corpus::refreshes();
    run("ROUTE-REFRESH", |random| {
        let mut body = random.pick(&messages)[HEADER_LENGTH..].to_vec();
        let other = random.pick::<Vec<u8>>(&messages);
        damage(&mut body, other, random);
        let octets = with_header(5, &body, random);
        check(&octets, &mut Decoder::new(corpus::terms(random)))
    });
}
