"""Contract of the public topics: subjects, examples, field descriptions, documentation and AsyncAPI. Pure."""
