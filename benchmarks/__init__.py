"""What is measured, and how; results with commit, device and command."""
