"""The commands: each module adds its options and runs. Only these and ``exporter.cli`` print."""
