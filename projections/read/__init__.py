"""Read the projections for the gateway and the command line; the gateway imports no other package of projections."""
