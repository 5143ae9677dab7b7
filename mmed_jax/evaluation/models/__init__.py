"""What answers: a model of this machine, or an endpoint."""
