"""Records of the log: structs, changesets, the gate, digests, and the archive's segments and manifests. Pure."""
