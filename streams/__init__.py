"""Stage streams: sync due Items from Plaid, each sync run into one changeset of the topic `changesets`."""
