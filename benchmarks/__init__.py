"""wsdeco beside its peers: `python -m benchmarks` measures every server that is installed with the same client."""
