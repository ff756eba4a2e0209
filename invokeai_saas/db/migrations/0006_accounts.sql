-- Accounts beside InvokeAI's users: roles, verified addresses, logins that can be taken back, keys, the audit log, letters, limits.
-- Secrets are stored as SHA-256 only. Tenants read their own account and write their own API keys; all else is system work.

-- One row per row of users, made by a trigger, so that InvokeAI's own ways of making users leave nobody without.
CREATE TABLE saas_users (
    user_id text NOT NULL CONSTRAINT saas_users_pkey PRIMARY KEY
        CONSTRAINT saas_users_user_id_fkey REFERENCES users (user_id) ON DELETE CASCADE,
    role text NOT NULL DEFAULT 'user' CONSTRAINT saas_users_role_is_known CHECK (role IN ('user', 'admin', 'super_admin')),
    cognito_sub text CONSTRAINT saas_users_cognito_sub_key UNIQUE,
    avatar_url text,
    email_verified_at timestamptz,
    access_ended_at timestamptz,
    erase_notice_at timestamptz,
    deleted_at timestamptz,
    CONSTRAINT saas_users_notice_after_end CHECK (erase_notice_at IS NULL OR access_ended_at IS NOT NULL),
    CONSTRAINT saas_users_deleted_keeps_nothing CHECK (deleted_at IS NULL OR (cognito_sub IS NULL AND avatar_url IS NULL AND role = 'user'))
);
CREATE INDEX saas_users_ended ON saas_users (access_ended_at) WHERE access_ended_at IS NOT NULL AND deleted_at IS NULL;
-- Ann@x and ann@x are one address.
CREATE UNIQUE INDEX users_email_lower_key ON users (lower(email));

-- Only super_admin is InvokeAI's is_admin; whoever changes one changes the other.
CREATE FUNCTION tg_users_have_accounts() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO saas_users (user_id, role) VALUES (NEW.user_id, CASE NEW.is_admin WHEN 1 THEN 'super_admin' ELSE 'user' END)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER tg_users_have_accounts AFTER INSERT ON users
    FOR EACH ROW WHEN (NEW.user_id <> 'system') EXECUTE FUNCTION tg_users_have_accounts();

CREATE FUNCTION tg_is_admin_sets_role() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE saas_users SET role = CASE NEW.is_admin WHEN 1 THEN 'super_admin' ELSE 'user' END
        WHERE user_id = NEW.user_id AND (role = 'super_admin') <> (NEW.is_admin = 1);
    RETURN NULL;
END $$;
CREATE TRIGGER tg_is_admin_sets_role AFTER UPDATE OF is_admin ON users
    FOR EACH ROW WHEN (OLD.is_admin <> NEW.is_admin) EXECUTE FUNCTION tg_is_admin_sets_role();

CREATE FUNCTION tg_role_sets_is_admin() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE users SET is_admin = (NEW.role = 'super_admin')::integer
        WHERE user_id = NEW.user_id AND is_admin <> (NEW.role = 'super_admin')::integer;
    RETURN NULL;
END $$;
CREATE TRIGGER tg_role_sets_is_admin AFTER UPDATE OF role ON saas_users
    FOR EACH ROW WHEN (OLD.role <> NEW.role) EXECUTE FUNCTION tg_role_sets_is_admin();

-- Users that are there already. The owner is under the policies too, and has none: it steps out of them for this one statement.
ALTER TABLE users NO FORCE ROW LEVEL SECURITY;
INSERT INTO saas_users (user_id, role)
    SELECT user_id, CASE is_admin WHEN 1 THEN 'super_admin' ELSE 'user' END FROM users WHERE user_id <> 'system';
ALTER TABLE users FORCE ROW LEVEL SECURITY;

