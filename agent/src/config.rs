//! The agent's configuration: a YAML file, overlaid by the environment.
