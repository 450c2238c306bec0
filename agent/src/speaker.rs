//! Driver of `culvert_bgp`: listener, dialler, connections, one timer.