-- A family is one login; its refresh tokens follow each other, and each is good once.
CREATE TABLE refresh_families (
    family_id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT refresh_families_pkey PRIMARY KEY,
    user_id text NOT NULL CONSTRAINT refresh_families_user_id_fkey REFERENCES users (user_id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_at timestamptz,
    revoked_because text CONSTRAINT refresh_families_reason_is_known
        CHECK (revoked_because IN ('logout', 'reused', 'password', 'deactivated', 'deleted', 'takeover')),
    CONSTRAINT refresh_families_revoked_with_reason CHECK ((revoked_at IS NULL) = (revoked_because IS NULL))
);
CREATE INDEX refresh_families_user_id ON refresh_families (user_id);

CREATE TABLE refresh_tokens (
    token_hash text NOT NULL CONSTRAINT refresh_tokens_pkey PRIMARY KEY
        CONSTRAINT refresh_tokens_hash_is_sha256 CHECK (token_hash ~ '^[0-9a-f]{64}$'),
    family_id uuid NOT NULL CONSTRAINT refresh_tokens_family_id_fkey REFERENCES refresh_families (family_id) ON DELETE CASCADE,
    user_id text NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
-- At most one token of a family can still be used.
CREATE UNIQUE INDEX refresh_tokens_one_unused ON refresh_tokens (family_id) WHERE used_at IS NULL;
CREATE INDEX refresh_tokens_expires_at ON refresh_tokens (expires_at);

-- What a letter's link carries. The payload of a signup is what the link's reader typed, so that a stranger's earlier signup does not
-- become theirs.
CREATE TABLE one_time_tokens (
    token_hash text NOT NULL CONSTRAINT one_time_tokens_pkey PRIMARY KEY
        CONSTRAINT one_time_tokens_hash_is_sha256 CHECK (token_hash ~ '^[0-9a-f]{64}$'),
    user_id text NOT NULL CONSTRAINT one_time_tokens_user_id_fkey REFERENCES users (user_id) ON DELETE CASCADE,
    purpose text NOT NULL CONSTRAINT one_time_tokens_purpose_is_known CHECK (purpose IN ('verify', 'reset')),
    payload jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
CREATE INDEX one_time_tokens_user_id ON one_time_tokens (user_id);
CREATE INDEX one_time_tokens_expires_at ON one_time_tokens (expires_at);

CREATE TABLE api_keys (
    key_id text NOT NULL CONSTRAINT api_keys_pkey PRIMARY KEY,
    user_id text NOT NULL CONSTRAINT api_keys_user_id_fkey REFERENCES users (user_id) ON DELETE CASCADE,
    key_hash text NOT NULL CONSTRAINT api_keys_hash_is_sha256 CHECK (key_hash ~ '^[0-9a-f]{64}$'),
    name text NOT NULL CONSTRAINT api_keys_name_has_1_to_100_characters CHECK (length(name) BETWEEN 1 AND 100),
    scopes text[] NOT NULL CONSTRAINT api_keys_scopes_are_known CHECK (scopes <@ ARRAY['read', 'write'] AND cardinality(scopes) > 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_used_at timestamptz,
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_user_id ON api_keys (user_id);

-- Append-only for everybody, the database's own superuser included. Ids stay after a deletion; addresses never come in.
CREATE TABLE audit_log (
    audit_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_log_pkey PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor_id text NOT NULL,
    action text NOT NULL,
    target_id text,
    details jsonb NOT NULL DEFAULT '{}' CONSTRAINT audit_log_keeps_no_address CHECK (strpos(details::text, '@') = 0)
);
CREATE INDEX audit_log_target_id ON audit_log (target_id, audit_id);
CREATE FUNCTION tg_audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % refused', TG_OP
        USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'audit_log_is_append_only';
END $$;
CREATE TRIGGER tg_audit_log_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION tg_audit_log_is_append_only();

-- Letters wait here until a mail server took them; a letter that is sent or given up keeps neither address nor text (they hold links).
CREATE TABLE mail_outbox (
    mail_id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT mail_outbox_pkey PRIMARY KEY,
    user_id text,
    kind text NOT NULL,
    to_address text,
    subject text,
    text_body text,
    html_body text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    not_before timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0 CONSTRAINT mail_outbox_attempts_not_negative CHECK (attempts >= 0),
    done_at timestamptz,
    outcome text CONSTRAINT mail_outbox_outcome_is_known CHECK (outcome IN ('sent', 'failed')),
    CONSTRAINT mail_outbox_done_with_outcome CHECK ((done_at IS NULL) = (outcome IS NULL)),
    CONSTRAINT mail_outbox_done_keeps_nothing CHECK (CASE WHEN done_at IS NULL
        THEN num_nulls(to_address, subject, text_body, html_body) = 0 ELSE num_nonnulls(to_address, subject, text_body, html_body) = 0 END)
);
CREATE INDEX mail_outbox_waiting ON mail_outbox (not_before) WHERE done_at IS NULL;
CREATE INDEX mail_outbox_user_id ON mail_outbox (user_id);

-- Counters of the rate limits, by hashed key. Nothing of value is lost with them: UNLOGGED.
CREATE UNLOGGED TABLE rate_limits (
    limit_key text NOT NULL CONSTRAINT rate_limits_pkey PRIMARY KEY,
    hits bigint NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX rate_limits_expires_at ON rate_limits (expires_at);

-- Keyed hashes of addresses that were verified once: they outlive a deletion, so that a trial is given once (decision 17).
CREATE TABLE address_marks (
    mark text NOT NULL CONSTRAINT address_marks_pkey PRIMARY KEY
        CONSTRAINT address_marks_mark_is_sha256 CHECK (mark ~ '^[0-9a-f]{64}$'),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['saas_users', 'refresh_families', 'refresh_tokens', 'one_time_tokens', 'api_keys', 'audit_log',
        'mail_outbox', 'rate_limits', 'address_marks'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY %I ON %I TO invokeai_system USING (true) WITH CHECK (true)', table_name || '_system', table_name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO invokeai_system', table_name);
    END LOOP;
END $$;
REVOKE UPDATE, DELETE ON audit_log FROM invokeai_system;

-- app_settings: our keys are as secret as InvokeAI's.
ALTER POLICY app_settings_read ON app_settings USING (key <> 'jwt_secret' AND key NOT LIKE 'saas\_secret\_%');

-- saas_users: one's own, to read.
GRANT SELECT ON saas_users TO invokeai_app;
CREATE POLICY saas_users_read ON saas_users FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- api_keys: one's own; a key is named and revoked, never changed otherwise, and its row stays.
GRANT SELECT, INSERT ON api_keys TO invokeai_app;
GRANT UPDATE (name, revoked_at) ON api_keys TO invokeai_app;
CREATE POLICY api_keys_read ON api_keys FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
CREATE POLICY api_keys_insert ON api_keys FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY api_keys_update ON api_keys FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));

-- The rest holds strangers' addresses, hashes of credentials or everybody's history: no grant and no policy for tenants.
