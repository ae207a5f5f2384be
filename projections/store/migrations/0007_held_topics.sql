-- Add the partitions of public topics that `tartan republish` fills.
CREATE TABLE IF NOT EXISTS tartan.held_topics (
    topic TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    since BIGINT NOT NULL, 
    first_offset BIGINT, 
    PRIMARY KEY (topic, partition)
);
