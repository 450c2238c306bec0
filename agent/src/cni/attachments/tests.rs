//! The agent's side of the plugin: on addresses in memory, and on an allocator whose datastore is.

use std::net::Ipv4Addr;

use tokio::sync::Semaphore;

use super::*;
use crate::api::{Metadata, Namespace, Object, PodSpec, PodStatus, UnknownFields};
use crate::datastore::memory::{Memory, ip_pool};
use crate::status::DatastoreStatus;

/// Addresses in memory; an assignment waits until the test lets it go on.
pub(in crate::cni) struct Source {
    pub(in crate::cni) held: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    pub(in crate::cni) attributes: Mutex<Vec<BTreeMap<String, String>>>,
    first: IpAddr,
    gate: Semaphore,
}

impl Source {
    pub(in crate::cni) fn open(first: &str) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::default(),
            attributes: Mutex::default(),
            first: first.parse().unwrap(),
            gate: Semaphore::new(100),
        })
    }
}

#[async_trait]
impl AddressSource for Source {
    async fn assign(&self, wanted: Assignment) -> Result<Vec<IpAddr>, Problem> {
        self.gate.acquire().await.unwrap().forget();
        let mut held = self.held.lock().unwrap();
        let held = held.entry(wanted.handle).or_default();
        if held.is_empty() {
            self.attributes.lock().unwrap().push(wanted.attributes);
            held.push(self.first);
        }
        Ok(held.clone())
    }

    async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
        Ok(self.held.lock().unwrap().remove(handle).unwrap_or_default())
    }

    async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
        Ok(self.held.lock().unwrap().get(handle).cloned().unwrap_or_default())
    }

    async fn handles(&self, _: &[IpNet]) -> Result<BTreeSet<String>, Problem> {
        Ok(self.held.lock().unwrap().keys().cloned().collect())
    }
}

pub(in crate::cni) fn running() -> AgentStatus {
    AgentStatus {
        node: "a".into(),
        datastore: DatastoreStatus {
            in_sync: true,
            problem: None,
        },
        pod_mtu: 1480,
        ..AgentStatus::default()
    }
}

pub(in crate::cni) fn attachments(source: &Arc<Source>, status: AgentStatus) -> Attachments {
    let (_, status) = watch::channel(Arc::new(status));
    Attachments::new(Arc::clone(source) as _, Memory::of([]), status)
}

fn add_request() -> AddRequest {
    AddRequest {
        network: "k8s-pod-network".parse().unwrap(),
        container_id: "c1".parse().unwrap(),
        pod: Some(Pod {
            namespace: "default".into(),
            name: "web-0".into(),
        }),
    }
}

fn del_request() -> Container {
    Container {
        network: "k8s-pod-network".parse().unwrap(),
        container_id: "c1".parse().unwrap(),
        pod: None,
    }
}

#[tokio::test]
async fn an_address_is_assigned_under_calicos_handle_and_attributes_and_given_back() {
    let source = Source::open("10.65.42.1");
    let attachments = attachments(&source, running());
    let answer = attachments.add(add_request()).await.unwrap();
    assert_eq!(
        answer,
        AddAnswer {
            address: Ipv4Addr::new(10, 65, 42, 1),
            address_v6: None,
            mtu: 1480
        }
    );
    let noted = source.attributes.lock().unwrap()[0].clone();
    assert_eq!(noted["pod"], "web-0");
    assert_eq!(noted["namespace"], "default");
    assert_eq!(noted["node"], "a");
    assert!(noted["timestamp"].ends_with(" +0000 UTC"));
    assert!(source.held.lock().unwrap().contains_key("k8s-pod-network.c1"));
    let released = attachments.del(del_request()).await.unwrap().addresses;
    assert_eq!(released, [source.first]);
    assert_eq!(
        attachments.del(del_request()).await.unwrap().addresses,
        Vec::<IpAddr>::new()
    );
}

