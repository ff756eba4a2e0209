-- Row-level security on every table of upstream: named policies per command, forced on the owner too.
--
-- Rules (decision 21): a row belongs to its user_id; rows cross users only when owned by 'system' (defaults that upstream ships) or
-- shared/public where the operator switched `sharing` on. Nobody is NULL, and NULL equals nothing: no context, no rows.
-- The system role sees all; code enters it at named call sites only.
-- (SELECT app_user_id()) is evaluated once per statement, not once per row. Postgres counts it as a subquery, though, and refuses policies
-- whose subqueries come back to their own table: boards and session_queue, which others ask, call the functions bare.
-- Policies read images -> board_images -> boards and no further; app_owns_image() and app_owns_video() answer the way back.

-- The few functions that run as the definer role. Its policies show it the current tenant's rows and no others.
CREATE FUNCTION app_owns_image(name text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
RETURN EXISTS (SELECT FROM public.images WHERE image_name = name AND user_id = app_user_id());

CREATE FUNCTION app_owns_video(name text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
RETURN EXISTS (SELECT FROM public.videos WHERE video_name = name AND user_id = app_user_id());

ALTER FUNCTION app_owns_image(text) OWNER TO invokeai_definer;
ALTER FUNCTION app_owns_video(text) OWNER TO invokeai_definer;
GRANT SELECT ON images, videos TO invokeai_definer;
CREATE POLICY images_definer ON images FOR SELECT TO invokeai_definer USING (user_id = app_user_id());
CREATE POLICY videos_definer ON videos FOR SELECT TO invokeai_definer USING (user_id = app_user_id());

DO $$
DECLARE
    table_name text;
BEGIN
    FOR table_name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'saas_migrations' LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY %I ON %I TO invokeai_system USING (true) WITH CHECK (true)', table_name || '_system', table_name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO invokeai_system', table_name);
    END LOOP;
END $$;

-- images: the owner's. With sharing on, also what lies on a shared or public board, to read.
-- Rows owned by 'system' are no defaults here (a single-user library, say) and stay hidden.
GRANT SELECT, INSERT, UPDATE, DELETE ON images TO invokeai_app;
CREATE POLICY images_read ON images FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()) OR ((SELECT app_sharing()) AND EXISTS (
        SELECT FROM board_images JOIN boards USING (board_id)
        WHERE board_images.image_name = images.image_name AND boards.board_visibility IN ('shared', 'public'))));
CREATE POLICY images_insert ON images FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY images_update ON images FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY images_delete ON images FOR DELETE TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- videos: the owner's. With sharing on, also what lies on a shared or public board, to read.
-- Rows owned by 'system' are no defaults here (a single-user library, say) and stay hidden.
GRANT SELECT, INSERT, UPDATE, DELETE ON videos TO invokeai_app;
CREATE POLICY videos_read ON videos FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()) OR ((SELECT app_sharing()) AND EXISTS (
        SELECT FROM board_videos JOIN boards USING (board_id)
        WHERE board_videos.video_name = videos.video_name AND boards.board_visibility IN ('shared', 'public'))));
CREATE POLICY videos_insert ON videos FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY videos_update ON videos FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY videos_delete ON videos FOR DELETE TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- boards: the owner's. With sharing on, shared and public ones are read by all. A cover must be a picture that the writer may see:
-- a foreign key alone would accept, and so betray, a foreign picture's name.
GRANT SELECT, INSERT, UPDATE, DELETE ON boards TO invokeai_app;
CREATE POLICY boards_read ON boards FOR SELECT TO invokeai_app
    USING (user_id = app_user_id() OR (app_sharing() AND board_visibility IN ('shared', 'public')));
CREATE POLICY boards_insert ON boards FOR INSERT TO invokeai_app
    WITH CHECK (user_id = app_user_id() AND (cover_image_name IS NULL OR app_owns_image(cover_image_name)));
CREATE POLICY boards_update ON boards FOR UPDATE TO invokeai_app
    USING (user_id = app_user_id())
    WITH CHECK (user_id = app_user_id() AND (cover_image_name IS NULL OR app_owns_image(cover_image_name)));
CREATE POLICY boards_delete ON boards FOR DELETE TO invokeai_app
    USING (user_id = app_user_id());

-- board_images: no user_id; read through the board. Written by who may write to the board (public boards: anybody, with sharing on)
-- and owns the image; taken away by either owner.
GRANT SELECT, INSERT, UPDATE, DELETE ON board_images TO invokeai_app;
CREATE POLICY board_images_read ON board_images FOR SELECT TO invokeai_app
    USING (EXISTS (SELECT FROM boards WHERE boards.board_id = board_images.board_id));
