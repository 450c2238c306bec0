//! Ctrl-C and other requests to end: noted here, and obeyed at the next wait, so that everything is taken down in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::LabError;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on SIGINT, SIGTERM and SIGHUP end the current wait instead of the process.
///
/// # Errors
/// When the system refuses the signal handlers.
pub fn listen() -> Result<(), LabError> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&REQUESTED))
            .map_err(LabError::io("listen to signals"))?;
    }
    Ok(())
}

/// Whether somebody asked to end.
#[must_use]
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error if somebody asked to end.
///
/// # Errors
/// [`LabError::Interrupted`].
pub fn check() -> Result<(), LabError> {
    if requested() {
        Err(LabError::Interrupted)
    } else {
        Ok(())
    }
}
