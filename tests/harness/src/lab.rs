//! A whole laboratory: brought up, looked at, and taken down.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::agent::Agent;
use crate::bird::{self, Bird};
use crate::command::{culvert, run_with_input};
use crate::layout::{Layout, Names};
use crate::pod::{Call, Pod};
use crate::record::Record;
use crate::wiring::Wiring;
use crate::{LabError, Namespace, store, wait_for};

/// How long a cluster may take to settle, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A laboratory. It is taken down when it is dropped, unless it is kept.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    names: Names,
    record: Record,
    plugin: PathBuf,
    nodes: BTreeMap<u8, Node>,
    pods: BTreeMap<String, Pod>,
    bird: Option<Bird>,
    stands: bool,
}

/// A node with its agent.
#[derive(Debug)]
pub struct Node {
    /// Its number, from 1.
    pub number: u8,
    /// Its links and routes.
    pub namespace: Namespace,
    /// The address by which the others know it.
    pub address: Ipv4Addr,
    /// Its agent.
    pub agent: Agent,
}

impl Node {
    /// The blocks that it owns, as the kernel knows them: its blackholes of the agent's.
    ///
    /// # Errors
    /// When its routes cannot be read.
    pub fn blocks(&self) -> Result<Vec<String>, LabError> {
        let blackhole = |line: &String| {
            let mut words = line.split(' ');
            let block = (words.next() == Some("blackhole"))
                .then(|| words.next())
                .flatten()?;
            line.contains("proto culvert").then(|| block.to_owned())
        };
        Ok(self.namespace.routes()?.iter().filter_map(blackhole).collect())
    }
}

