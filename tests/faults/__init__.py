"""What breaks in production, broken here: real Valkey, real replicas, the real Bedrock client over real sockets.

`make test` takes a short round, `make faults` (FAULTS_FULL=1) the long one. Random moments come from a seed, which is
printed with a test that fails; FAULTS_SEED takes the same one again.
"""
