"""Workloads, load client and reports."""
