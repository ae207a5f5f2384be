"""Public events: their Avro bytes, cut from the log's records, and the fields that changed."""
