//! The laboratory: nodes, pods and peers as network namespaces on one machine.
