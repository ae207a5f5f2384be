-- Add versions of the projections, rebuilds and the check of the version before each batch.
CREATE TABLE IF NOT EXISTS projection.version (
    number INTEGER NOT NULL, 
    fold INTEGER NOT NULL, 
    made_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (number)
);

INSERT INTO projection.version (number, fold) VALUES (1, 1);

CREATE TABLE IF NOT EXISTS tartan.rebuilds (
    number INTEGER NOT NULL, 
    fold INTEGER NOT NULL, 
    state TEXT NOT NULL, 
    floors JSONB NOT NULL, 
    started_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    loaded_at TIMESTAMP WITH TIME ZONE, 
    swapped_at TIMESTAMP WITH TIME ZONE, 
    dropped_at TIMESTAMP WITH TIME ZONE, 
    result JSONB, 
    PRIMARY KEY (number)
);

CREATE OR REPLACE FUNCTION tartan.require_version(wanted_fold integer, wanted_number integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    found record;
BEGIN
    SELECT number, fold INTO found FROM version;
    IF found.fold IS DISTINCT FROM wanted_fold OR found.number <> coalesce(wanted_number, found.number) THEN
        RAISE EXCEPTION USING ERRCODE = 'TV001', MESSAGE = concat(
            'these tables are version ', found.number, ' of fold ', found.fold, ', wanted is ',
            coalesce('version ' || wanted_number, 'any version'), ' of fold ', wanted_fold);
    END IF;
END $$;
