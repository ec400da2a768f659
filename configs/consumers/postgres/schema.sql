-- Verdicts of any number of stations. `(station, rec)` is unique for ever: a message that comes twice is one row.
CREATE TABLE IF NOT EXISTS verdicts (
    station       text             NOT NULL,
    rec           bigint           NOT NULL CHECK (rec > 0),
    id            uuid             NOT NULL,
    boot          text             NOT NULL,
    part          text             NOT NULL,
    time          timestamptz      NOT NULL,
    decision      text             NOT NULL CHECK (decision IN ('ok', 'defect', 'review', 'error')),
    code          smallint         NOT NULL CHECK (code BETWEEN 1 AND 4),
    quality       smallint         NOT NULL,
    class         text,
    score         double precision,
    threshold     double precision,
    reason        text             NOT NULL,
    recipe        text,
    bundle        text             NOT NULL,
    bundle_digest text             NOT NULL,
    image_id      text,
    message       jsonb            NOT NULL,             -- all of it, with fields that came later than this table
    filed         timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (station, rec)
);
CREATE INDEX IF NOT EXISTS verdicts_time ON verdicts (station, time);
CREATE INDEX IF NOT EXISTS verdicts_part ON verdicts (part);

-- Records that are missing below the highest one of their station, as ranges.
CREATE OR REPLACE VIEW gaps AS
SELECT station, rec + 1 AS first, next_rec - 1 AS last
FROM (SELECT station, rec, lead(rec) OVER (PARTITION BY station ORDER BY rec) AS next_rec FROM verdicts) AS pairs
WHERE next_rec > rec + 1;