#[tokio::test]
async fn a_container_that_asks_again_gets_the_address_it_has() {
    let source = Source::open("10.65.42.1");
    let attachments = attachments(&source, running());
    let first = attachments.add(add_request()).await.unwrap();
    assert_eq!(attachments.add(add_request()).await.unwrap(), first);
    assert_eq!(source.attributes.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_agent_that_starts_asks_for_patience() {
    let source = Source::open("10.65.42.1");
    let problem = attachments(&source, AgentStatus::default())
        .add(add_request())
        .await
        .unwrap_err();
    assert!(problem.retry, "{problem:?}");
    let problem = attachments(
        &source,
        AgentStatus {
            pod_mtu: 0,
            ..running()
        },
    )
    .add(add_request())
    .await
    .unwrap_err();
    assert!(problem.retry && problem.reason.contains("MTU"), "{problem:?}");
}

#[tokio::test]
async fn an_address_of_the_other_family_is_given_back() {
    let source = Source::open("fd00::1");
    let problem = attachments(&source, running())
        .add(add_request())
        .await
        .unwrap_err();
    assert!(
        problem.reason.contains("fd00::1") && !problem.retry,
        "{problem:?}"
    );
    assert!(source.held.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_del_does_not_overtake_an_add_of_the_same_container() {
    let source = Source::open("10.65.42.1");
    source.gate.forget_permits(100);
    let attachments = Arc::new(attachments(&source, running()));
    let mut add = Box::pin(attachments.add(add_request()));
    assert!(
        futures_util::poll!(&mut add).is_pending(),
        "the source does not answer yet"
    );
    let mut del = Box::pin(attachments.del(del_request()));
    assert!(
        futures_util::poll!(&mut del).is_pending(),
        "it waits for its turn"
    );
    let other = Container {
        container_id: "c2".parse().unwrap(),
        ..del_request()
    };
    attachments.del(other).await.unwrap();
    source.gate.add_permits(1);
    add.await.unwrap();
    assert_eq!(del.await.unwrap().addresses, [source.first]);
}

#[tokio::test]
async fn check_names_the_addresses_that_there_are() {
    let source = Source::open("10.65.42.1");
    let attachments = attachments(&source, running());
    let request = CheckRequest {
        network: "k8s-pod-network".parse().unwrap(),
        container_id: "c1".parse().unwrap(),
        address: Ipv4Addr::new(10, 65, 42, 1),
        address_v6: None,
    };
    let problem = attachments.check(request.clone()).await.unwrap_err();
    assert!(problem.reason.contains("k8s-pod-network.c1"), "{problem:?}");
    attachments.add(add_request()).await.unwrap();
    attachments.check(request).await.unwrap();
}

#[tokio::test]
async fn where_the_node_is_known_by_ipv6_and_a_pool_has_it_pods_get_an_address_of_each_family() {
    let store = Memory::of(
        [
            ip_pool("four", "10.1.0.0/24", 26),
            ip_pool("six", "fd00:65::/64", 122),
        ]
        .map(Object::IpPool),
    );
    for (pods_get_ipv6, container) in [(false, "c1"), (true, "c2")] {
        let status = AgentStatus {
            pods_get_ipv6,
            ..running()
        };
        let (_, status) = watch::channel(Arc::new(status));
        let allocator = Allocator::new(store.clone(), "n1".to_owned());
        let attachments = Attachments::new(Arc::new(allocator), store.clone(), status);
        let request = AddRequest {
            container_id: container.parse().unwrap(),
            pod: None,
            ..add_request()
        };
        let answer = attachments.add(request.clone()).await.unwrap();
        assert_eq!(answer.address_v6.is_some(), pods_get_ipv6, "{answer:?}");
        assert_eq!(attachments.add(request).await.unwrap(), answer, "asked again");
        let check = |address_v6| CheckRequest {
            network: "k8s-pod-network".parse().unwrap(),
            container_id: container.parse().unwrap(),
            address: answer.address,
            address_v6,
        };
        attachments.check(check(answer.address_v6)).await.unwrap();
        let another = check(Some("fd00:65::ffff".parse().unwrap()));
        let problem = attachments.check(another).await.unwrap_err();
        assert!(
            problem.reason.contains("fd00:65::ffff is not one of them"),
            "{problem:?}"
        );
    }
}

#[test]
fn the_time_is_written_as_go_prints_it() {
    let now: Timestamp = "2026-11-21T06:57:01.0305Z".parse().unwrap();
    let request = AddRequest {
        pod: None,
        ..add_request()
    };
    let attributes = attributes(&request, "a", now);
    assert_eq!(attributes["timestamp"], "2026-11-21 06:57:01.0305 +0000 UTC");
    assert!(!attributes.contains_key("pod"));
}

#[tokio::test]
async fn a_del_gives_back_what_calico_allocated_for_the_workload_too() {
    let source = Source::open("10.65.42.1");
    let attachments = attachments(&source, running());
    attachments.add(add_request()).await.unwrap();
    let old: IpAddr = "10.65.42.9".parse().unwrap();
    let handles = |handle: &str| (handle.to_owned(), vec![old]);
    let others = [handles("default.web-0"), handles("default.web-1")];
    source.held.lock().unwrap().extend(others);
    let del = Container {
        pod: add_request().pod,
        ..del_request()
    };
    let released = attachments.del(del).await.unwrap().addresses;
    assert_eq!(released, [source.first, old]);
    let left: Vec<String> = source.held.lock().unwrap().keys().cloned().collect();
    assert_eq!(left, ["default.web-1"]);
}

const ADDRESSES: &str = "cni.projectcalico.org/ipAddrs";
const POOLS: &str = "cni.projectcalico.org/ipv4pools";

/// The pool `tenant` for the namespaces of tenant a, and `z-rest` for all others; namespace `a` of it, and `default`.
fn annotated() -> (Arc<Memory>, Attachments) {
    let mut tenant = ip_pool("tenant", "10.1.0.0/24", 26);
    tenant
        .spec
        .unknown
        .insert("namespaceSelector".to_owned(), "tenant == 'a'".into());
    let mut rest = ip_pool("z-rest", "10.2.0.0/24", 26);
    rest.spec
        .unknown
        .insert("namespaceSelector".to_owned(), "!has(tenant)".into());
    let namespace = |name: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Object::Namespace(Namespace {
            metadata: Metadata {
                labels: labels.collect(),
                ..Metadata::named(name)
            },
            unknown: UnknownFields::new(),
        })
    };
    let store = Memory::of([
        Object::IpPool(tenant),
        Object::IpPool(rest),
        namespace("a", &[("tenant", "a")]),
        namespace("default", &[]),
    ]);
    let (_, status) = watch::channel(Arc::new(running()));
    let allocator = Allocator::new(store.clone(), "n1".to_owned());
    let attachments = Attachments::new(Arc::new(allocator), store.clone(), status);
    (store, attachments)
}

fn pod(store: &Memory, namespace: &str, name: &str, annotations: &[(&str, &str)]) -> AddRequest {
    let annotations = annotations
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let object = Object::Pod(crate::api::Pod {
        metadata: Metadata {
            namespace: Some(namespace.to_owned()),
            annotations: annotations.collect(),
            ..Metadata::named(name)
        },
        spec: PodSpec::default(),
        status: PodStatus::default(),
        unknown: UnknownFields::new(),
    });
    store.set(|state| state.store(object));
    AddRequest {
        container_id: format!("c-{name}").parse().unwrap(),
        pod: Some(Pod {
            namespace: namespace.into(),
            name: name.into(),
        }),
        ..add_request()
    }
}

async fn given(attachments: &Attachments, request: AddRequest) -> String {
    attachments.add(request).await.unwrap().address.to_string()
}

#[tokio::test]
async fn pools_are_chosen_by_the_labels_of_the_namespace_and_by_annotations() {
    let (store, attachments) = annotated();
    let plain = pod(&store, "default", "plain", &[]);
    assert!(given(&attachments, plain).await.starts_with("10.2.0."));
    let tenants = pod(&store, "a", "tenants", &[]);
    assert!(given(&attachments, tenants).await.starts_with("10.1.0."));
    // By name a pool is used whatever its selectors say, as in Calico.
    let named = pod(&store, "default", "named", &[(POOLS, r#"["tenant"]"#)]);
    assert!(given(&attachments, named).await.starts_with("10.1.0."));
    let by_range = pod(&store, "a", "by-range", &[(POOLS, r#"["10.2.0.0/24"]"#)]);
    assert!(given(&attachments, by_range).await.starts_with("10.2.0."));
    // And the namespace speaks for all its pods.
    store.set(|state| {
        let key = Key::new(Kind::Namespace, "a");
        let mut namespace = state.objects[&key].clone();
        let annotations = &mut namespace.metadata_mut().annotations;
        annotations.insert(POOLS.to_owned(), r#"["z-rest"]"#.to_owned());
        state.store(namespace);
    });
    let told = pod(&store, "a", "told", &[]);
    assert!(given(&attachments, told).await.starts_with("10.2.0."));
}

#[tokio::test]
async fn a_pod_gets_the_address_that_it_names_and_again_when_it_asks_again() {
    let (store, attachments) = annotated();
    let named = pod(&store, "default", "named", &[(ADDRESSES, r#"["10.2.0.77"]"#)]);
    assert_eq!(given(&attachments, named.clone()).await, "10.2.0.77");
    assert_eq!(given(&attachments, named).await, "10.2.0.77");
    let counts = store.set(|state| {
        state
            .objects
            .keys()
            .filter(|k| k.kind == Kind::IpamHandle)
            .count()
    });
    assert_eq!(counts, 1);
}

#[tokio::test]
async fn an_address_that_is_not_to_be_had_is_refused_with_the_reason_and_leaves_nothing() {
    let (store, mut attachments) = annotated();
    let (tell, mut told) = mpsc::channel(16);
    attachments = attachments.telling(tell);
    let first = pod(&store, "default", "first", &[(ADDRESSES, r#"["10.2.0.77"]"#)]);
    given(&attachments, first).await;
    let handles = store.count(Kind::IpamHandle);
    let no_ipam = "cni.projectcalico.org/ipAddrsNoIpam";
    #[rustfmt::skip]
    let cases: [(&str, &str, &[&str]); 4] = [
        (ADDRESSES, r#"["10.2.0.77"]"#, &["pod default/second", "10.2.0.77", "pod default/first (handle k8s-pod-network.c-first) on node n1 has it"]),
        (ADDRESSES, r#"["192.0.2.1"]"#, &["192.0.2.1", "tenant (10.1.0.0/24", "z-rest (10.2.0.0/24"]),
        (no_ipam, r#"["192.0.2.1"]"#, &["ipAddrsNoIpam is not supported"]),
        (POOLS, r#"["none"]"#, &["\"none\"", "tenant (10.1.0.0/24), z-rest (10.2.0.0/24)"]),
    ];
    for (annotation, value, words) in cases {
        let second = pod(&store, "default", "second", &[(annotation, value)]);
        let problem = attachments.add(second).await.unwrap_err();
        assert!(!problem.retry, "{problem:?}");
        for word in words {
            assert!(
                problem.reason.contains(word),
                "{:?} does not say {word:?}",
                problem.reason
            );
        }
        // People look for it in the events of the node.
        assert_eq!(told.try_recv().unwrap(), ("AddressRefused", problem.reason));
        assert_eq!(store.count(Kind::IpamHandle), handles);
    }
}
