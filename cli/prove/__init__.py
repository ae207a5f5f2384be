"""Commands that try, prove and measure: the sandbox, simulations, benchmarks and verification."""