CREATE POLICY board_images_insert ON board_images FOR INSERT TO invokeai_app
    WITH CHECK (EXISTS (SELECT FROM boards WHERE boards.board_id = board_images.board_id AND (boards.user_id = (SELECT app_user_id())
            OR ((SELECT app_sharing()) AND boards.board_visibility = 'public')))
        AND app_owns_image(image_name));
CREATE POLICY board_images_update ON board_images FOR UPDATE TO invokeai_app
    USING (EXISTS (SELECT FROM boards WHERE boards.board_id = board_images.board_id AND boards.user_id = (SELECT app_user_id()))
        OR app_owns_image(image_name))
    WITH CHECK (EXISTS (SELECT FROM boards WHERE boards.board_id = board_images.board_id AND (boards.user_id = (SELECT app_user_id())
            OR ((SELECT app_sharing()) AND boards.board_visibility = 'public')))
        AND app_owns_image(image_name));
CREATE POLICY board_images_delete ON board_images FOR DELETE TO invokeai_app
    USING (EXISTS (SELECT FROM boards WHERE boards.board_id = board_images.board_id AND boards.user_id = (SELECT app_user_id()))
        OR app_owns_image(image_name));

-- board_videos: no user_id; read through the board. Written by who may write to the board (public boards: anybody, with sharing on)
-- and owns the video; taken away by either owner.
GRANT SELECT, INSERT, UPDATE, DELETE ON board_videos TO invokeai_app;
CREATE POLICY board_videos_read ON board_videos FOR SELECT TO invokeai_app
    USING (EXISTS (SELECT FROM boards WHERE boards.board_id = board_videos.board_id));
CREATE POLICY board_videos_insert ON board_videos FOR INSERT TO invokeai_app
    WITH CHECK (EXISTS (SELECT FROM boards WHERE boards.board_id = board_videos.board_id AND (boards.user_id = (SELECT app_user_id())
            OR ((SELECT app_sharing()) AND boards.board_visibility = 'public')))
        AND app_owns_video(video_name));
CREATE POLICY board_videos_update ON board_videos FOR UPDATE TO invokeai_app
    USING (EXISTS (SELECT FROM boards WHERE boards.board_id = board_videos.board_id AND boards.user_id = (SELECT app_user_id()))
        OR app_owns_video(video_name))
    WITH CHECK (EXISTS (SELECT FROM boards WHERE boards.board_id = board_videos.board_id AND (boards.user_id = (SELECT app_user_id())
            OR ((SELECT app_sharing()) AND boards.board_visibility = 'public')))
        AND app_owns_video(video_name));
CREATE POLICY board_videos_delete ON board_videos FOR DELETE TO invokeai_app
    USING (EXISTS (SELECT FROM boards WHERE boards.board_id = board_videos.board_id AND boards.user_id = (SELECT app_user_id()))
        OR app_owns_video(video_name));

-- session_queue: the owner's jobs. A parent or root must be one's own and stays: chains are walked, also by system work. So a tenant
-- may change the columns of a job's progress only.
GRANT SELECT, INSERT, DELETE ON session_queue TO invokeai_app;
GRANT UPDATE (status, status_sequence, session, error_type, error_message, error_traceback, device) ON session_queue TO invokeai_app;
CREATE POLICY session_queue_read ON session_queue FOR SELECT TO invokeai_app
    USING (user_id = app_user_id());
CREATE POLICY session_queue_insert ON session_queue FOR INSERT TO invokeai_app
    WITH CHECK (user_id = app_user_id()
        AND (parent_item_id IS NULL OR EXISTS (SELECT FROM session_queue AS parent WHERE parent.item_id = session_queue.parent_item_id))
        AND (root_item_id IS NULL OR EXISTS (SELECT FROM session_queue AS root WHERE root.item_id = session_queue.root_item_id)));
CREATE POLICY session_queue_update ON session_queue FOR UPDATE TO invokeai_app
    USING (user_id = app_user_id())
    WITH CHECK (user_id = app_user_id());
CREATE POLICY session_queue_delete ON session_queue FOR DELETE TO invokeai_app
    USING (user_id = app_user_id());

-- The numbers of session_queue: a NULL key is translated to the next one (db/dialect_rules.py).
GRANT USAGE ON SEQUENCE session_queue_item_id_seq TO invokeai_app, invokeai_system;

-- client_state: the owner's interface settings.
GRANT SELECT, INSERT, UPDATE, DELETE ON client_state TO invokeai_app;
CREATE POLICY client_state_read ON client_state FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));
CREATE POLICY client_state_insert ON client_state FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY client_state_update ON client_state FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY client_state_delete ON client_state FOR DELETE TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- workflow_library: the owner's, and what upstream or a node pack ships (owned by system, default or public), to read.
GRANT SELECT, INSERT, UPDATE, DELETE ON workflow_library TO invokeai_app;
CREATE POLICY workflow_library_read ON workflow_library FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id())
        OR (user_id = 'system' AND (category = 'default' OR is_public = 1))
        OR ((SELECT app_sharing()) AND is_public = 1));
