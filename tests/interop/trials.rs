//! What is tried with every daemon.

mod dissection;
mod external;
mod manifests;
mod paths;
mod policy;
mod protection;
mod reflection;
mod routes;
mod session;

use libtest_mimic::Failed;

use crate::daemon::{Kind, Terms};
pub(crate) use manifests::manifests;
use session::Session;

/// One thing that two speakers can do together.
#[derive(Clone, Copy)]
pub(crate) struct Feature {
    /// Its name, a sentence after that of the daemon.
    pub(crate) name: &'static str,
    /// What both are told.
    terms: fn() -> Terms,
    /// Whether a daemon can do it at all.
    can: fn(&Kind) -> bool,
    /// What is done and looked at, once both were started.
    act: fn(&mut Session) -> Result<(), Failed>,
}

impl Feature {
    /// Whether this daemon can do it at all.
    pub(crate) fn is_for(&self, kind: &Kind) -> bool {
        (self.can)(kind)
    }

    /// Tries it; the version of the daemon.
    pub(crate) fn run(&self, kind: Kind) -> Result<String, Failed> {
        let mut session = Session::start(kind, (self.terms)())?;
        (self.act)(&mut session).map_err(|error| session.explain(&error))?;
        Ok(session.peer.version()?)
    }
}

fn every(_: &Kind) -> bool {
    true
}

/// OpenBGPD knows the End-of-RIB marker of graceful restart alone: it neither keeps routes nor asks others to.
fn keeps_routes(kind: &Kind) -> bool {
    kind.name != "openbgpd"
}

/// All of them.
#[rustfmt::skip]
pub(crate) const ALL: [Feature; 20] = [
    Feature { name: "routes_go_both_ways_and_a_withdrawn_one_goes", terms: Terms::default, can: every, act: routes::exchanged },
    Feature { name: "ipv6_routes_go_both_ways_over_ipv6", terms: routes::ipv6, can: every, act: routes::exchanged_ipv6 },
    Feature { name: "it_asks_for_all_routes_again", terms: Terms::default, can: every, act: routes::refreshed },
    Feature { name: "its_routes_stay_while_it_restarts", terms: Terms::default, can: keeps_routes, act: routes::it_restarts },
    Feature { name: "it_keeps_our_routes_while_the_agent_restarts", terms: Terms::default, can: keeps_routes, act: routes::agent_restarts },
    Feature { name: "its_routes_stay_as_the_last_choice_when_it_does_not_come_back", terms: routes::long_lived, can: routes::keeps_routes_for_long, act: routes::it_stays_away },
    Feature { name: "a_session_has_a_password", terms: protection::password, can: every, act: routes::exchanged },
    Feature { name: "a_session_with_a_password_comes_back_when_the_agent_does", terms: protection::password, can: every, act: protection::comes_back },
    Feature { name: "a_wrong_password_is_told_in_words", terms: protection::wrong_password, can: every, act: protection::refused },
    Feature { name: "packets_from_further_away_are_refused_by_both", terms: protection::ttl_security, can: every, act: routes::exchanged },
    Feature { name: "routes_go_to_and_from_another_as", terms: external::two_octets, can: every, act: external::exchanged },
    Feature { name: "routes_go_to_and_from_an_as_of_four_octets", terms: external::four_octets, can: every, act: external::exchanged },
    Feature { name: "what_a_router_tells_of_the_outside_is_installed", terms: external::router, can: every, act: external::installed },
    Feature { name: "packets_go_through_two_routers_with_one_destination", terms: external::router, can: every, act: external::shared },
    Feature { name: "communities_are_carried_and_matched", terms: policy::communities, can: every, act: policy::carried_and_matched },
    Feature { name: "path_identifiers_go_both_ways", terms: paths::add_path, can: every, act: paths::identified },
    Feature { name: "too_many_routes_end_the_session", terms: paths::limited, can: every, act: paths::cut_off },
    Feature { name: "tshark_finds_nothing_wrong_in_what_the_agent_sends", terms: dissection::rich, can: every, act: dissection::nothing_wrong },
    Feature { name: "it_is_the_route_reflector_of_the_agent", terms: reflection::client, can: every, act: routes::exchanged },
    Feature { name: "it_is_a_client_of_the_agent_as_route_reflector", terms: reflection::reflector, can: every, act: reflection::reflected },
];
