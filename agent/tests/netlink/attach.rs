use std::fs;
use std::path::PathBuf;

use culvert_agent::dataplane::{HOST_MAC, Namespace, PodAttached, PodLink, attach_pod, detach_pod};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::netns::{in_namespace, ip};

/// A pod's network namespace, alive as long as this is.
struct Pod {
    release: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    path: PathBuf,
}

impl Pod {
    fn new() -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            let _ = released.recv();
        });
        let path = format!(
            "/proc/{}/task/{}/ns/net",
            std::process::id(),
            told.recv().unwrap()
        )
        .into();
        Self {
            release: Some(release),
            thread: Some(thread),
            path,
        }
    }

    /// Runs `ip` in the pod.
    fn ip(&self, arguments: &str) -> String {
        let netns = Namespace::open(&self.path).unwrap();
        netns.run(|| Ok(ip(arguments))).unwrap()
    }

    fn link(&self, host_name: &str, address: [u8; 4]) -> PodLink {
        PodLink {
            host_name: host_name.into(),
            pod_netns: self.path.clone(),
            pod_name: "eth0".into(),
            address: address.into(),
            address_v6: None,
            mtu: 1420,
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.release.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn switch(link: &str, key: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/{key}"))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn a_pod_gets_its_address_and_its_way_out_and_the_host_its_way_in() {
    in_namespace(async || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let pod = Pod::new();
        let wanted = pod.link("cali19f6ea143e3", [10, 65, 42, 1]);
        // Twice: the second time finds what the first has left.
        let first = attach_pod(&wanted).unwrap();
        let attached = attach_pod(&wanted).unwrap();
        assert_eq!(attached.host_mac, HOST_MAC);
        assert_ne!(attached.pod_mac, first.pod_mac, "a new pair");

        assert_eq!(
            ip("route show").trim(),
            "10.65.42.1 dev cali19f6ea143e3 scope link"
        );
        let host_end = ip("-o link show cali19f6ea143e3");
        assert!(
            host_end.contains("ee:ee:ee:ee:ee:ee")
                && host_end.contains("mtu 1420")
                && host_end.contains("state UP"),
            "{host_end}"
        );
        assert_eq!(switch("cali19f6ea143e3", "proxy_arp"), "1");
        assert_eq!(switch("cali19f6ea143e3", "rp_filter"), "1");
        assert_eq!(switch("cali19f6ea143e3", "forwarding"), "1");
        assert_eq!(
            fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
                .unwrap()
                .trim(),
            "1"
        );

        assert_inside(&pod, &attached);
        detach_pod("cali19f6ea143e3", Some(&pod.path), "eth0").unwrap();
        assert_eq!(ip("route show"), "");
        assert!(!ip("-o link show").contains("cali"));
        assert!(!pod.ip("-o link show").contains("eth0"));
        // Again, and after the pod itself is gone.
        detach_pod("cali19f6ea143e3", Some(&pod.path), "eth0").unwrap();
        detach_pod(
            "cali19f6ea143e3",
            Some("/run/netns/there-is-none".as_ref()),
            "eth0",
        )
        .unwrap();
        detach_pod("cali19f6ea143e3", None, "eth0").unwrap();
    });
}

/// The pod's side of `10.65.42.1`.
fn assert_inside(pod: &Pod, attached: &PodAttached) {
    let routes: Vec<String> = pod
        .ip("route show")
        .lines()
        .map(|line| line.trim().to_owned())
        .collect();
    assert_eq!(
        routes,
        [
            "default via 169.254.1.1 dev eth0",
            "169.254.1.1 dev eth0 scope link"
        ]
    );
    let neighbours = pod.ip("neigh show nud permanent");
    assert_eq!(
        neighbours.trim(),
        "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"
    );
    let end = pod.ip("-o addr show eth0");
    assert!(end.contains("inet 10.65.42.1/32"), "{end}");
    let end = pod.ip("-o link show eth0");
    assert!(
        end.contains(&attached.pod_mac.to_string()) && end.contains("mtu 1420"),
        "{end}"
    );
}

#[test]
fn a_pod_of_both_families_has_two_ways_out_and_is_reached_by_ipv6_at_once() {
    in_namespace(async || {
        // As runtimes leave it that know nothing of IPv6.
        let off = || fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        off().unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        let (one, two) = (Pod::new(), Pod::new());
        for (pod, host, v4, v6) in [(&one, "cali1", 1, "fd00:65::1"), (&two, "cali2", 2, "fd00:65::2")] {
            Namespace::open(&pod.path).unwrap().run(off).unwrap();
            let wanted = PodLink {
                address_v6: Some(v6.parse().unwrap()),
                ..pod.link(host, [10, 65, 42, v4])
            };
            // Twice: the second time finds what the first has left.
            attach_pod(&wanted).unwrap();
            attach_pod(&wanted).unwrap();
        }
        let routes = ip("-6 route show fd00:65::1");
        assert!(routes.starts_with("fd00:65::1 dev cali1"), "{routes}");
        let routes = one.ip("-6 route show default");
        assert!(
            routes.starts_with("default via fe80::ecee:eeff:feee:eeee dev eth0"),
            "{routes}"
        );
        let (from, to) = (
            Namespace::open(&one.path).unwrap(),
            Namespace::open(&two.path).unwrap(),
        );
        // Nothing is tentative: binding works at once, and the first packet arrives.
        let server = to.run(|| std::net::UdpSocket::bind("[fd00:65::2]:4000")).unwrap();
        let limit = Some(std::time::Duration::from_secs(30));
        server.set_read_timeout(limit).unwrap();
        let client = from.run(|| std::net::UdpSocket::bind("[fd00:65::1]:0")).unwrap();
        client
            .send_to(b"by the other family", "[fd00:65::2]:4000")
            .unwrap();
        let mut buffer = [0; 64];
        let (length, source) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"by the other family");
        assert_eq!(source, client.local_addr().unwrap());
        assert!(ip("route show").contains("10.65.42.1 dev cali1"));
    });
}

