"""Facts from measured times: the fit, and where a machine keeps what was fitted on it. Loaded only when asked for."""
