-- Add the schema ids that a schema registry assigned.
CREATE TABLE IF NOT EXISTS tartan.registry_ids (
    registry TEXT NOT NULL, 
    subject TEXT NOT NULL, 
    schema INTEGER NOT NULL, 
    id INTEGER NOT NULL, 
    asked_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (registry, subject, schema)
);
