"""Create, sign, schedule and post the simulator's webhooks."""
