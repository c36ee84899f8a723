"""What operators see of a server: metrics, traces, logs, the load of experts."""
