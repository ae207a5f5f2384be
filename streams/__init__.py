"""What is due, asked of Plaid, becomes one changeset of the topic `changesets`."""
