"""The parts of benchmarks/peers.py: what is attacked, by whom, how it is recorded, and how it is shown."""
