//! Tests of the directory datastore: real files, real processes.
