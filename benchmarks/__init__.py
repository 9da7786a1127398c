"""Throughput, compile time and memory of recurrent scans; see README.md in this directory."""
