-- Run before the numbered migrations, every time: roles belong to the server, not to the database, and may have been changed.
-- owner: owns every object, nobody logs in as it. app: what a tenant's request runs as. system: what named system work runs as.
-- definer: owns the few functions that must write across tenants. books: owns those that move credits, and alone writes the tables of
-- credits. None may bypass row-level security.
DO $$
DECLARE
    role_name text;
    -- From 16 on the maker of a role administers it without being able to become it.
    may_become text := CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['invokeai_owner', 'invokeai_app', 'invokeai_system', 'invokeai_definer', 'invokeai_books'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOBYPASSRLS', role_name);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database of this server is migrated at the same moment
        END;
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = role_name AND (rolsuper OR rolbypassrls OR rolinherit)) THEN
            RAISE EXCEPTION 'role % must be NOSUPERUSER NOBYPASSRLS NOINHERIT', role_name;
        END IF;
        IF NOT pg_has_role(current_user, role_name, may_become) THEN
            EXECUTE format('GRANT %I TO %I', role_name, current_user);
        END IF;
    END LOOP;
    -- The owner hands functions to these roles.
    FOREACH role_name IN ARRAY ARRAY['invokeai_definer', 'invokeai_books'] LOOP
        IF NOT pg_has_role('invokeai_owner', role_name, may_become) THEN
            EXECUTE format('GRANT %I TO invokeai_owner', role_name);
        END IF;
    END LOOP;
END $$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO invokeai_owner, invokeai_definer, invokeai_books;
GRANT USAGE ON SCHEMA public TO invokeai_app, invokeai_system, invokeai_definer, invokeai_books;
-- Procrastinate's tables and functions: apart, since their names are its own. Tenants may not look inside.
CREATE SCHEMA IF NOT EXISTS procrastinate AUTHORIZATION invokeai_owner;
