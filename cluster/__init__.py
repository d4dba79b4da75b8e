"""Many machines: a run over Ray, and recipes for job arrays in docs/CLUSTER.md. Needs the extra `cluster`."""
