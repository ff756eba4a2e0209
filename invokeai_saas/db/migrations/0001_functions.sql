-- What upstream's translated statements and defaults call, and what the policies ask.

-- SQLite's json_extract on text: strings bare, numbers and structures as JSON text, true/false as 1/0, null as NULL.
CREATE FUNCTION json_extract(document text, path text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT CASE json_typeof(value)
        WHEN 'string' THEN value #>> '{}'
        WHEN 'boolean' THEN CASE value::text WHEN 'true' THEN '1' ELSE '0' END
        WHEN 'null' THEN NULL
        ELSE value::text
    END
    FROM (
        SELECT document::json #> CASE path
            WHEN '$' THEN '{}'::text[]
            ELSE string_to_array(regexp_replace(substr(path, 3), '\[(\d+)\]', '.\1', 'g'), '.')
        END AS value
    ) AS found
);

-- Times are text in UTC, as SQLite's STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW') and CURRENT_TIMESTAMP print them.
CREATE FUNCTION sqlite_now() RETURNS text LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS');

CREATE FUNCTION sqlite_now_seconds() RETURNS text LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS');

-- The tenant of the transaction. A transaction-local setting reads as '' afterwards: that is nobody, not a user.
CREATE FUNCTION app_user_id() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN NULLIF(current_setting('app.current_user_id', true), '');

CREATE FUNCTION app_sharing() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
RETURN COALESCE(current_setting('app.sharing', true), '') = 'on';
