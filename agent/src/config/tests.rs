//! Files and environments, and what is made of them.

use super::*;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let environment = environment
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Config::parse(text, Path::new("agent.yaml"), &environment).map_err(|e| e.to_string())
}

#[test]
fn an_empty_file_and_empty_sections_mean_the_defaults() {
    assert_eq!(parse("", &[]), Ok(Config::default()));
    assert_eq!(parse("bgp:\nnode: {address: }\n", &[]), Ok(Config::default()));
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = parse("bgp: {listenPort: 1179}", &[("CULVERT_BGP_LISTEN_PORT", "2179")]).unwrap();
    assert_eq!(config.bgp.listen_port.map(Ranged::get), Some(2179));
    let config = parse(
        "",
        &[("CULVERT_NODE_NAME", "007"), ("CULVERT_SERVICE_HOST", "10.0.0.1")],
    )
    .unwrap();
    assert_eq!(config.node_name.as_str(), "007");
}

#[test]
fn a_wrong_switch_or_table_is_told_what_is_allowed() {
    for (text, words) in [
        ("sourcePin: maybe", ["routes.sourcePin", "maybe", "on or off"]),
        ("sourcePin: 1", ["routes.sourcePin", "1", "on or off"]),
        ("pinTable: 254", ["routes.pinTable", "254", "256 to 4294967295"]),
    ] {
        let error = parse(&format!("routes: {{{text}}}"), &[]).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn a_wrong_number_of_paths_prefixes_or_seconds_is_told_what_is_allowed() {
    for (text, words) in [
        (
            "addPath: some",
            &["bgp.addPath", "some", "off", "receive", "send", "both"][..],
        ),
        ("maxPrefixes: 0", &["bgp.maxPrefixes", "0", "1 to 10000000"]),
        // RFC 9494 §3.1: three octets.
        (
            "longLivedStaleTime: 16777216",
            &["bgp.longLivedStaleTime", "16777216", "0 to 16777215"],
        ),
    ] {
        let error = parse(&format!("bgp: {{{text}}}"), &[]).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn a_switch_is_read_in_each_way_that_yaml_and_charts_write_it() {
    for (text, on) in [("on", true), ("off", false), ("true", true), ("false", false)] {
        let config = parse(&format!("routes: {{sourcePin: {text}}}"), &[]).unwrap();
        assert_eq!(config.routes.source_pin, Switch(on), "{text}");
        let config = parse("", &[("CULVERT_ROUTES_SOURCE_PIN", text)]).unwrap();
        assert_eq!(config.routes.source_pin, Switch(on), "{text}");
    }
}

/// The file, the environment, and the words of the error.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn a_wrong_field_type_or_value_is_named_with_what_is_allowed() {
    let cases: &[Case<'_>] = &[
        ("bpg: {}", &[], &["agent.yaml", "bpg", "bgp"]),
        ("bgp: {port: 179}", &[], &["bgp", "port", "listenPort"]),
        (
            "bgp: {listenPort: 70000}",
            &[],
            &["bgp.listenPort", "70000", "1 to 65535"],
        ),
        (
            "bgp: {listenPort: many}",
            &[],
            &["bgp.listenPort", "many", "1 to 65535"],
        ),
        (
            "bgp: {listenPort: -1}",
            &[],
            &["bgp.listenPort", "-1", "1 to 65535"],
        ),
        (
            "bgp: {holdTime: 2}",
            &[],
            &["bgp.holdTime", "2", "0 or a whole number from 3 to 65535"],
        ),
        (
            "routes: {protocol: 3}",
            &[],
            &["routes.protocol", "3", "5 to 255"],
        ),
        (
            "filter: {unknownTunnelPeers: maybe}",
            &[],
            &["filter.unknownTunnelPeers", "maybe", "drop", "off"],
        ),
        ("log: {format: xml}", &[], &["log.format", "xml", "human", "json"]),
        ("mode: passive", &[], &["mode", "passive", "active", "shadow"]),
        ("log: {level: loud}", &[], &["log.level", "loud", "debug"]),
        ("nodeName: Node_1", &[], &["nodeName", "Node_1", "lower case"]),
        ("http: {listen: here}", &[], &["http.listen", "here"]),
        (
            "",
            &[("CULVERT_BGP_HOLD_TIME", "1")],
            &["CULVERT_BGP_HOLD_TIME", "bgp.holdTime", "1"],
        ),
        ("bgp: 3", &[], &["agent.yaml", "bgp", "3"]),
        ("- a", &[], &["agent.yaml"]),
        ("a: [", &[], &["agent.yaml", "line"]),
    ];
    for (text, environment, words) in cases {
        let error = parse(text, environment).expect_err(text);
        for word in *words {
            assert!(error.contains(word), "{text}: {error:?} does not say {word:?}");
        }
    }
}

#[test]
fn an_address_is_of_the_family_that_the_field_is_for_and_one_by_which_others_can_reach_a_node() {
    for (field, text, allowed) in [
        ("address", "fe80::1", "an IPv4 address"),
        ("address", "172.18.0.11/33", "an IPv4 address"),
        ("addressV6", "172.18.0.11", "a global IPv6 address"),
        ("addressV6", "2001:db8::11/129", "a global IPv6 address"),
        ("addressV6", "fe80::1/64", "a global IPv6 address"),
        ("addressV6", "::1", "a global IPv6 address"),
    ] {
        let error = parse(&format!("node: {{{field}: '{text}'}}"), &[]).unwrap_err();
        let words = [&format!("node.{field}"), text, allowed];
        assert!(words.iter().all(|word| error.contains(*word)), "{error}");
    }
    let given = parse("", &[("CULVERT_NODE_ADDRESS_V6", "2001:db8::11/64")]).unwrap();
    let given = given.node.address_v6.map(|given| given.address.to_string());
    assert_eq!(given.as_deref(), Some("2001:db8::11"));
}

#[test]
fn the_example_names_every_field_and_says_the_defaults() {
    let text = include_str!("../../../examples/agent.yaml");
    assert_eq!(parse(text, &[]), Ok(Config::default()));
    // With the comment's marks taken away every field is there, and allowed.
    let uncommented: String = text
        .lines()
        .skip_while(|line| !line.is_empty())
        .map(|line| line.replacen("# ", "", usize::from(line.trim_start().starts_with("# "))) + "\n")
        .collect();
    let whole: Value = serde_yaml::from_str(&uncommented).unwrap();
    for variable in VARIABLES {
        let found = variable
            .path
            .iter()
            .try_fold(&whole, |value, part| value.get(*part));
        assert!(found.is_some(), "{} is missing", variable.path.join("."));
    }
    assert!(parse(&uncommented, &[]).is_ok());
}

#[test]
fn every_field_of_the_configuration_has_a_variable() {
    // The field names come from the deserializer's own answer to a field that does not exist.
    fn fields(text: &str) -> Vec<String> {
        let error = parse(text, &[]).expect_err("no such field");
        let list = error.split("expected ").nth(1).unwrap_or_default();
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }
    fn collect(path: &str, paths: &mut Vec<String>) {
        let nested = path.rsplit('.').fold("nope: 1".to_owned(), |inside, part| {
            format!("{part}: {{{inside}}}")
        });
        match parse(&nested, &[]) {
            Err(error) if error.contains("unknown field") => {
                for field in fields(&nested) {
                    collect(&format!("{path}.{field}"), paths);
                }
            }
            _ => paths.push(path.to_owned()),
        }
    }
    let mut paths: Vec<String> = Vec::new();
    for top in fields("nope: 1") {
        collect(&top, &mut paths);
    }
    let mut variables: Vec<String> = VARIABLES.iter().map(|v| v.path.join(".")).collect();
    paths.sort();
    variables.sort();
    assert_eq!(paths, variables);
}

#[test]
fn the_api_server_takes_the_place_of_the_folder() {
    let location =
        |text: &str, environment: &[(&str, &str)]| parse(text, environment).unwrap().datastore.location();
    let folder = Location::Directory("/var/lib/culvert/datastore".into());
    assert_eq!(location("", &[]), folder);
    assert_eq!(location("datastore: {kubernetes: }", &[]), folder);
    for text in [
        "datastore: {kubernetes: {}}",
        "datastore: {kubernetes: {kubeconfig: \"\"}}",
    ] {
        assert_eq!(
            location(text, &[]),
            Location::Kubernetes(Access::InCluster),
            "{text}"
        );
    }
    let variable = "CULVERT_DATASTORE_KUBERNETES_KUBECONFIG";
    let file = Location::Kubernetes(Access::Kubeconfig("/etc/k".into()));
    assert_eq!(location("", &[(variable, "/etc/k")]), file);
    assert_eq!(
        location("", &[(variable, "")]),
        Location::Kubernetes(Access::InCluster)
    );
}

#[test]
fn an_address_of_ipv6_may_stand_before_its_port_without_brackets() {
    for (text, listen) in [
        ("10.0.0.1:9179", "10.0.0.1:9179"),
        ("[fd00::1]:9179", "[fd00::1]:9179"),
        ("fd00::1:9179", "[fd00::1]:9179"),
    ] {
        let config = parse("", &[("CULVERT_HTTP_LISTEN", text)]).unwrap();
        assert_eq!(config.http.listen, listen.parse().unwrap(), "{text}");
    }
}

#[test]
fn what_is_told_of_a_configuration_is_one_that_says_the_same() {
    let whole = include_str!("../../../examples/agent.yaml");
    for text in [
        "",
        whole,
        "{nodeName: n1, node: {address: 172.18.0.11/24, addressV6: '2001:db8::11'}, bgp: {holdTime: 0, addPath: both}, \
          routes: {sourcePin: off}, datastore: {kubernetes: {}}, log: {level: 'info,culvert_agent::speaker=debug'}, \
          tunnel: {mtu: 1400}, garbageCollection: {mode: dryRun}, filter: {unknownTunnelPeers: off}, mode: shadow}",
    ] {
        let config = parse(text, &[]).unwrap();
        let told = serde_json::to_string_pretty(&config).unwrap();
        assert_eq!(parse(&told, &[]), Ok(config), "{told}");
        // It is told to whoever asks: none of its fields may hold a secret.
        assert_eq!(crate::diags::scrubbed(&told), told);
    }
}
