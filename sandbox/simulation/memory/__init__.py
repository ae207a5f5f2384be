"""Keep the tables of the scheduler and of the projections in memory, by the rules of their SQL."""
