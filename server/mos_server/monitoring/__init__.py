"""Numbers for machines: metrics for Prometheus, health and readiness, on a loopback port."""