impl Lab {
    /// Builds the namespaces, links and the datastore. No agent runs yet.
    ///
    /// # Errors
    /// When the layout is impossible, the binary is missing, or the system refuses; what was made is taken down.
    pub fn build(layout: Layout) -> Result<Self, LabError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        layout.check()?;
        let binary = culvert()?;
        let letter = match COUNT.fetch_add(1, Ordering::Relaxed) {
            0 => String::new(),
            count => format!("-{count}"),
        };
        let names = Names {
            prefix: format!("cv{}{letter}", std::process::id()),
        };
        let record = Record::new(&names.prefix)?;
        let plugin = record.folder().join("cni/culvert-cni");
        let mut lab = Self {
            layout,
            names,
            record,
            plugin,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            bird: None,
            stands: true,
        };
        lab.make_namespaces()?;
        let wiring = lab.wiring();
        wiring.fabric()?;
        layout.numbers().try_for_each(|number| wiring.node(number))?;
        if layout.bird {
            wiring.bird()?;
        }
        store::prepare(&lab.datastore(), &layout)?;
        lab.link_plugin(&binary)?;
        for number in layout.numbers() {
            let node = lab.prepare_node(number, &binary)?;
            lab.nodes.insert(number, node);
        }
        if layout.bird {
            let folder = lab.record.folder().join("bird");
            lab.bird = Some(Bird::start(
                lab.names.bird(),
                &folder,
                &bird::in_the_mesh(&layout),
                &lab.record,
            )?);
        }
        Ok(lab)
    }

    /// What it is made of.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The folder with its datastore, logs and configuration files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.record.folder()
    }

    /// The datastore's folder.
    #[must_use]
    pub fn datastore(&self) -> PathBuf {
        self.record.folder().join("datastore")
    }

    /// Sets fields of the IPPool's `spec` in its manifest.
    ///
    /// # Errors
    /// When the manifest is gone, or cannot be written.
    pub fn set_in_pool(&self, fields: &[(&str, &str)]) -> Result<(), LabError> {
        store::set_in_pool(&self.datastore(), fields)
    }

    /// Deletes the Node object of this number, and returns its manifest.
    ///
    /// # Errors
    /// When it is gone already, or the manifests cannot be written.
    pub fn delete_node_object(&self, number: u8) -> Result<String, LabError> {
        self.delete_object("Node", &format!("node{number}"))
    }

    /// Deletes an object that was there before the agents, or was added later, and returns its manifest.
    ///
    /// # Errors
    /// When it is gone already, or the manifests cannot be written.
    pub fn delete_object(&self, kind: &str, name: &str) -> Result<String, LabError> {
        store::take(&self.datastore(), kind, name)
    }

    /// Deletes the pool of IPv6.
    ///
    /// # Errors
    /// When the manifests cannot be written.
    pub fn delete_pool_v6(&self) -> Result<(), LabError> {
        store::take_pool_v6(&self.datastore())
    }

    /// Deletes all blocks of IPv6, and the claims of them.
    ///
    /// # Errors
    /// When a manifest cannot be removed.
    pub fn delete_blocks_v6(&self) -> Result<(), LabError> {
        store::take_blocks_v6(&self.datastore())
    }

    /// Adds an object to the datastore by its manifest.
    ///
    /// # Errors
    /// When the manifests cannot be written.
    pub fn add_object(&self, manifest: String) -> Result<(), LabError> {
        store::add(&self.datastore(), manifest)
    }

    /// Gives the Node object of this number the InternalIP `to` in place of `from`, as the kubelet does on a host whose
    /// address changed.
    ///
    /// # Errors
    /// When there is no such object or address, or the manifests cannot be written.
    pub fn set_internal_ip(&self, number: u8, from: Ipv4Addr, to: Ipv4Addr) -> Result<(), LabError> {
        store::set_internal_ip(&self.datastore(), &format!("node{number}"), from, to)
    }

    /// Reboots a node: its agent is gone, and so is all that its kernel held, pods' links included. Its files stay, the
    /// agent stays down, and its pods are to be detached and attached anew.
    ///
    /// # Errors
    /// When something of it resists.
    pub fn reboot(&mut self, number: u8) -> Result<(), LabError> {
        self.agent(number).kill()?;
        let namespace = self.names.node(number);
        self.wiring().unplug(number)?;
        netns_batch("del", std::slice::from_ref(&namespace))?;
        netns_batch("add", std::slice::from_ref(&namespace))?;
        self.wiring().plug(number)?;
        self.wiring().node(number)?;
        let socket = self.node(number).agent.socket();
        std::fs::remove_file(&socket).map_err(LabError::io(format!("remove {}", socket.display())))
    }

    fn wiring(&self) -> Wiring<'_> {
        Wiring {
            layout: &self.layout,
            names: &self.names,
        }
    }

    /// Moves all manifests out of the datastore, as by accident.
    ///
    /// # Errors
    /// When one cannot be moved.
    pub fn empty_datastore(&self) -> Result<(), LabError> {
        store::move_all(&self.datastore(), &self.aside())
    }

    /// Puts the manifests back that [`Self::empty_datastore`] moved.
    ///
    /// # Errors
    /// When one cannot be moved.
    pub fn fill_datastore(&self) -> Result<(), LabError> {
        store::move_all(&self.aside(), &self.datastore())
    }

    fn aside(&self) -> PathBuf {
        self.record.folder().join("manifests-aside")
    }

    /// Takes the datastore's folder away, or puts it back.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn set_datastore_away(&self, away: bool) -> Result<(), LabError> {
        let (here, there) = (self.datastore(), self.record.folder().join("datastore-away"));
        let (from, to) = if away { (&here, &there) } else { (&there, &here) };
        std::fs::rename(from, to).map_err(LabError::io(format!(
            "rename {} to {}",
            from.display(),
            to.display()
        )))
    }

    /// The nodes that run an agent, in the order of their numbers.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node of this number.
    ///
    /// # Panics
    /// When there is none: the caller knows the layout.
    #[must_use]
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[&number]
    }

    /// The agent of the node of this number.
    ///
    /// # Panics
    /// When there is none: the caller knows the layout.
    pub fn agent(&mut self, number: u8) -> &mut Agent {
        &mut self.nodes.get_mut(&number).expect("a node of the layout").agent
    }

    /// The pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// A pod by its name.
    ///
    /// # Panics
    /// When there is none: the caller attached it.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    /// The BIRD of the layout, if it has one.
    #[must_use]
    pub fn bird(&self) -> Option<&Bird> {
        self.bird.as_ref()
    }

    /// Starts BIRD on a node in place of its agent, as Calico would have it there with these blocks.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_bird_of_calico(&self, number: u8, blocks: &[String]) -> Result<Bird, LabError> {
        let node = self.node(number);
        let others: Vec<Ipv4Addr> = self
            .nodes()
            .filter(|other| other.number != number)
            .map(|other| other.address)
            .collect();
        let folder = self.record.folder().join(format!("bird-of-node{number}"));
        let configuration = bird::of_calico(node.address, &others, blocks);
        Bird::start(node.namespace.clone(), &folder, &configuration, &self.record)
    }

    /// Starts the agent of a node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self, number: u8) -> Result<(), LabError> {
        let node = self
            .nodes
            .get_mut(&number)
            .ok_or(LabError::Layout("no node of this number"))?;
        node.agent.start(&self.record)
    }

    /// Starts all agents.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_agents(&mut self) -> Result<(), LabError> {
        self.layout
            .numbers()
            .try_for_each(|number| self.start_agent(number))
    }

    /// Makes a pod on a node and attaches it.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub fn attach(&mut self, number: u8, name: &str) -> Result<Pod, LabError> {
        let pod = self.names.pod(name);
        self.record.namespace(pod.name())?;
        netns_batch("add", std::slice::from_ref(&pod))?;
        pod.ip_batch(&["link set lo up".to_owned()])?;
        let (address, address_v6, host_interface) = self.call(number, &pod, name).add()?;
        let pod = Pod {
            name: name.to_owned(),
            node: number,
            namespace: pod,
            address,
            address_v6,
            host_interface,
        };
        self.pods.insert(name.to_owned(), pod.clone());
        Ok(pod)
    }

    /// Makes `count` pods on every node.
    ///
    /// # Errors
    /// When the plugin refuses one.
    pub fn attach_everywhere(&mut self, count: u8) -> Result<(), LabError> {
        for number in self.layout.numbers() {
            for nth in 1..=count {
                self.attach(number, &format!("n{number}p{nth}"))?;
            }
        }
        Ok(())
    }

    /// Makes the namespace of a pod that nobody attaches: for those who call plugins themselves. It goes with the laboratory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn bare_pod(&mut self, name: &str) -> Result<Namespace, LabError> {
        let pod = self.names.pod(name);
        self.record.namespace(pod.name())?;
        netns_batch("add", std::slice::from_ref(&pod))?;
        pod.ip_batch(&["link set lo up".to_owned()])?;
        Ok(pod)
    }

    /// The file of the CNI plugin.
    #[must_use]
    pub fn plugin(&self) -> &Path {
        &self.plugin
    }

    /// Detaches a pod and removes its namespace.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub fn detach(&mut self, name: &str) -> Result<(), LabError> {
        let pod = self
            .pods
            .remove(name)
            .ok_or(LabError::Layout("no pod of this name"))?;
        self.call(pod.node, &pod.namespace, name).delete()?;
        netns_batch("del", std::slice::from_ref(&pod.namespace))
    }

    fn call<'a>(&'a self, number: u8, pod: &'a Namespace, name: &'a str) -> Call<'a> {
        let node = self.node(number);
        Call {
            plugin: &self.plugin,
            socket: node.agent.socket(),
            node: &node.namespace,
            pod,
            name,
        }
    }

    /// Waits until every agent is ready and has all its sessions Established: how many sessions that are.
    ///
    /// # Errors
    /// When an agent ends, or it takes too long.
    pub fn wait_for_sessions(&mut self) -> Result<usize, LabError> {
        // A session for each family.
        let of_a_peer = 1 + usize::from(self.layout.dual_stack);
        let wanted = (usize::from(self.layout.nodes) - 1) * of_a_peer + usize::from(self.layout.bird);
        for node in self.nodes.values_mut() {
            let what = format!(
                "node{} to be ready with {wanted} sessions Established",
                node.number
            );
            let waited = wait_for(&what, PATIENCE, || {
                if node.agent.alive().is_err() {
                    return Ok(false);
                }
                if let Some(why) = node.agent.not_ready() {
                    return Err(why);
                }
                let status = node.agent.status().map_err(|e| e.to_string())?;
                if status.established() == wanted {
                    Ok(true)
                } else {
                    Err(format!("{:?}", status.sessions()))
                }
            });
            node.agent.alive()?;
            with_last_words(waited, &node.agent)?;
        }
        Ok(self.nodes.len() * wanted)
    }

    /// Waits until every node's kernel has a route to every other node's blocks: how many routes that are.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn wait_for_routes(&self) -> Result<usize, LabError> {
        let mut count = 0;
        for node in self.nodes.values() {
            let what = format!("node{} to have a route to every block", node.number);
            let waited = wait_for(&what, PATIENCE, || {
                let routes = node.namespace.routes().map_err(|e| e.to_string())?;
                let missing = self.missing(node, &routes)?;
                if missing.is_empty() {
                    Ok(routes)
                } else {
                    Err(format!("no {}", missing.join(", no ")))
                }
            });
            let routes = with_last_words(waited, &node.agent)?;
            count += routes
                .iter()
                .filter(|line| line.contains("proto culvert"))
                .count();
        }
        Ok(count)
    }

    /// The routes to other nodes' blocks that are not among these.
    fn missing(&self, node: &Node, routes: &[String]) -> Result<Vec<String>, String> {
        let mut missing = Vec::new();
        for other in self.nodes.values().filter(|other| other.number != node.number) {
            let blocks = other.blocks().map_err(|e| e.to_string())?;
            if blocks.is_empty() {
                missing.push(format!("block of node{}", other.number));
            }
            let routes_to = blocks
                .iter()
                .map(|block| self.route(node.number, other.number, block));
            missing.extend(routes_to.filter(|route| !routes.contains(route)));
        }
        Ok(missing)
    }

    /// The bridges `near` and `second`, which all packets between nodes pass, and the router between them.
    #[must_use]
    pub fn fabric(&self) -> Namespace {
        self.names.fabric()
    }

    /// The line of `ip route` by which a node reaches a block of another.
    #[must_use]
    pub fn route(&self, from: u8, to: u8, block: &str) -> String {
        let via = self.layout.address(to);
        if self.layout.tunnelled(from, to) {
            return format!("{block} via {via} dev tunl0 proto culvert onlink");
        }
        format!(
            "{block} via {via} dev {} proto culvert src {} onlink",
            self.layout.device(from),
            self.layout.address(from)
        )
    }

    /// Leaves it standing after this process.
    ///
    /// # Errors
    /// When that cannot be noted down.
    pub fn keep(mut self) -> Result<(), LabError> {
        self.record.keep()?;
        self.stands = false;
        Ok(())
    }

    /// Takes it down.
    ///
    /// # Errors
    /// When something of it resists.
    pub fn down(mut self) -> Result<(), LabError> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), LabError> {
        if !self.stands {
            return Ok(());
        }
        self.stands = false;
        let taken = self.record.take_down();
        self.nodes.values_mut().for_each(|node| node.agent.reap());
        self.bird.iter_mut().for_each(Bird::reap);
        taken
    }

    fn make_namespaces(&self) -> Result<(), LabError> {
        let mut all = vec![self.names.fabric()];
        all.extend(self.layout.numbers().map(|number| self.names.node(number)));
        if self.layout.bird {
            all.push(self.names.bird());
        }
        for namespace in &all {
            self.record.namespace(namespace.name())?;
        }
        netns_batch("add", &all)
    }

    /// The plugin is the agent's binary under another name.
    fn link_plugin(&self, binary: &Path) -> Result<(), LabError> {
        let folder = self.plugin.parent().unwrap_or(&self.plugin);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::os::unix::fs::symlink(binary, &self.plugin))
            .map_err(LabError::io(format!("link {}", self.plugin.display())))
    }

    fn prepare_node(&self, number: u8, binary: &Path) -> Result<Node, LabError> {
        let name = format!("node{number}");
        let namespace = self.names.node(number);
        let folder = self.record.folder().join(&name);
        let agent = Agent::prepare(namespace.clone(), binary, folder, &name, &self.datastore())?;
        Ok(Node {
            number,
            namespace,
            address: self.layout.address(number),
            agent,
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("laboratory {}: {error}", self.names.prefix);
        }
    }
}

/// Makes or deletes namespaces, by one process.
pub(crate) fn netns_batch(verb: &str, namespaces: &[Namespace]) -> Result<(), LabError> {
    let lines: String = namespaces
        .iter()
        .map(|n| format!("netns {verb} {}\n", n.name()))
        .collect();
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    run_with_input(command, &lines).map(drop)
}

/// With a timeout, what the agent said last.
fn with_last_words<T>(result: Result<T, LabError>, agent: &Agent) -> Result<T, LabError> {
    result.map_err(|error| match error {
        LabError::Timeout { what, limit, last } => {
            let last = format!("{last}\nthe agent's last words:\n{}", agent.last_words());
            LabError::Timeout { what, limit, last }
        }
        other => other,
    })
}
