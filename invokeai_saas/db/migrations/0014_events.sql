-- Events on their way from the process in which something happened to those at which its user listens. Rows live for a minute. Unlogged: a
-- crash of the server ends whatever the events told of, and what they told of is in the tables.
CREATE UNLOGGED TABLE bus_events (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT bus_events_pkey PRIMARY KEY,
    -- Who reads again asks for what the last snapshot did not show: exact however late a transaction commits, and nothing comes twice.
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    name text NOT NULL,
    -- Whose alone it is; NULL: of several users or of none, and the payload says whose.
    user_id text,
    -- Progress: the next one tells more, and where nobody listens it is not even read.
    passing boolean NOT NULL DEFAULT false,
    payload text NOT NULL,
    -- Of rows that are not part of the transaction that caused them: what one process sent, counted, so that sending again is noticed.
    sender text,
    number bigint
);
CREATE INDEX bus_events_xact ON bus_events (xact);
-- Previews are JPEGs in base64: compressing them again is lost time.
ALTER TABLE bus_events ALTER COLUMN payload SET STORAGE EXTERNAL;

-- A tenant's request tells the tenant, inside of its transaction. Nobody's request reads what was told.
ALTER TABLE bus_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE bus_events FORCE ROW LEVEL SECURITY;
CREATE POLICY bus_events_system ON bus_events TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE ON bus_events TO invokeai_system;
CREATE POLICY bus_events_insert ON bus_events FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
GRANT INSERT (name, user_id, passing, payload) ON bus_events TO invokeai_app;
