"""What the operations share on torch's side: checks, operators, autocast, tracing."""
