-- What `invokeai-saas import-sqlite` brought over: one line per row and per picture, so that a second run doubles nothing, brings nothing
-- back that a user deleted meanwhile, and an interrupted one goes on where it was. Names are ids; no content is kept, only its digest.
CREATE TABLE imported (
    kind text NOT NULL,
    name text NOT NULL,
    digest text NOT NULL CONSTRAINT imported_digest_is_sha256 CHECK (digest ~ '^[0-9a-f]{64}$'),
    -- The account that a user of the root was joined to, where it has another id.
    became text,
    imported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT imported_pkey PRIMARY KEY (kind, name)
);
ALTER TABLE imported ENABLE ROW LEVEL SECURITY;
ALTER TABLE imported FORCE ROW LEVEL SECURITY;
-- Everybody's ids: system work only, no grant and no policy for tenants.
CREATE POLICY imported_system ON imported TO invokeai_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON imported TO invokeai_system;
