//! The laboratory: nodes, pods and peers as network namespaces on one machine.
//!
//! A [`Lab`] is a small cluster: every node is a namespace with a real agent in it, all on one directory datastore; every
//! pod is a namespace attached by the real CNI plugin. The kernel tests and the quick start are both made of it, so that
//! what a newcomer sees is what is tested. It needs root, and for tunnels a kernel with ipip ([`kernel`] tells).

pub mod agent;
pub mod api_server;
pub mod bird;
pub mod capture;
mod command;
mod daemon;
mod error;
pub mod interruption;
pub mod kernel;
pub mod kube_cluster;
pub mod kube_image;
pub mod kube_node;
pub mod kubernetes;
mod lab;
pub mod layout;
mod namespace;
pub mod pair;
pub mod ping;
mod pod;
mod record;
pub mod status;
mod store;
mod wait;
mod wiring;

pub use agent::Agent;
pub use api_server::ApiServer;
pub use command::culvert;
pub use error::LabError;
pub use kube_cluster::KubeCluster;
pub use lab::{Lab, Node};
pub use layout::{Layout, Mode, Nic};
pub use namespace::Namespace;
pub use pod::Pod;
pub use record::take_down_left_over;
pub use wait::wait_for;
