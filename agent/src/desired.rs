//! What the kernel and the speaker should hold, as a function of what is known.
