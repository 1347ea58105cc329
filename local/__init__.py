"""The whole product on one machine: `python -m local` starts a bus, a model and replicas, and ends them all."""
