"""Avro encoding: the catalogue of schemas, codecs, upcasters and the check of compatibility. Pure."""