CREATE POLICY workflow_library_insert ON workflow_library FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY workflow_library_update ON workflow_library FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY workflow_library_delete ON workflow_library FOR DELETE TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- style_presets: the owner's, and upstream's defaults, to read.
GRANT SELECT, INSERT, UPDATE, DELETE ON style_presets TO invokeai_app;
CREATE POLICY style_presets_read ON style_presets FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id())
        OR (user_id = 'system' AND (type = 'default' OR is_public = 1))
        OR ((SELECT app_sharing()) AND is_public = 1));
CREATE POLICY style_presets_insert ON style_presets FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY style_presets_update ON style_presets FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY style_presets_delete ON style_presets FOR DELETE TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- system_prompts: the owner's, and upstream's defaults, to read.
GRANT SELECT, INSERT, UPDATE, DELETE ON system_prompts TO invokeai_app;
CREATE POLICY system_prompts_read ON system_prompts FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id())
        OR (user_id = 'system' AND is_public = 1)
        OR ((SELECT app_sharing()) AND is_public = 1));
CREATE POLICY system_prompts_insert ON system_prompts FOR INSERT TO invokeai_app
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY system_prompts_update ON system_prompts FOR UPDATE TO invokeai_app
    USING (user_id = (SELECT app_user_id()))
    WITH CHECK (user_id = (SELECT app_user_id()));
CREATE POLICY system_prompts_delete ON system_prompts FOR DELETE TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- shared_boards: who a board is shared with: seen by that user and the board's owner, written by the owner, only with sharing on.
GRANT SELECT, INSERT, UPDATE, DELETE ON shared_boards TO invokeai_app;
CREATE POLICY shared_boards_read ON shared_boards FOR SELECT TO invokeai_app
    USING ((SELECT app_sharing()) AND (user_id = (SELECT app_user_id()) OR EXISTS (SELECT FROM boards WHERE boards.board_id = shared_boards.board_id AND boards.user_id = (SELECT app_user_id()))));
CREATE POLICY shared_boards_insert ON shared_boards FOR INSERT TO invokeai_app
    WITH CHECK ((SELECT app_sharing()) AND EXISTS (SELECT FROM boards WHERE boards.board_id = shared_boards.board_id AND boards.user_id = (SELECT app_user_id())));
CREATE POLICY shared_boards_update ON shared_boards FOR UPDATE TO invokeai_app
    USING ((SELECT app_sharing()) AND EXISTS (SELECT FROM boards WHERE boards.board_id = shared_boards.board_id AND boards.user_id = (SELECT app_user_id())))
    WITH CHECK ((SELECT app_sharing()) AND EXISTS (SELECT FROM boards WHERE boards.board_id = shared_boards.board_id AND boards.user_id = (SELECT app_user_id())));
CREATE POLICY shared_boards_delete ON shared_boards FOR DELETE TO invokeai_app
    USING (EXISTS (SELECT FROM boards WHERE boards.board_id = shared_boards.board_id AND boards.user_id = (SELECT app_user_id())));

-- users: one's own row, to read (names beside jobs). Accounts write it as system work: a tenant could make themself admin.
GRANT SELECT ON users TO invokeai_app;
CREATE POLICY users_read ON users FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- user_sessions: one's own, to read; accounts write them.
GRANT SELECT ON user_sessions TO invokeai_app;
CREATE POLICY user_sessions_read ON user_sessions FOR SELECT TO invokeai_app
    USING (user_id = (SELECT app_user_id()));

-- models, model_relationships: one installation for all; read by all, changed by system work (install, scan, admin).
GRANT SELECT ON models TO invokeai_app;
CREATE POLICY models_read ON models FOR SELECT TO invokeai_app
    USING (true);

-- model_relationships: as models.
GRANT SELECT ON model_relationships TO invokeai_app;
CREATE POLICY model_relationships_read ON model_relationships FOR SELECT TO invokeai_app
    USING (true);

-- app_settings: global; all but the signing secret of tokens is read by all, system work writes.
GRANT SELECT ON app_settings TO invokeai_app;
CREATE POLICY app_settings_read ON app_settings FOR SELECT TO invokeai_app
    USING (key <> 'jwt_secret');

-- migrations, applied_migrations: upstream's bookkeeping, global.
GRANT SELECT ON migrations TO invokeai_app;
CREATE POLICY migrations_read ON migrations FOR SELECT TO invokeai_app
    USING (true);

-- applied_migrations: as migrations.
GRANT SELECT ON applied_migrations TO invokeai_app;
CREATE POLICY applied_migrations_read ON applied_migrations FOR SELECT TO invokeai_app
    USING (true);

-- user_invitations: addresses and codes of strangers; image_subfolder_move_*: upstream's maintenance, off in the SaaS.
-- System work only: no grant and no policy for tenants.
