//! `culvert ipam` and `culvert get` on a datastore in a folder, as an operator calls them.

#![allow(clippy::unwrap_used, reason = "a test ends where it is wrong")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A pool with one block of node `a`: two addresses of its own pods, one that node `b` has borrowed, and one that rests.
const CLUSTER: &str = "
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.65.0.0/24, blockSize: 29, ipipMode: Always}
---
apiVersion: crd.projectcalico.org/v1
kind: IPReservation
metadata: {name: kept-free}
spec: {reservedCIDRs: [10.65.0.4/31]}
---
apiVersion: v1
kind: Node
metadata: {name: a}
---
apiVersion: v1
kind: Node
metadata: {name: b}
---
apiVersion: crd.projectcalico.org/v1
kind: BlockAffinity
metadata: {name: a-10-65-0-0-29}
spec: {cidr: 10.65.0.0/29, node: a, state: confirmed, type: host, deleted: \"false\"}
---
apiVersion: crd.projectcalico.org/v1
kind: IPAMBlock
metadata: {name: 10-65-0-0-29}
spec:
  cidr: 10.65.0.0/29
  affinity: host:a
  allocations: [0, 0, 1, 2, null, null, null, null]
  unallocated: [4, 5, 6, 7]
  attributes:
  - handle_id: k8s-pod-network.one
    secondary: {node: a, namespace: shop, pod: web}
  - handle_id: k8s-pod-network.two
    secondary: {node: b, namespace: shop, pod: db}
  - handle_id: null
    releasedAt: \"2026-11-21T09:00:00Z\"
  sequenceNumber: 1790000000000000007
  strictAffinity: false
  deleted: false
---
apiVersion: crd.projectcalico.org/v1
kind: IPAMHandle
metadata: {name: k8s-pod-network.one}
spec: {handleID: k8s-pod-network.one, block: {10.65.0.0/29: 2}, deleted: false}
---
apiVersion: crd.projectcalico.org/v1
kind: IPAMHandle
metadata: {name: k8s-pod-network.two}
spec: {handleID: k8s-pod-network.two, block: {10.65.0.0/29: 1}, deleted: false}
";

struct Store(tempfile::TempDir);

impl Store {
    fn with(manifests: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cluster.yaml"), manifests).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
        command
            .args(words.split_whitespace())
            .env("CULVERT_DATASTORE_DIRECTORY", self.path());
        command.output().unwrap()
    }

    /// What a command prints that must succeed.
    fn ok(&self, words: &str) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "culvert {words}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command says that finds something wrong: what it prints, and its last word.
    fn wrong(&self, words: &str) -> (String, String) {
        self.ended(1, words)
    }

    /// What a command says that cannot do what it is told: what it prints, and its error.
    fn refused(&self, words: &str) -> (String, String) {
        self.ended(2, words)
    }

    fn ended(&self, code: i32, words: &str) -> (String, String) {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "culvert {words}");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    }
}

#[test]
fn the_use_of_pools_stands_in_the_table_of_calicoctl() {
    let store = Store::with(CLUSTER);
    // Of 256 addresses 3 are somebody's and 1 rests; 10.65.0.4 and .5 are reserved.
    let expected = "\
+----------+--------------+-----------+------------+--------------+-----------+-------------+
| GROUPING | CIDR         | IPS TOTAL | IPS IN USE | IPS RESERVED |  IPS FREE | IPS COOLING |
+----------+--------------+-----------+------------+--------------+-----------+-------------+
| IP Pool  | 10.65.0.0/24 |       256 |     4 (2%) |       2 (1%) | 250 (98%) |      1 (0%) |
| Block    | 10.65.0.0/29 |         8 |    4 (50%) |      2 (25%) |   2 (25%) |     1 (13%) |
+----------+--------------+-----------+------------+--------------+-----------+-------------+
";
    assert_eq!(store.ok("ipam show --show-blocks"), expected);
    let without: String = expected
        .lines()
        .filter(|l| !l.starts_with("| Block"))
        .map(|l| format!("{l}\n"))
        .collect();
    assert_eq!(store.ok("ipam show"), without);
}

#[test]
fn an_address_is_shown_with_its_holder() {
    let store = Store::with(CLUSTER);
    let expected = "\
IP 10.65.0.2 is in use
Handle ID: k8s-pod-network.two
Active Owner Attributes:
  namespace: shop
  node: b
  pod: db
";
    assert_eq!(store.ok("ipam show --ip=10.65.0.2"), expected);
    for free in ["10.65.0.3", "10.65.0.6", "192.0.2.1"] {
        assert_eq!(
            store.ok(&format!("ipam show --ip={free}")),
            format!("{free} is not assigned\n")
        );
    }
}

#[test]
fn borrowed_addresses_and_settings_are_shown() {
    let store = Store::with(CLUSTER);
    let expected = "\
+-----------+----------------+--------------+-------------+------+--------------+
| IP        | BORROWING-NODE | BLOCK        | BLOCK OWNER | TYPE | ALLOCATED-TO |
+-----------+----------------+--------------+-------------+------+--------------+
| 10.65.0.2 | b              | 10.65.0.0/29 | a           | pod  | shop/db      |
+-----------+----------------+--------------+-------------+------+--------------+
";
    assert_eq!(store.ok("ipam show --show-borrowed"), expected);
    let settings = store.ok("ipam show --show-configuration");
    assert!(settings.contains("| StrictAffinity     | false |"), "{settings}");
}