#[test]
fn two_pods_talk_through_the_host_that_has_no_default_route() {
    in_namespace(async || {
        let (one, two) = (Pod::new(), Pod::new());
        attach_pod(&one.link("cali1", [10, 65, 42, 1])).unwrap();
        attach_pod(&two.link("cali2", [10, 65, 42, 2])).unwrap();
        let (from, to) = (
            Namespace::open(&one.path).unwrap(),
            Namespace::open(&two.path).unwrap(),
        );
        let server = to.run(|| std::net::UdpSocket::bind("10.65.42.2:4000")).unwrap();
        server
            .set_read_timeout(Some(std::time::Duration::from_secs(30)))
            .unwrap();
        let client = from.run(|| std::net::UdpSocket::bind("10.65.42.1:0")).unwrap();
        client
            .send_to(b"from one pod to the other", "10.65.42.2:4000")
            .unwrap();
        let mut buffer = [0; 64];
        let (length, source) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"from one pod to the other");
        assert_eq!(source, client.local_addr().unwrap());
    });
}

/// Makes `/proc/sys` read-only for this thread, as it is in a container without privileges.
fn read_only_switches() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none).unwrap();
    mount(
        none,
        "/proc/sys",
        none,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        none,
    )
    .unwrap();
}

#[test]
fn an_attachment_that_fails_leaves_nothing_behind() {
    in_namespace(async || {
        let pod = Pod::new();
        // The name in the pod is taken, so that the pair cannot be made.
        pod.ip("link add name eth0 type bridge");
        let error = attach_pod(&pod.link("cali1", [10, 65, 42, 1]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cali1") && error.contains("eth0") && error.contains("File exists"),
            "{error}"
        );
        assert!(!ip("-o link show").contains("cali1"));
        detach_pod("cali1", Some(&pod.path), "eth0").unwrap_err();
        assert!(
            pod.ip("-o link show").contains("eth0"),
            "a bridge is not ours to delete"
        );
        pod.ip("link del eth0");

        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        read_only_switches();
        let error = attach_pod(&pod.link("cali1", [10, 65, 42, 1]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("write 1 to /proc/sys/net/ipv4"), "{error}");
        assert!(!ip("-o link show").contains("cali1"), "{error}");
        assert!(!pod.ip("-o link show").contains("eth0"), "{error}");

        let nowhere = PodLink {
            pod_netns: "/run/netns/there-is-none".into(),
            ..pod.link("cali1", [10, 65, 42, 1])
        };
        let error = attach_pod(&nowhere).unwrap_err().to_string();
        assert!(error.contains("/run/netns/there-is-none"), "{error}");

        ip("link add name cali1 type bridge");
        let error = attach_pod(&pod.link("cali1", [10, 65, 42, 1]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("cali1") && error.contains("bridge"), "{error}");
        assert!(
            ip("-o link show").contains("cali1"),
            "a bridge is not ours to replace"
        );
    });
}