#[test]
fn a_check_names_what_is_wrong_and_the_fix_mends_it() {
    let store = Store::with(CLUSTER);
    let healthy = store.ok("ipam check");
    assert!(
        healthy.ends_with("Check complete; found 0 problems.\n"),
        "{healthy}"
    );
    for line in [
        "Checking IPAM for inconsistencies...",
        "Found 1 IPAM blocks.",
        " IPAM block 10.65.0.0/29 affinity=host:a:",
        "IPAM blocks record 3 allocations.",
        "Found 1 active IP pools.",
        "  a has 2 allocations",
        "Found 0 handles with no matching IPs.",
    ] {
        assert!(healthy.lines().any(|l| l == line), "no {line:?} in {healthy}");
    }

    let broken = CLUSTER.replace("10.65.0.0/29: 1}", "10.65.0.0/29: 5}");
    let store = Store::with(&broken);
    let (report, error) = store.wrong("ipam check --show-problem-ips");
    assert!(
        report.contains("handle k8s-pod-network.two counts 5 addresses in block 10.65.0.0/29, and has 1"),
        "{report}"
    );
    assert!(error.contains("1 problems") && error.contains("--fix"), "{error}");
    let before = fs::read(store.path().join("cluster.yaml")).unwrap();
    let (shown, _) = store.wrong("ipam check --fix");
    assert!(shown.contains("Nothing was changed; add --yes"), "{shown}");
    assert_eq!(fs::read(store.path().join("cluster.yaml")).unwrap(), before);
    let fixed = store.ok("ipam check --fix --yes");
    assert!(fixed.ends_with("Mended 1 problems.\n"), "{fixed}");
    store.ok("ipam check");
}

#[test]
fn addresses_are_released_by_address_and_by_handle() {
    let store = Store::with(CLUSTER);
    let text = store.ok("ipam release --ip 10.65.0.2 --ip 10.65.0.6");
    assert_eq!(
        text,
        "Successfully released IP address 10.65.0.2\nIP address 10.65.0.6 is not assigned\n"
    );
    assert_eq!(
        store.ok("ipam show --ip=10.65.0.2"),
        "10.65.0.2 is not assigned\n"
    );
    let text = store.ok("ipam release --handle k8s-pod-network.one");
    assert_eq!(text, "Released 2 IPs of handle k8s-pod-network.one.\n");
    store.ok("ipam check");
    assert!(!store.run("ipam release").status.success());
}

#[test]
fn addresses_are_released_by_the_pod_that_they_were_taken_for() {
    let store = Store::with(CLUSTER);
    let text = store.ok("ipam release --pod shop/web");
    assert_eq!(text, "Released 2 IPs of pod shop/web: 10.65.0.0, 10.65.0.1.\n");
    assert_eq!(
        store.ok("ipam release --pod shop/web"),
        "Pod shop/web has no IPs.\n"
    );
    assert!(store.ok("ipam show --ip 10.65.0.2").contains("is in use"));
    let refused = store.run("ipam release --pod web");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && error.contains("namespace and its name"),
        "{error}"
    );
}

#[test]
fn a_report_releases_only_what_nobody_has_taken_anew() {
    let store = Store::with(CLUSTER);
    let report = store.path().join("report.json");
    let leaked = r#"{"leaked": [
        {"address": "10.65.0.0", "handle": "k8s-pod-network.one", "sequenceNumber": 3},
        {"address": "10.65.0.2", "handle": "k8s-pod-network.two", "sequenceNumber": 0}]}"#;
    fs::write(&report, leaked).unwrap();
    let text = store.ok(&format!("ipam release --from-report {}", report.display()));
    assert!(
        text.starts_with("Releasing 2 old IPs...\nnot released: 10.65.0.0: "),
        "{text}"
    );
    assert!(text.ends_with("Released 1 IPs successfully\n"), "{text}");
    fs::write(&report, "{}").unwrap();
    let (_, error) = store.refused(&format!("ipam release --from-report {}", report.display()));
    assert!(error.contains("is no report of"), "{error}");
}

#[test]
fn settings_that_contradict_each_other_are_refused_as_a_whole() {
    let store = Store::with(CLUSTER);
    let (_, error) = store.refused("ipam configure --max-blocks-per-host=4 --ip-cooldown-seconds=30");
    assert!(error.contains("nothing was changed"), "{error}");
    assert!(store.ok("get ipamconfigs").lines().count() == 1);
    let text =
        store.ok("ipam configure --strictaffinity=true --max-blocks-per-host=4 --ip-cooldown-seconds=30");
    assert_eq!(
        text,
        "Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 4\nSuccessfully set \
         IPCooldownSeconds to: 30\n"
    );
    let settings = store.ok("ipam show --show-configuration");
    assert!(settings.contains("| MaxBlocksPerHost   | 4     |"), "{settings}");
    assert_eq!(
        store
            .run("ipam configure --ip-cooldown-seconds=1201")
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn a_pool_is_split_and_its_addresses_stay() {
    let store = Store::with(CLUSTER);
    let text = store.ok("ipam split 2 --name pods");
    assert!(text.contains("split-pods-0 10.65.0.0/25"), "{text}");
    let pools = store.ok("get ippools");
    assert_eq!(
        pools,
        "NAME           CIDR             SELECTOR\nsplit-pods-0   10.65.0.0/25     all()\nsplit-pods-1   10.65.0.128/25   all()\n"
    );
    assert!(
        store
            .ok("ipam show --ip=10.65.0.0")
            .starts_with("IP 10.65.0.0 is in use")
    );
    store.ok("ipam check");
    let (_, error) = store.refused("ipam split 2 --cidr 10.99.0.0/16");
    assert!(error.contains("10.99.0.0/16"), "{error}");
}

#[test]
fn a_datastore_that_is_not_there_is_named_and_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere");
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command
        .args(["ipam", "show"])
        .env("CULVERT_DATASTORE_DIRECTORY", &missing);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("nowhere") && error.contains("--config"),
        "{error}"
    );
    assert!(!missing.exists());
}
